"""The data: scikit-learn's digits, Fashion-MNIST from its IDX files, WikiText-2 as bytes."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

DATA_DIR_VARIABLE = "LAMBDA_GELU_DATA"

# Of what is inside, uncompressed, so that an unpacked copy serves too.
FASHION_MNIST_MD5 = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
WIKITEXT_2_SHA256 = {
    "train.txt": "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
    "valid.txt": "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
    "test.txt": "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
}
FASHION_MNIST_HELD_OUT = 5000  # the source has no validation split


class MissingDataError(FileNotFoundError):
    """A data set is not where it was looked for, or cannot be read without a package."""


@dataclass(frozen=True)
class Images:
    """Pixels, float32 of shape (N, pixels), and labels, int64 of shape (N,).

    `held_out` decides (which checkpoint, which correction); `test` is what the reports show.
    """

    train: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Text:
    """Bytes, uint8 of shape (N,)."""

    train: Tensor
    held_out: Tensor
    test: Tensor


def data_dir(given: Path | None = None) -> Path:
    """Where the files are: as given, else $LAMBDA_GELU_DATA, else ./data."""
    return given or Path(os.environ.get(DATA_DIR_VARIABLE, "data"))


def digits() -> Images:
    """1797 images of 8 x 8 pixels. As in digits.py every second one is for validation, here for the report.

    There are too few to hold some out, so the training images decide.
    """
    try:
        import sklearn  # noqa: F401, PLC0415 - without it digits.py would end the process
    except ImportError as error:
        raise MissingDataError("the digits are in scikit-learn: pip install 'lambda-gelu[demo]'") from error
    from digits import load_digits, split  # noqa: PLC0415 - examples/python/digits.py

    parts = split(*load_digits())
    train = (parts.train_x, parts.train_y)
    return Images(train, train, (parts.validation_x, parts.validation_y))


def fashion_mnist(folder: Path) -> Images:
    """70,000 images of 28 x 28 pixels; the last 5000 training images are held out. Pixels have mean 0 and deviation 1.

    Args:
        folder: holds ``fashion-mnist/train-images-idx3-ubyte.gz`` and its three siblings, compressed or not.
    """
    contents = {
        name: _verified(folder / "fashion-mnist" / name, ".gz", gzip.decompress, hashlib.md5, digest)
        for name, digest in FASHION_MNIST_MD5.items()
    }
    images = {part: read_idx(contents[f"{part}-images-idx3-ubyte"]) for part in ("train", "t10k")}
    labels = {part: read_idx(contents[f"{part}-labels-idx1-ubyte"]).long() for part in ("train", "t10k")}
    pixels = {part: (x.flatten(1).float() / 255 - 0.286) / 0.353 for part, x in images.items()}
    kept = len(labels["train"]) - FASHION_MNIST_HELD_OUT
    return Images(
        (pixels["train"][:kept], labels["train"][:kept]),
        (pixels["train"][kept:], labels["train"][kept:]),
        (pixels["t10k"], labels["t10k"]),
    )


def wikitext_2(folder: Path) -> Text:
    """WikiText-2 as bytes: train, valid (held out) and test.

    Args:
        folder: holds ``wikitext-2/train.txt.xz``, ``valid.txt.xz`` and ``test.txt.xz``, compressed or not.
    """
    parts = (
        _verified(folder / "wikitext-2" / name, ".xz", lzma.decompress, hashlib.sha256, digest)
        for name, digest in WIKITEXT_2_SHA256.items()
    )
    return Text(*(torch.frombuffer(bytearray(part), dtype=torch.uint8) for part in parts))


def read_idx(content: bytes) -> Tensor:
    """An IDX file of unsigned bytes as a tensor of the shape in its header.

    Raises:
        ValueError: for anything else.
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(f"not an IDX file of unsigned bytes: it starts with {content[:4].hex(' ')}")
    header = 4 + 4 * content[3]
    shape = struct.unpack(f">{content[3]}I", content[4:header])
    values = torch.frombuffer(bytearray(content[header:]), dtype=torch.uint8)
    if values.numel() != torch.Size(shape).numel():
        raise ValueError(f"an IDX file of shape {tuple(shape)} must hold that many bytes, got {values.numel()}")
    return values.reshape(shape)


def _verified(
    path: Path, suffix: str, decompress: Callable[[bytes], bytes], digest: Callable[..., hashlib._Hash], expected: str
) -> bytes:
    compressed = path.with_name(path.name + suffix)
    if compressed.exists():
        content = decompress(compressed.read_bytes())
    elif path.exists():
        content = path.read_bytes()
    else:
        raise MissingDataError(f"{compressed} is missing: say --data-dir or set {DATA_DIR_VARIABLE}")
    found = digest(content).hexdigest()
    if found != expected:
        raise ValueError(f"{path.name} is not the published file: its {digest().name} is {found}, expected {expected}")
    return content
