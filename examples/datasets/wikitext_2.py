"""WikiText-2, as bytes or as words."""

from __future__ import annotations

import collections
from pathlib import Path

import torch
from torch import Tensor

from . import files
from .splits import Text

DIGESTS = {
    "train.txt": "sha256:9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f",
    "valid.txt": "sha256:f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8",
    "test.txt": "sha256:d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0",
}
END = "<eos>"
UNKNOWN = "<unk>"  # in the published text too


def load_bytes(folder: Path) -> Text:
    """The texts as they are, uint8, vocabulary 256: train, valid (held out) and test.

    Args:
        folder: holds ``wikitext-2/train.txt.xz``, ``valid.txt.xz`` and ``test.txt.xz``, compressed or not.
    """
    train, held_out, test = (torch.frombuffer(bytearray(part), dtype=torch.uint8) for part in _contents(folder))
    return Text(train, held_out, test, 256)


def load_words(folder: Path, vocabulary: int | None = None) -> Text:
    """The texts as numbers of words, int32: train, valid (held out) and test.

    Every line ends with ``<eos>``. Words are numbered by how often the training text has them, the most frequent
    first, after ``<unk>``, which is number 0.

    Args:
        folder: as for :func:`load_bytes`.
        vocabulary: the most frequent words of the training text that are kept, with ``<unk>`` for all others.
            Default: all 33,278.
    """
    train, held_out, test = (words(part.decode()) for part in _contents(folder))
    numbers = number(train, vocabulary)
    return Text(*(_numbered(part, numbers) for part in (train, held_out, test)), vocabulary=len(numbers))


def words(text: str) -> list[str]:
    """The words of a text, with ``<eos>`` at the end of every line."""
    return [word for line in text.splitlines() for word in (*line.split(), END)]


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


def _contents(folder: Path) -> list[bytes]:
    return [files.read(folder / "wikitext-2" / name, ".xz", digest) for name, digest in DIGESTS.items()]
