"""JSON Lines: one file per run, one line per epoch, the settings in front, what came of it at the end."""

from __future__ import annotations

import contextlib
import gzip
import json
import math
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FORMAT = 1
Line = dict[str, Any]


class RecordMismatchError(ValueError):
    """A record of the same name was made with other settings."""


@dataclass
class Record:
    """What a file holds: `head` with the settings, `epochs` from 0 on, and `end`, None while the run is not over."""

    head: Line
    epochs: list[Line] = field(default_factory=list)
    end: Line | None = None

    @property
    def system(self) -> str:
        return self.head["system"]

    @property
    def arm(self) -> str:
        return self.head["arm"]

    @property
    def seed(self) -> int:
        return self.head["seed"]

    @property
    def is_finished(self) -> bool:
        """Whether it came to its end with a finite loss."""
        return self.end is not None and self.end["status"] == "finished"


def path(folder: Path, system: str, arm: str, seed: int) -> Path:
    """Of a run that is under way; that of one that is over ends in ``.jsonl.gz``."""
    return folder / system / f"{arm}-{seed}.jsonl"


def compressed(file: Path) -> Path:
    return file.with_name(file.name + ".gz")


def find(folder: Path, head: Line) -> Record | None:
    """The record of a run, as far as there is one.

    Raises:
        RecordMismatchError: where it was made with other settings, or is no record.
    """
    file = path(folder, head["system"], head["arm"], head["seed"])
    for candidate in (compressed(file), file):
        if candidate.exists():
            record = read_file(candidate)
            check_settings(record.head, head, candidate)
            return record
    return None


def check_settings(found: Line, expected: Line, where: Path) -> None:
    """Raises: RecordMismatchError, naming what differs."""
    for key in ("format", "system", "arm", "seed"):
        if found.get(key) != expected[key]:
            raise RecordMismatchError(f"{where}: {key} is {found.get(key)!r}, expected {expected[key]!r}")
    ours, theirs = (flat(_as_read(head.get("settings", {}))) for head in (expected, found))
    differ = [key for key in sorted({*ours, *theirs}) if ours.get(key) != theirs.get(key)]
    if differ:
        told = ", ".join(f"{key} = {theirs.get(key)!r}, now {ours.get(key)!r}" for key in differ)
        raise RecordMismatchError(
            f"{where} was made with other settings ({told}): choose another folder with --results, or delete it"
        )


def flat(settings: Line) -> Line:
    """Settings of settings by both names, so that what differs can be told apart."""
    found: Line = {}
    for key, value in settings.items():
        found |= {f"{key}.{inner}": item for inner, item in value.items()} if isinstance(value, dict) else {key: value}
    return found


def write(folder: Path, record: Record) -> Path:
    """Writes all of it, compressed where the run is over; what was there is replaced in one step."""
    file = path(folder, record.system, record.arm, record.seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [record.head, *record.epochs, *([] if record.end is None else [record.end])]
    content = "".join(_line(line) for line in lines).encode()
    target = file if record.end is None else compressed(file)
    temporary = target.with_name(target.name + ".part")
    # Without a time stamp the same run gives the same bytes.
    temporary.write_bytes(content if record.end is None else gzip.compress(content, mtime=0))
    temporary.replace(target)
    if record.end is not None:
        file.unlink(missing_ok=True)
    return target


def append(folder: Path, record: Record, epoch: Line) -> None:
    """Adds the line of an epoch to the record and to its file."""
    record.epochs.append(epoch)
    with path(folder, record.system, record.arm, record.seed).open("a", encoding="utf-8") as file:
        file.write(_line(epoch))


def read_file(file: Path) -> Record:
    """Raises: RecordMismatchError: for what is no record."""
    raw = file.read_bytes()
    try:
        text = (gzip.decompress(raw) if file.suffix == ".gz" else raw).decode()
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise _no_record(file, error) from error
    if file.suffix != ".gz" and text and not text.endswith("\n"):
        text = text[: text.rfind("\n") + 1]  # a line that a killed process did not finish
    try:
        lines = [json.loads(line) for line in text.splitlines()]
    except json.JSONDecodeError as error:
        raise _no_record(file, error) from error
    kinds = [line.get("kind") if isinstance(line, dict) else None for line in lines]
    if kinds[:1] != ["run"]:
        raise _no_record(file, "its first line must be the settings of a run")
    is_over = kinds[-1] == "end"
    epochs = lines[1:-1] if is_over else lines[1:]
    if kinds[1 : len(epochs) + 1] != ["epoch"] * len(epochs):
        raise _no_record(file, "after the settings there must be epochs, and at most one end")
    return Record(lines[0], epochs, lines[-1] if is_over else None)


def read(folder: Path) -> list[Record]:
    """All records of a folder, by system, arm and seed; of a run that is over, one."""
    found: dict[tuple[str, str, int], Record] = {}
    for file in [*folder.glob("*/*.jsonl"), *folder.glob("*/*.jsonl.gz")]:
        with contextlib.suppress(FileNotFoundError):  # a run may end meanwhile
            record = read_file(file)
            found[record.system, record.arm, record.seed] = record
    return [found[key] for key in sorted(found)]


def _line(line: Line) -> str:
    return json.dumps(_rounded(line), ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"


def _no_record(file: Path, why: object) -> RecordMismatchError:
    return RecordMismatchError(f"{file} is no record ({why}): delete it, and the run is made again")


def _as_read(settings: Line) -> Line:
    return json.loads(_line(settings))


def _rounded(value: Any) -> Any:
    """Seven digits, which is more than float32 has; what is not finite as None, which JSON has."""
    if isinstance(value, float):
        return float(f"{value:.7g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return value
