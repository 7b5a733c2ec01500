"""WikiText-2, as bytes or as words."""

from __future__ import annotations

import collections
from pathlib import Path

import torch
from torch import Tensor

from . import files
from .files import Published
from .splits import Text

# The texts of wikitext-2-v1 byte for byte; what its authors offered was an archive.
SOURCE = "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2"
FILES = [
    Published(name, f"sha256:{digest}", f"{SOURCE}/{name}")
    for name, digest in (
        ("train.txt", "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f"),
        ("valid.txt", "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8"),
        ("test.txt", "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0"),
    )
]
END = "<eos>"
UNKNOWN = "<unk>"  # in the published text too


def load_bytes(folder: Path, download: bool = False) -> Text:
    """The texts as they are, uint8, vocabulary 256: train, valid (held out) and test.

    Args:
        folder: holds ``wikitext-2/train.txt.xz``, ``valid.txt.xz`` and ``test.txt.xz``, compressed or not.
        download: what is not there.

    Raises:
        MissingDataError, CorruptDataError: as of :func:`files.read`.
    """
    train, held_out, test = (
        torch.frombuffer(bytearray(part), dtype=torch.uint8) for part in _contents(folder, download)
    )
    return Text(train, held_out, test, 256)


def load_words(folder: Path, vocabulary: int | None = None, download: bool = False) -> Text:
    """The texts as numbers of words, int32: train, valid (held out) and test.

    Every line ends with ``<eos>``. Words are numbered by how often the training text has them, the most frequent
    first, after ``<unk>``, which is number 0.

    Args:
        folder: as for :func:`load_bytes`.
        vocabulary: the most frequent words of the training text that are kept, with ``<unk>`` for all others.
            Default: all 33,278.
        download: what is not there.

    Raises:
        ValueError: for a vocabulary of fewer than 2, or of more words than there are.
        MissingDataError, CorruptDataError: as of :func:`files.read`.
    """
    train, held_out, test = (words(part.decode()) for part in _contents(folder, download))
    numbers = number(train, vocabulary)
    return Text(*(_numbered(part, numbers) for part in (train, held_out, test)), vocabulary=len(numbers))


def words(text: str) -> list[str]:
    """The words of a text, with ``<eos>`` at the end of every line."""
    return [word for line in text.removesuffix("\n").split("\n") for word in (*line.split(), END)]


def number(train: list[str], vocabulary: int | None = None) -> dict[str, int]:
    """Numbers for the words of a text: ``<unk>`` is 0, then the most frequent first, words as frequent by spelling."""
    counts = collections.Counter(train)
    counts.pop(UNKNOWN, None)
    most = len(counts) + 1
    if vocabulary is None:
        vocabulary = most
    if not 2 <= vocabulary <= most:
        raise ValueError(f"vocabulary must be from 2 to {most}, the words of the training text, got {vocabulary}")
    kept = sorted(counts, key=lambda word: (-counts[word], word))[: vocabulary - 1]
    return {word: index for index, word in enumerate([UNKNOWN, *kept])}


def _numbered(text: list[str], numbers: dict[str, int]) -> Tensor:
    return torch.tensor([numbers.get(word, 0) for word in text], dtype=torch.int32)


def _contents(folder: Path, download: bool) -> list[bytes]:
    return [files.read(folder / "wikitext-2", file, download) for file in FILES]
