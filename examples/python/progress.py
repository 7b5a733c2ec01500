"""A progress bar: tqdm's where it is installed, else a plain one."""

from __future__ import annotations

import sys
import time
from typing import Protocol

try:
    from tqdm import tqdm
except ImportError:
    tqdm = None


class Bar(Protocol):
    """What the two have in common."""

    def set_description(self, text: str) -> None: ...
    def update(self, steps: int = 1) -> object: ...
    def close(self) -> None: ...


class PlainBar:
    """One line on stderr, redrawn at most ten times a second."""

    WIDTH = 40

    def __init__(self, total: int, unit: str) -> None:
        self.total, self.unit, self.done, self.text, self.drawn = total, unit, 0, "", 0.0

    def set_description(self, text: str) -> None:
        self.text = text

    def update(self, steps: int = 1) -> None:
        self.done += steps
        if time.monotonic() - self.drawn > 0.1:
            self._draw()

    def close(self) -> None:
        self._draw()
        sys.stderr.write("\n")

    def _draw(self) -> None:
        filled = self.WIDTH * self.done // self.total
        bar = "#" * filled + "-" * (self.WIDTH - filled)
        sys.stderr.write(f"\r{self.text:<28} [{bar}] {self.done}/{self.total} {self.unit}s")
        sys.stderr.flush()
        self.drawn = time.monotonic()


def progress_bar(total: int, unit: str) -> Bar:
    """A bar for `total` steps, one or several for every call of update()."""
    return PlainBar(total, unit) if tqdm is None else tqdm(total=total, unit=unit)


def write_above(text: str) -> None:
    """A line on stderr while a bar is shown."""
    if tqdm is None:
        sys.stderr.write(f"\r{text}\n")
    else:
        tqdm.write(text, file=sys.stderr)
