"""TinyImageNet: 200 classes of ImageNet in images of 64 x 64 pixels."""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from examples.python.progress import progress_bar

from . import cache, files
from .files import Archive
from .splits import Labelled, hold_out_

SIDE = 64
TRAINING_IMAGE = re.compile(r"train/(n\d+)/images/\1_(\d+)\.JPEG")

TINY_IMAGENET = Archive(
    name="tiny-imagenet-200.zip",
    digest="md5:90528d7ca1a48142e341f4ef8d21d0de",
    url="http://cs231n.stanford.edu/tiny-imagenet-200.zip",
    folder="tiny-imagenet-200",
    members={},  # 110,000 images, which nobody has published digests of
)


def load(folder: Path, download: bool = False, *, archive: Archive = TINY_IMAGENET) -> Labelled:
    """100,000 and 10,000 images, uint8 of shape (N, 3, 64, 64); every tenth of each training class is held out.

    Classes are numbered in the order of their WordNet identifiers. The published validation images are the test: the
    published test images have no labels. Grey images become three equal planes.

    The decoded pixels are kept (:mod:`cache`): decoding takes about a minute, and they 1.4 GB. They are decoded again
    when the archive's digest, or the name, size or time of an unpacked file, is another.

    Args:
        folder: holds ``tiny-imagenet-200/`` or ``tiny-imagenet-200.zip``.
        download: the archive, where there is neither.

    Raises:
        MissingDataError: where there is neither, or no Pillow to read JPEG files.
        CorruptDataError: where the archive is not the published one, or an image is missing or damaged.
    """
    unpacked = folder / archive.folder
    if unpacked.is_dir():
        return _load(_Folder(unpacked))
    with zipfile.ZipFile(files.obtain(folder, archive, download)) as members:
        return _load(_Zip(members, archive))


class _Source(Protocol):
    """The files of the archive, by their names in it."""

    where: str
    key: str

    def names(self) -> Iterable[str]: ...
    def read(self, name: str) -> bytes: ...


class _Folder:
    def __init__(self, path: Path) -> None:
        self.path, self.where = path, str(path)
        self._files = {file.relative_to(path).as_posix(): file for file in path.rglob("*.*") if file.is_file()}
        digest = hashlib.sha256()
        for name, file in sorted(self._files.items()):
            status = file.stat()
            digest.update(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
        self.key = digest.hexdigest()

    def names(self) -> Iterable[str]:
        return self._files

    def read(self, name: str) -> bytes:
        return self._files[name].read_bytes()


class _Zip:
    def __init__(self, archive: zipfile.ZipFile, published: Archive) -> None:
        self.archive, self.where = archive, str(archive.filename)
        self.prefix = f"{published.folder}/"
        self.key = published.digest.split(":")[1]

    def names(self) -> Iterable[str]:
        return [name.removeprefix(self.prefix) for name in self.archive.namelist()]

    def read(self, name: str) -> bytes:
        return self.archive.read(self.prefix + name)


def _load(source: _Source) -> Labelled:
    there = set(source.names())
    for name in ("wnids.txt", "val/val_annotations.txt"):
        if name not in there:
            raise files.CorruptDataError(f"{source.where} lacks {name}")
    classes = {wnid: label for label, wnid in enumerate(sorted(source.read("wnids.txt").decode().split()))}

    train = sorted(
        (classes[found[1]], int(found[2]), found[0])
        for found in map(TRAINING_IMAGE.fullmatch, there)
        if found and found[1] in classes
    )
    counts = Counter(label for label, _, _ in train)
    most = max(counts.values(), default=1)
    for wnid, label in classes.items():
        if counts[label] < most:
            raise files.CorruptDataError(
                f"{source.where} lacks images: train/{wnid} holds {counts[label]}, other classes {most}"
            )

    test = {}
    for line in source.read("val/val_annotations.txt").decode().splitlines():
        name, wnid = (*line.split("\t"), "")[:2]
        if wnid not in classes or f"val/images/{name}" not in there:
            raise files.CorruptDataError(f"{source.where} lacks val/images/{name}, or its class {wnid}")
        test[f"val/images/{name}"] = classes[wnid]

    return Labelled(
        *hold_out_(
            _images(source, "train", [name for _, _, name in train]), torch.tensor([label for label, _, _ in train])
        ),
        (_images(source, "val", list(test)), torch.tensor(list(test.values()))),
    )


def _images(source: _Source, part: str, names: list[str]) -> torch.Tensor:
    """The images of these names, uint8 (N, 3, 64, 64)."""
    shape = (len(names), 3, SIDE, SIDE)
    pixels = cache.kept(f"tiny-imagenet-{part}-{source.key[:16]}", shape, lambda: _decoded(source, part, names))
    return torch.from_numpy(pixels)


def _decoded(source: _Source, part: str, names: list[str]) -> cache.Pixels:
    try:
        from PIL import Image  # noqa: PLC0415 - needed for this data set only
    except ImportError as error:
        raise files.MissingDataError("TinyImageNet's images are JPEG files: pip install pillow") from error
    pixels = np.empty((len(names), 3, SIDE, SIDE), np.uint8)
    bar = progress_bar(len(names), "image")
    bar.set_description(f"TinyImageNet, {part}")
    try:
        for index, name in enumerate(names):
            try:
                with Image.open(io.BytesIO(source.read(name))) as image:
                    rgb = np.asarray(image.convert("RGB"))
            except (OSError, ValueError) as error:
                raise files.CorruptDataError(f"{name} of {source.where} is damaged: {error}") from error
            if rgb.shape != (SIDE, SIDE, 3):
                raise files.CorruptDataError(
                    f"{name} of {source.where} must have {SIDE} x {SIDE} pixels, got {rgb.shape[1]} x {rgb.shape[0]}"
                )
            pixels[index] = rgb.transpose(2, 0, 1)
            bar.update()
    finally:
        bar.close()
    return pixels
