"""Fashion-MNIST from its IDX files."""

from __future__ import annotations

import struct
from pathlib import Path

import torch
from torch import Tensor

from . import files
from .splits import Labelled

DIGESTS = {
    "train-images-idx3-ubyte": "md5:f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "md5:9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "md5:8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "md5:15d484375f8d13e6eb1aabb0c3f46965",
}
HELD_OUT = 5000  # the source has no validation split


def load(folder: Path) -> Labelled:
    """70,000 images of 28 x 28 pixels; the last 5000 training images are held out. Pixels have mean 0 and deviation 1.

    Args:
        folder: holds ``fashion-mnist/train-images-idx3-ubyte.gz`` and its three siblings, compressed or not.
    """
    contents = {name: files.read(folder / "fashion-mnist" / name, ".gz", digest) for name, digest in DIGESTS.items()}
    images = {part: read_idx(contents[f"{part}-images-idx3-ubyte"]) for part in ("train", "t10k")}
    labels = {part: read_idx(contents[f"{part}-labels-idx1-ubyte"]).long() for part in ("train", "t10k")}
    pixels = {part: (x.flatten(1).float() / 255 - 0.286) / 0.353 for part, x in images.items()}
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
