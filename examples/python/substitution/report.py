"""From the records to the page: tables between its markers, and the picture beside it."""

from __future__ import annotations

import os
from pathlib import Path

from examples import markdown

from . import records, tables
from .figures import draw


def write(folder: Path, page: Path, figure: Path) -> str:
    """Writes both; returns what to tell.

    Raises:
        ValueError: where there is no record, or the page lacks its markers.
    """
    found = records.read(folder)
    if not found:
        raise ValueError(f"{folder} holds no records: run.py run makes them")
    known = tables.Records(found)
    text = tables.page(known, Path(os.path.relpath(figure, page.parent)).as_posix())
    markdown.fill(page, {tables.BLOCK: text})
    draw(known, figure)
    return f"{len(found)} records: wrote {page} and {figure}"
