"""Numbers that callers give: refused by the name of the argument."""

from __future__ import annotations

import math
from numbers import Real


def check_int(name: str, value: object, least: int | None = None) -> None:
    """Raises TypeError for what is no int, and ValueError for one below `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_finite(name: str, value: object) -> None:
    """Raises TypeError for what is no number, and ValueError for one that is not finite."""
    if not math.isfinite(_number(name, value)):
        raise ValueError(f"{name} must be finite, got {value}")


def check_positive(name: str, value: object) -> None:
    """Raises TypeError for what is no number, and ValueError for one that is not finite and positive."""
    number = _number(name, value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name} must be finite and positive, got {value}")


def _number(name: str, value: object) -> Real:
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a float, got {type(value).__name__}")
    return value
