"""What a reader returns.

`train` is learned from, `held_out` decides (which checkpoint, which correction), `test` is reported.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Split = tuple[Tensor, Tensor]

HELD_OUT = 10  # one in so many training examples, where the source has no validation split


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


def hold_out_(x: Tensor, y: Tensor) -> tuple[Split, Split]:
    """Training and held-out examples: of each class, every tenth is held out. The order stays.

    The training examples are moved together within x, which the caller gives up: a second copy of a large set of
    images may not fit.
    """
    rank = torch.empty_like(y)
    for label in y.unique():
        of_label = y == label
        rank[of_label] = torch.arange(int(of_label.sum()))
    out = rank % HELD_OUT == HELD_OUT - 1
    held_out = (x[out], y[out])
    kept = 0
    for examples, drop in zip(x.split(1000), out.split(1000), strict=True):
        chosen = examples[~drop]  # a copy, to a place that is not behind the one it is from
        x[kept : kept + len(chosen)] = chosen
        kept += len(chosen)
    return (x[:kept], y[~out]), held_out
