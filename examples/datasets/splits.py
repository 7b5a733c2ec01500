"""What a reader returns.

`train` is learned from, `held_out` decides (which checkpoint, which correction), `test` is reported.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

Split = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Labelled:
    """Examples and their labels, (x, y) for each part.

    x is float32 of shape (N, features) where the reader standardizes, else uint8 of shape (N, 3, height, width) as
    stored; y is int64 of shape (N,).
    """

    train: Split
    held_out: Split
    test: Split


@dataclass(frozen=True)
class Text:
    """Tokens in the order of the text, shape (N,): uint8 for bytes, int32 for words, each below `vocabulary`."""

    train: Tensor
    held_out: Tensor
    test: Tensor
    vocabulary: int
