"""Decoded pixels, kept for the next time. What is kept is used only if it has the digest that its name says."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from . import files

Pixels = NDArray[np.uint8]


def directory() -> Path:
    """$XDG_CACHE_HOME, else ~/.cache, each with lambda-gelu in it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lambda-gelu"


def kept(stem: str, shape: tuple[int, ...], make: Callable[[], Pixels], digest: str | None = None) -> Pixels:
    """What is kept under a name, else what `make` returns, which is kept.

    Args:
        stem: names what the pixels are made from.
        shape: of the pixels.
        digest: of the pixels, such as ``"sha256:6836052a…"``, if it is known.
    """
    known = digest.split(":")[1] if digest else "*"
    for path in sorted(directory().glob(f"{stem}-{known}.npy")):
        pixels = _load(path, shape)
        if pixels is not None:
            return pixels
    pixels = make()
    if not digest:
        digest = files.digest(memoryview(pixels).cast("B"), "sha256")
    path = directory() / f"{stem}-{digest.split(':')[1]}.npy"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replaced(path) as temporary, temporary.open("wb") as file:
            np.save(file, pixels)
    except OSError as error:
        warnings.warn(f"{path} cannot be kept ({error}): it will be decoded again next time", stacklevel=2)
    return pixels


def _load(path: Path, shape: tuple[int, ...]) -> Pixels | None:
    """The pixels of a file, or None if it is damaged, which it is removed for."""
    try:
        pixels = np.load(path, allow_pickle=False)
        if pixels.dtype == np.uint8 and pixels.shape == shape:
            files.verify(str(path), memoryview(pixels).cast("B"), f"sha256:{path.stem.rsplit('-', 1)[1]}")
            return pixels
    except Exception:  # whatever NumPy makes of a damaged file
        pass
    with contextlib.suppress(OSError):
        path.unlink()
    return None
