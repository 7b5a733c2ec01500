"""What is compared with what, on which systems."""

from __future__ import annotations

from dataclasses import dataclass

from examples.paper.arm import Arm
from examples.paper.systems import SYSTEMS


@dataclass(frozen=True)
class Experiment:
    """A set of arms.

    Attributes:
        systems: by name; what runs where none is asked for.
        seeds: from 0 on; as many.
    """

    name: str
    title: str
    arms: tuple[Arm, ...]
    systems: tuple[str, ...]
    seeds: int = 5

    def __post_init__(self) -> None:
        unknown = set(self.systems) - set(SYSTEMS)
        assert not unknown, f"{self.name}: unknown systems {unknown}"


MLPS = ("adult", "fashion-mnist")
