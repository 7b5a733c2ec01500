"""What the pages made of records share: tables, means with their spread, and blocks of a page that a program fills."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def number(value: float, digits: int) -> str:
    """With a minus sign that is as wide as a plus, and no sign at a zero."""
    text = f"{value:.{digits}f}"
    return text.replace("-", "−") if float(text) else text.removeprefix("-")


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation over the seeds."""
    if not values:
        return "–"
    mean = number(statistics.mean(values), digits)
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def fill(path: Path, blocks: Mapping[str, str]) -> None:
    """Replaces what is between the markers ``<!-- name -->`` and ``<!-- /name -->`` of a page, for every name.

    Raises:
        ValueError: where the page lacks a marker. Nothing has been written.
    """
    content = path.read_text(encoding="utf-8")
    for name, text in blocks.items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if not pattern.search(content):
            raise ValueError(f"{path} lacks the markers {begin} and {end}")
        filled = f"{begin}\n\n{text}\n\n{end}"
        content = pattern.sub(lambda _, filled=filled: filled, content, count=1)
    path.write_text(content, encoding="utf-8")
