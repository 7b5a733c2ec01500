"""Where the files of a data set are, whether they are the published ones, and their download."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.client
import lzma
import os
import urllib.request
import uuid
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from examples.python.progress import Bar, progress_bar

DATA_DIR_VARIABLE = "LAMBDA_GELU_DATA"

MEGABYTE = 1_000_000
TIMEOUT = 60.0  # seconds without a byte
DECOMPRESS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.decompress, ".xz": lzma.decompress}


class MissingDataError(FileNotFoundError):
    """A data set is not where it was looked for, cannot be downloaded, or cannot be read without a package."""


class CorruptDataError(ValueError):
    """A file is not the published one."""


@dataclass(frozen=True)
class Published:
    """A file of a data set.

    Attributes:
        name: uncompressed; beside it, the same with ``.gz`` or ``.xz`` after it is read too.
        digest: algorithm and hexadecimal digest of the content, uncompressed, such as ``"md5:f4a8712d…"``.
        url: where it can be had.
        arriving: the digest of what the URL gives, if that is compressed. Default: `digest`.
    """

    name: str
    digest: str
    url: str
    arriving: str | None = None


@dataclass(frozen=True)
class Archive:
    """An archive that unpacks to a folder.

    Attributes:
        name: of the archive, which is read as it is.
        digest: of the archive.
        folder: what it unpacks to, which is read too.
        members: the files in that folder that are read, with their digests.
    """

    name: str
    digest: str
    url: str
    folder: str
    members: dict[str, str]


def data_dir(given: Path | None = None) -> Path:
    """Where the files are: as given, else $LAMBDA_GELU_DATA, else ./data."""
    return given or Path(os.environ.get(DATA_DIR_VARIABLE) or "data")


def missing(path: Path) -> MissingDataError:
    return MissingDataError(f"{path} is missing: say --data-dir or set {DATA_DIR_VARIABLE}, or --download it")


# --- what is there ----------------------------------------------------------------------------------------------------


def read(folder: Path, file: Published, download: bool = False) -> bytes:
    """The content of a file, compressed or not.

    Raises:
        MissingDataError: where there is none and it is not, or cannot be, downloaded.
        CorruptDataError: where it is not the published one.
    """
    path = folder / file.name
    candidates = [path.with_name(path.name + suffix) for suffix in DECOMPRESS] + [path]
    found = next((candidate for candidate in candidates if candidate.exists()), None)
    if found is None:
        found = folder / file.url.rsplit("/", 1)[1]
        if not download:
            raise missing(found)
        fetch(file.url, found, file.arriving or file.digest)
    content = found.read_bytes()
    if found != path:
        try:
            content = DECOMPRESS[found.suffix](content)
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            algorithm, digest = file.digest.split(":")
            raise CorruptDataError(
                f"{found} is damaged ({error}): there is no {algorithm} of what it holds, expected {digest}"
            ) from error
    verify(str(path), content, file.digest)
    return content


def obtain(folder: Path, archive: Archive, download: bool = False) -> Path:
    """An archive that is the published one. Errors as of :func:`read`."""
    path = folder / archive.name
    if path.exists():
        with path.open("rb") as file:
            found = _hash(archive.digest)
            for block in iter(lambda: file.read(MEGABYTE), b""):
                found.update(block)
        _compare(str(path), found, archive.digest)
    elif download:
        fetch(archive.url, path, archive.digest)
    else:
        raise missing(path)
    return path


def verify(name: str, content: bytes | memoryview, expected: str) -> None:
    """Refuses a content that has not the digest that is expected; `name` is for the message."""
    found = _hash(expected)
    found.update(content)
    _compare(name, found, expected)


def digest(content: bytes | memoryview, algorithm: str) -> str:
    """Algorithm and hexadecimal digest, as :class:`Published` has them."""
    return f"{algorithm}:{hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()}"


def _hash(expected: str) -> hashlib._Hash:
    return hashlib.new(expected.partition(":")[0], usedforsecurity=False)


def _compare(name: str, found: hashlib._Hash, expected: str) -> None:
    algorithm, _, wanted = expected.partition(":")
    if found.hexdigest() != wanted:
        raise CorruptDataError(
            f"{name} is not the published file: its {algorithm} is {found.hexdigest()}, expected {wanted}"
        )


# --- what is made -----------------------------------------------------------------------------------------------------


def fetch(url: str, target: Path, expected: str) -> None:
    """Downloads a file, with a progress bar. `target` is there only once all of it is, and is the published one.

    Raises:
        MissingDataError: if it cannot be had, or written.
        CorruptDataError: if what arrives has another digest than `expected`.
    """
    found = _hash(expected)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replaced(target) as temporary:
            with urllib.request.urlopen(url, timeout=TIMEOUT) as response, temporary.open("wb") as file:
                bar = _bar(target.name, response.headers.get("Content-Length"))
                try:
                    for block in iter(lambda: response.read(MEGABYTE), b""):
                        file.write(block)
                        found.update(block)
                        bar.update()
                finally:
                    bar.close()
            _compare(url, found, expected)
    except (OSError, http.client.HTTPException) as error:
        raise MissingDataError(f"{target} is missing and cannot be downloaded from {url}: {error}") from error


def _bar(name: str, length: str | None) -> Bar:
    bar = progress_bar(max(1, -(-int(length or 0) // MEGABYTE)), "MB")
    bar.set_description(name)
    return bar


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, which takes its place at the end: nobody ever reads half of it."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
