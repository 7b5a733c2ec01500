"""Where a file of a data set is, and whether it is the published one."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import lzma
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

DATA_DIR_VARIABLE = "LAMBDA_GELU_DATA"

DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.decompress, ".xz": lzma.decompress}


class MissingDataError(FileNotFoundError):
    """A data set is not where it was looked for, cannot be downloaded, or cannot be read without a package."""


class CorruptDataError(ValueError):
    """A file is not the published one."""


def data_dir(given: Path | None = None) -> Path:
    """Where the files are: as given, else $LAMBDA_GELU_DATA, else ./data."""
    return given or Path(os.environ.get(DATA_DIR_VARIABLE) or "data")


def missing(path: Path) -> MissingDataError:
    return MissingDataError(f"{path} is missing: say --data-dir or set {DATA_DIR_VARIABLE}")


def verify(name: str, content: bytes | memoryview, expected: str) -> None:
    """Refuses a content that is not the published one.

    Args:
        name: of the file, for the message.
        expected: algorithm and hexadecimal digest, such as ``"md5:f4a8712d…"``.
    """
    algorithm, digest = expected.split(":")
    found = hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()
    if found != digest:
        raise CorruptDataError(f"{name} is not the published file: its {algorithm} is {found}, expected {digest}")


def read(path: Path, suffix: str, expected: str) -> bytes:
    """The content of a file that lies there compressed, with `suffix` after its name, or not.

    Args:
        suffix: ``".gz"`` or ``".xz"``.
        expected: the digest of the content, uncompressed, so that an unpacked copy serves too.
    """
    compressed = path.with_name(path.name + suffix)
    if compressed.exists():
        try:
            content = DECOMPRESS[suffix](compressed.read_bytes())
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise CorruptDataError(
                f"{compressed} is damaged: {error or type(error).__name__}; what it holds should have the {expected}"
            ) from error
    elif path.exists():
        content = path.read_bytes()
    else:
        raise missing(compressed)
    verify(path.name, content, expected)
    return content


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, which takes its place at the end: nobody ever reads half of it."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        Path(name).replace(path)
    finally:
        Path(name).unlink(missing_ok=True)
