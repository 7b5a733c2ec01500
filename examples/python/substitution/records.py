"""One JSON file per task, arm and seed: what a run found, with its settings and the machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Record = dict[str, Any]


def path(folder: Path, task: str, arm: str, seed: int) -> Path:
    return folder / task / f"{arm}-{seed}.json"


def write(folder: Path, record: Record) -> Path:
    """Writes a record; floats keep seven digits, which is more than float32 has."""
    target = path(folder, record["task"], record["arm"], record["seed"])
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(".part")
    temporary.write_text(_text(_rounded(record), 3) + "\n", encoding="utf-8")
    temporary.replace(target)
    return target


def read(folder: Path) -> list[Record]:
    """All records, by task, arm and seed."""
    found = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*/*.json"))]
    return sorted(found, key=lambda record: (record["task"], record["arm"], record["seed"]))


def _text(value: Any, depth: int, indent: str = "") -> str:
    """JSON with a line for every entry of the outer `depth` levels, so that a diff shows which figure has changed."""
    if depth == 0 or not isinstance(value, (dict, list)) or not value:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    inner = indent + " "
    if isinstance(value, dict):
        entries = [
            f"{json.dumps(key, ensure_ascii=False)}: {_text(item, depth - 1, inner)}" for key, item in value.items()
        ]
    else:
        entries = [_text(item, depth - 1, inner) for item in value]
    left, right = "{}" if isinstance(value, dict) else "[]"
    return f"{left}\n" + ",\n".join(inner + entry for entry in entries) + f"\n{indent}{right}"


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value
