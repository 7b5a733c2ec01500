"""CIFAR-10 and CIFAR-100, in the official binary layout; CIFAR-10 also in a smaller coding of the same pixels."""

from __future__ import annotations

import io
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from . import cache, coding, files
from .files import Archive
from .splits import Labelled, Split, hold_out_

SIDE = 32
PIXELS = 3 * SIDE * SIDE

# The digests of the archives are those of the official page; those of the unpacked files are MXNet's.
CIFAR_10 = Archive(
    name="cifar-10-binary.tar.gz",
    digest="md5:c32a1d4ab5d03f1284b67883e8d87530",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    folder="cifar-10-batches-bin",
    members={
        "data_batch_1.bin": "sha1:aadd24acce27caa71bf4b10992e9e7b2d74c2540",
        "data_batch_2.bin": "sha1:c0ba65cce70568cd57b4e03e9ac8d2a5367c1795",
        "data_batch_3.bin": "sha1:1dd00a74ab1d17a6e7d73e185b69dbf31242f295",
        "data_batch_4.bin": "sha1:aab85764eb3584312d3c7f65fd2fd016e36a258e",
        "data_batch_5.bin": "sha1:26e2849e66a845b7f1e4614ae70f4889ae604628",
        "test_batch.bin": "sha1:67eb016db431130d61cd03c7ad570b013799c88c",
    },
)
CIFAR_100 = Archive(
    name="cifar-100-binary.tar.gz",
    digest="md5:03b5dce01913d631647c71ecec9e9cb8",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    folder="cifar-100-binary",
    members={
        "train.bin": "sha1:e207cd2e05b73b1393c74c7f5e7bea451d63e08e",
        "test.bin": "sha1:8fb6623e830365ff53cf14adec797474f5478006",
    },
)

CODED_FOLDER = "cifar-10"
CODED_IMAGES = 10_000  # in each file, 1000 of each class one after the other
CODED = {  # of the file, and of its pixels, uint8 (10000, 32, 32, 3)
    "train_1.npz": (
        "sha256:3d181f5b95dff409b76c25ef2b4302e7224383d2d663f602f9f3046ce49c5471",
        "sha256:6836052a60262d48cfc1f4b131538e06bc574af9014ac2406e3bfec0c6f314c7",
    ),
    "train_2.npz": (
        "sha256:c5ab3f16e80d87c7d6ce5ec869347fbee1623a3616d05075b20c1e5fb5482b49",
        "sha256:341efe8c2d632529e04814bf84e328d079368237a90becbf89ead28399f56453",
    ),
    "train_3.npz": (
        "sha256:1e786f550864f0560f29ffd7af76a33a77bcac3a6c7f9541e59a76abd0681da8",
        "sha256:dd3e32fa1461974a774711cc13ed50c4a7db3fe7e77f6ca1a0a5547dce5032ef",
    ),
    "train_4.npz": (
        "sha256:e52f01f54a4a0501355a22e49a7802921dc65b118d43ca16676b658619118d37",
        "sha256:604c585019c3269c3efc86bec827261cefb945f8cedcb82fb735a480755b24d8",
    ),
    "train_5.npz": (
        "sha256:6c249b231cadad1c555c75b630c1d1f0463c6f62ddacdccf2c586a9be9d5055a",
        "sha256:d965f3a8929c3d21f2ef624c20159204260115f3973317fb3554b6eaff03d77d",
    ),
    "test.npz": (
        "sha256:465a580251b46ea9e69a52d7ae4e4a4b20c136a703720af83aeda5fa4cf697d7",
        "sha256:52a9dc125982c0440d5eed87474b2f521e96c45a98df08e4329aa42c692b9d9d",
    ),
}


def load_10(folder: Path, parts: int = 5, download: bool = False, *, archive: Archive = CIFAR_10) -> Labelled:
    """CIFAR-10: 50,000 and 10,000 images, uint8 (N, 3, 32, 32); every tenth of each training class is held out.

    The images are in the order of the files, which may be by class: shuffle before training. That order, and with it
    what is held out, depends on the layout that is found.

    Args:
        folder: holds one of ``cifar-10/`` with ``train_1.npz`` to ``train_5.npz`` and ``test.npz`` (:mod:`coding`, a
            third of the official size), ``cifar-10-batches-bin/`` and ``cifar-10-binary.tar.gz``, looked for in this
            order.
        parts: how many of the five training files, each about a fifth of every class. Default: all.
        download: the archive, where there is none of these.

    Raises:
        MissingDataError, CorruptDataError: as of :func:`files.read`.
    """
    if parts not in range(1, 6):
        raise ValueError(f"parts must be from 1 to 5, the number of training files, got {parts!r}")
    if any((folder / CODED_FOLDER / name).exists() for name in CODED):
        names = [*list(CODED)[:parts], "test.npz"]
        labels = torch.arange(10).repeat_interleave(CODED_IMAGES // 10)
        found: Iterator[tuple[str, Split]] = ((name, (_coded(folder, name), labels)) for name in names)
    else:
        names = [*list(archive.members)[:parts], "test_batch.bin"]
        found = ((name, _records(content, 1)) for name, content in _contents(folder, archive, names, download))
    return _gathered(names, found)


def load_100(folder: Path, download: bool = False, *, archive: Archive = CIFAR_100) -> Labelled:
    """CIFAR-100 with its fine labels, else as :func:`load_10`.

    Args:
        folder: holds ``cifar-100-binary/`` or ``cifar-100-binary.tar.gz``.
    """
    names = list(archive.members)
    found = ((name, _records(content, 2)) for name, content in _contents(folder, archive, names, download))
    return _gathered(names, found)


def _gathered(names: Sequence[str], found: Iterator[tuple[str, Split]]) -> Labelled:
    """The training files, in the order of their names, and the last one, which is the test's.

    Args:
        found: name and images of each, in any order; the training files are of equal size.
    """
    x, y, test = torch.empty(0), torch.empty(0), None
    for name, (images, labels) in found:
        if name == names[-1]:
            test = (images.contiguous(), labels)
            continue
        count = len(labels)
        if not len(y):
            x = images.new_empty(count * (len(names) - 1), *images.shape[1:])
            y = labels.new_empty(len(x))
        start = count * names.index(name)
        x[start : start + count], y[start : start + count] = images, labels
    assert test is not None
    return Labelled(*hold_out_(x, y), test)


# --- the official layout ----------------------------------------------------------------------------------------------


def _contents(folder: Path, archive: Archive, names: Sequence[str], download: bool) -> Iterator[tuple[str, bytes]]:
    """Files of an archive, unpacked or not, in the order in which they come."""
    unpacked = folder / archive.folder
    if unpacked.is_dir():
        for name in names:
            path = unpacked / name
            if not path.exists():
                raise files.missing(path)
            content = path.read_bytes()
            files.verify(str(path), content, archive.members[name])
            yield name, content
        return
    path = files.obtain(folder, archive, download)
    left = {f"{archive.folder}/{name}": name for name in names}
    with tarfile.open(path) as members:
        for member in members:
            name = left.pop(member.name.removeprefix("./"), None)
            content = members.extractfile(member) if name else None
            if name and content:
                yield name, content.read()
    if left:
        raise files.CorruptDataError(f"{path} lacks {', '.join(left)}")


def _records(content: bytes, label_bytes: int) -> Split:
    """Images and labels of a file: for each image its labels, the last of which counts, and its pixels by plane."""
    records = torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(-1, label_bytes + PIXELS)
    return records[:, label_bytes:].reshape(-1, 3, SIDE, SIDE), records[:, label_bytes - 1].long()


# --- the smaller coding -----------------------------------------------------------------------------------------------


def _coded(folder: Path, name: str) -> Tensor:
    pixels = read_coded(folder / CODED_FOLDER / name, *CODED[name], CODED_IMAGES)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def read_coded(path: Path, of_file: str, of_pixels: str, images: int) -> cache.Pixels:
    """The pixels of a coded file, (images, 32, 32, 3).

    Args:
        of_file, of_pixels: digests of the file and of what it is decoded to.
    """
    if not path.exists():
        raise files.missing(path)

    def decoded() -> cache.Pixels:
        content = path.read_bytes()
        files.verify(str(path), content, of_file)
        try:
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                pixels = coding.decode({name: arrays[name] for name in arrays}, images)
        except (KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise files.CorruptDataError(f"{path} does not hold {images} coded images: {error}") from error
        files.verify(f"{path}, decoded,", memoryview(pixels).cast("B"), of_pixels)
        return pixels

    return cache.kept(f"cifar-10-{path.stem}", (images, SIDE, SIDE, 3), decoded, of_pixels)
