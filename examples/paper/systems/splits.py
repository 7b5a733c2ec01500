"""Parts of a split, and a text cut into windows."""

from __future__ import annotations

import torch
from torch import Tensor

from ..system import Split


def spread(split: Split, count: int) -> Split:
    """`count` examples at even distances, or all: a part of what is sorted by class holds every class."""
    x, y = split
    if count >= len(y):
        return split
    chosen = torch.arange(count) * len(y) // count
    return x[chosen], y[chosen]


def windows(tokens: Tensor, context: int) -> Split:
    """A text (N,) in windows that touch, and the same one token later: two views (windows, context) of it."""
    count = (len(tokens) - 1) // context
    x, y = (tokens[shift : shift + count * context].view(count, context) for shift in (0, 1))
    return x, y
