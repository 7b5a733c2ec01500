"""CIFAR-10."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from . import coding, files
from .splits import Labelled

SIDE = 32
FILES = ("train_1", "train_2", "train_3", "train_4", "train_5", "test")
CODED = {
    "train_1": "sha256:3d181f5b95dff409b76c25ef2b4302e7224383d2d663f602f9f3046ce49c5471",
    "train_2": "sha256:c5ab3f16e80d87c7d6ce5ec869347fbee1623a3616d05075b20c1e5fb5482b49",
    "train_3": "sha256:1e786f550864f0560f29ffd7af76a33a77bcac3a6c7f9541e59a76abd0681da8",
    "train_4": "sha256:e52f01f54a4a0501355a22e49a7802921dc65b118d43ca16676b658619118d37",
    "train_5": "sha256:6c249b231cadad1c555c75b630c1d1f0463c6f62ddacdccf2c586a9be9d5055a",
    "test": "sha256:465a580251b46ea9e69a52d7ae4e4a4b20c136a703720af83aeda5fa4cf697d7",
}
# Of the pixels, uint8 (10000, 32, 32, 3).
PIXELS = {
    "train_1": "sha256:6836052a60262d48cfc1f4b131538e06bc574af9014ac2406e3bfec0c6f314c7",
    "train_2": "sha256:341efe8c2d632529e04814bf84e328d079368237a90becbf89ead28399f56453",
    "train_3": "sha256:dd3e32fa1461974a774711cc13ed50c4a7db3fe7e77f6ca1a0a5547dce5032ef",
    "train_4": "sha256:604c585019c3269c3efc86bec827261cefb945f8cedcb82fb735a480755b24d8",
    "train_5": "sha256:d965f3a8929c3d21f2ef624c20159204260115f3973317fb3554b6eaff03d77d",
    "test": "sha256:52a9dc125982c0440d5eed87474b2f521e96c45a98df08e4329aa42c692b9d9d",
}
IMAGES = 10_000  # in each file, 1000 of each class one after the other
HELD_OUT = 10  # every tenth training image: the source has no validation split


def load_10(folder: Path, parts: int = 5) -> Labelled:
    """CIFAR-10: 50,000 and 10,000 images of 3 x 32 x 32 pixels, uint8; every tenth training image is held out.

    The images are in the order of the files, by class within each: shuffle before training.

    Args:
        folder: holds ``cifar-10/train_1.npz`` to ``train_5.npz`` and ``test.npz`` (:mod:`coding`).
        parts: how many of the five training files, each a fifth of every class. Default: all.
    """
    if parts not in range(1, 6):
        raise ValueError(f"parts must be from 1 to 5, the number of training files, got {parts!r}")
    labels = torch.arange(10).repeat_interleave(IMAGES // 10)
    each = IMAGES // HELD_OUT
    train = torch.empty(parts * (IMAGES - each), 3, SIDE, SIDE, dtype=torch.uint8)
    held_out = torch.empty(parts * each, 3, SIDE, SIDE, dtype=torch.uint8)
    out = torch.arange(IMAGES) % HELD_OUT == HELD_OUT - 1
    for part in range(parts):
        pixels = _coded(folder, FILES[part])
        train[part * (IMAGES - each) : (part + 1) * (IMAGES - each)] = pixels[~out]
        held_out[part * each : (part + 1) * each] = pixels[out]
    return Labelled(
        (train, labels[~out].repeat(parts)), (held_out, labels[out].repeat(parts)), (_coded(folder, "test"), labels)
    )


def _coded(folder: Path, name: str) -> Tensor:
    """The pixels of one file, uint8 (10000, 3, 32, 32)."""
    path = folder / "cifar-10" / f"{name}.npz"
    if not path.exists():
        raise files.missing(path)
    pixels = read_coded(path, CODED[name], PIXELS[name], IMAGES)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def read_coded(path: Path, coded: str, decoded: str, images: int) -> NDArray[np.uint8]:
    """The pixels of a coded file, (images, 32, 32, 3), which are kept for the next time where they were decoded once.

    Args:
        coded: digest of the file.
        decoded: digest of the pixels. Kept pixels must have it too.
    """
    kept = cache_dir() / f"{path.stem}-{decoded.split(':')[1][:16]}.npy"
    try:
        pixels = np.load(kept, allow_pickle=False)
        files.verify(str(kept), memoryview(pixels).cast("B"), decoded)
        return pixels
    except (OSError, ValueError, EOFError):
        pass  # not there, or damaged: it is made again
    content = path.read_bytes()
    files.verify(str(path), content, coded)
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            pixels = coding.decode({name: arrays[name] for name in arrays}, images)
    except (KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise files.CorruptDataError(f"{path} is damaged: {error}") from error
    files.verify(f"{path}, decoded,", memoryview(pixels).cast("B"), decoded)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with files.replaced(kept) as temporary, temporary.open("wb") as file:
        np.save(file, pixels)
    return pixels


def cache_dir() -> Path:
    """Where decoded pixels are kept: $XDG_CACHE_HOME, else ~/.cache, each with lambda-gelu in it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lambda-gelu"
