"""From the records to the page: tables between its markers, and the picture beside it."""

from __future__ import annotations

from pathlib import Path

from . import records, tables

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "substitution.md"
FIGURE = ROOT / "docs" / "substitution" / "experiments.png"


def write(folder: Path, page: Path = PAGE, figure: Path = FIGURE) -> str:
    """Writes both; returns what to tell.

    Raises:
        ValueError: where there is no record, or the page lacks its markers.
    """
    found = records.read(folder)
    if not found:
        raise ValueError(f"{folder} holds no records: run.py run makes them")
    from .figures import draw  # noqa: PLC0415 - only the picture needs matplotlib

    known = tables.Records(found)
    tables.put(page, tables.page(known, figure.relative_to(page.parent).as_posix()))
    draw(known, figure)
    return f"{len(found)} records: wrote {page} and {figure}"
