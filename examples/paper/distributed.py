"""How the work of one run is shared among processes."""

from __future__ import annotations

from torch import Tensor, nn


class Ranks:
    """One process, which does all of it."""

    rank = 0
    size = 1

    def wrapped(self, network: nn.Module) -> nn.Module:
        """What is called in training, so that gradients are those of all processes."""
        return network

    def total(self, values: Tensor) -> Tensor:
        """The sum over processes."""
        return values
