"""Reports as plain-text tables and as plain data."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; the first is left-aligned, the others right-aligned."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *others = (
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "  ".join([first, *others]).rstrip()

    rule = "  ".join("-" * width for width in widths)
    return "\n".join([line(header), rule, *map(line, rows)])


def as_lists(items: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A `dict_factory` for dataclasses.asdict that gives what JSON has: lists for tuples."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in items}


def counted(number: int, noun: str) -> str:
    """``1 site``, ``2 sites``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def finite_or_text(value: Any) -> Any:
    """The same plain data, with ``"inf"``, ``"-inf"`` and ``"nan"`` for the numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: finite_or_text(item) for key, item in value.items()}
    if isinstance(value, list):
        return [finite_or_text(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def to_json(plain: Mapping[str, Any], path: str | PathLike[str] | None) -> str:
    """Strict JSON, also written to a file in UTF-8 where one is named."""
    text = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text


def to_csv(columns: Sequence[str], rows: Iterable[Mapping[str, Any]], path: str | PathLike[str]) -> None:
    """A header and a line per row in UTF-8; None is empty, and the items of a list are separated by blanks."""
    with Path(path).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        for row in rows:
            writer.writerow({key: " ".join(value) if isinstance(value, list) else value for key, value in row.items()})
