"""What callers give: refused by the name of the argument."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real


def check_int(name: str, value: object, least: int | None = None) -> None:
    """Raises TypeError for what is no int, and ValueError for one below `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if least is not None and value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_finite(name: str, value: object) -> None:
    """Raises TypeError for what is no number, and ValueError for one that is not finite."""
    if not math.isfinite(checked_number(name, value)):
        raise ValueError(f"{name} must be finite, got {value}")


def check_positive(name: str, value: object) -> None:
    """Raises TypeError for what is no number, and ValueError for one that is not finite and positive."""
    number = checked_number(name, value)
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name} must be finite and positive, got {value}")


def checked_number(name: str, value: object) -> Real:
    """The same number; raises TypeError for what is none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a float, got {type(value).__name__}")
    return value


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raises ValueError for what is none of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be {' or '.join(map(repr, choices))}, got {value!r}")


def check_names(name: str, given: Mapping[str, object], sites: Iterable[str]) -> None:
    """Raises ValueError unless a mapping has a value for every site and for nothing else."""
    known = list(sites)
    unknown = [str(key) for key in given if key not in known]
    missing = [site for site in known if site not in given]
    if unknown or missing:
        raise ValueError(
            f"{name} must name every site once: unknown {unknown}, missing {missing}; the sites are {known}"
        )
