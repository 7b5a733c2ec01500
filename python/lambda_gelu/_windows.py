"""What a training gives the sites of its model, observed in windows that follow one another."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from .statistics import Statistics, observe


class Windows:
    """Observes from :meth:`begin` to :meth:`end`; each :meth:`turn` ends a window and begins the next.

    Args:
        model, per, every: see :func:`lambda_gelu.observe`.
    """

    def __init__(self, model: nn.Module, per: str, every: int) -> None:
        self._model, self._per, self._every = model, per, every
        self._context = ExitStack()
        self._present: Statistics | None = None
        self._last: Statistics | None = None  # of the last whole window
        self._is_paused = False

    @property
    def hold_any(self) -> bool:
        """Whether there is a window, the present one or an earlier."""
        return self._present is not None or self._last is not None

    def has_counted(self) -> bool:
        """Whether any site was reached in them."""
        counted = [each for each in (self._present, self._last) if each is not None]
        return any(len(each.never_executed) < len(each) for each in counted)

    def begin(self) -> None:
        """The first window, where there is none."""
        if self._present is None:
            self._present = self._enter()

    def turn(self) -> None:
        """What was the present window is the last whole one from now on."""
        if self._present is not None:
            self._last = self._present.snapshot()
            self._present.reset()

    def forget(self) -> None:
        """Counts from zero."""
        self._last = None
        if self._present is not None:
            self._present.reset()

    def end(self) -> None:
        """What was the last whole window stays."""
        self._context.close()
        self._present = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """What runs within is not observed."""
        if self._present is None or self._is_paused:
            yield
            return
        self._is_paused = True
        self._context.close()  # what was counted stands still
        try:
            yield
        finally:
            self._is_paused = False
            if self._present is not None:
                counted = self._present.state_dict()
                self._present = self._enter()
                self._present.load_state_dict(counted)

    def refuse_paused(self, what: str) -> None:
        """Raises RuntimeError for what is not to be done within :meth:`paused`."""
        if self._is_paused:
            raise RuntimeError(f"{what} inside unobserved(): leave that context first")

    def present(self) -> Statistics:
        """Of the present window."""
        assert self._present is not None
        return self._present.snapshot()

    def recent(self) -> Statistics:
        """Of the present window and the last whole one, where there was one."""
        present = None if self._present is None else self._present.snapshot()
        if present is None or (self._last is not None and len(present.never_executed) == len(present)):
            assert self._last is not None
            return self._last
        return present if self._last is None else self._last.snapshot().merge(present)

    def state_dict(self) -> dict[str, Any]:
        return {
            "present": None if self._present is None else self._present.state_dict(),
            "last": None if self._last is None else self._last.state_dict(),
        }

    def load(self, present: Statistics | None, last: Statistics | None) -> None:
        """Resumes; to be called after :meth:`begin` where a window is to go on."""
        self._last = last
        if self._present is not None and present is not None:
            self._present.load_state_dict(present.state_dict())

    def _enter(self) -> Statistics:
        return self._context.enter_context(observe(self._model, per=self._per, every=self._every))
