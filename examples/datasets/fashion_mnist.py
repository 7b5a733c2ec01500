"""Fashion-MNIST from its IDX files."""

from __future__ import annotations

import struct
from pathlib import Path

import torch
from torch import Tensor

from . import files
from .files import Published
from .splits import Labelled

SOURCE = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/b2617bb6d3ffa2e429640350f613e3291e10b141"
FILES = [
    Published(name, f"md5:{content}", f"{SOURCE}/data/fashion/{name}.gz", f"md5:{compressed}")
    for name, content, compressed in (
        ("train-images-idx3-ubyte", "f4a8712d7a061bf5bd6d2ca38dc4d50a", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        ("train-labels-idx1-ubyte", "9018921c3c673c538a1fc5bad174d6f9", "25c81989df183df01b3e8a0aad5dffbe"),
        ("t10k-images-idx3-ubyte", "8181f5470baa50b63fa0f6fddb340f0a", "bef4ecab320f06d8554ea6380940ec79"),
        ("t10k-labels-idx1-ubyte", "15d484375f8d13e6eb1aabb0c3f46965", "bb300cfdad3c16e7a12a480ee83cd310"),
    )
]
HELD_OUT = 5000  # the source has no validation split


def load(folder: Path, download: bool = False) -> Labelled:
    """70,000 images of 28 x 28 pixels; the last 5000 training images are held out. Pixels have mean 0 and deviation 1.

    Args:
        folder: holds ``fashion-mnist/train-images-idx3-ubyte.gz`` and its three siblings, compressed or not.
        download: what is not there.

    Raises:
        MissingDataError, CorruptDataError: as of :func:`files.read`.
    """
    contents = {file.name: files.read(folder / "fashion-mnist", file, download) for file in FILES}
    images = {part: read_idx(contents[f"{part}-images-idx3-ubyte"]) for part in ("train", "t10k")}
    labels = {part: read_idx(contents[f"{part}-labels-idx1-ubyte"]).long() for part in ("train", "t10k")}
    pixels = {part: x.flatten(1).float().div_(255).sub_(0.286).div_(0.353) for part, x in images.items()}
    kept = len(labels["train"]) - HELD_OUT
    return Labelled(
        (pixels["train"][:kept], labels["train"][:kept]),
        (pixels["train"][kept:], labels["train"][kept:]),
        (pixels["t10k"], labels["t10k"]),
    )


def read_idx(content: bytes) -> Tensor:
    """An IDX file of unsigned bytes as a tensor of the shape in its header.

    Raises:
        CorruptDataError: for anything else.
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise files.CorruptDataError(f"not an IDX file of unsigned bytes: it starts with {content[:4].hex(' ')}")
    header = 4 + 4 * content[3]
    if len(content) < header:
        raise files.CorruptDataError(
            f"an IDX file of {content[3]} dimensions must hold their sizes in {header} bytes, got {len(content)}"
        )
    shape = struct.unpack(f">{content[3]}I", content[4:header])
    values = torch.frombuffer(bytearray(content[header:]), dtype=torch.uint8)
    if values.numel() != torch.Size(shape).numel():
        raise files.CorruptDataError(
            f"an IDX file of shape {tuple(shape)} must hold that many bytes, got {values.numel()}"
        )
    return values.reshape(shape)
