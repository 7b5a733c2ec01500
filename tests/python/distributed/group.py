"""Facts about several processes: functions of a Group, each run at the sizes that it asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import distributed
from torch.distributed.device_mesh import DeviceMesh

WORLD_SIZE = 3

Fact = Callable[["Group"], None]
FACTS: dict[tuple[str, int], Fact] = {}
"""(name, size) -> what every rank of a group of that size runs, with assertions."""


@dataclass(frozen=True)
class Group:
    """The first `size` ranks, as a world of their own."""

    size: int
    rank: int
    process_group: distributed.ProcessGroup
    folder: Path  # the same on all ranks, empty at first

    @cached_property
    def mesh(self) -> DeviceMesh:
        return DeviceMesh.from_group(self.process_group, "cpu")

    def part(self, count: int) -> slice:
        """This rank's part of `count` examples."""
        assert count % self.size == 0
        share = count // self.size
        return slice(self.rank * share, (self.rank + 1) * share)


def fact(*sizes: int) -> Callable[[Fact], Fact]:
    """Registers a function under its name, for groups of these sizes."""

    def register(function: Fact) -> Fact:
        FACTS.update({(function.__name__, size): function for size in sizes})
        return function

    return register
