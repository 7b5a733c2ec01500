"""What the tables and figures ask of the records."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from examples.paper.records import Record, flat
from examples.paper.system import System

Get = Callable[[Record], "float | None"]
Choice = tuple[str, Get]
"""An arm, and what is taken of its records."""

MODES = ("uniform", "increasing", "decreasing")
RULES = {"best": "best as it stands (the paper's)", "best_as_relu": "best as ReLU", "last": "last epoch"}
SPLITS = ("validation", "test")
STAGES = ("before", "swapped", "corrected", "recovered")


class Runs:
    """The records of finished runs, by system, arm and seed; and those that did not finish.

    Raises:
        ValueError: where they cannot stand beside each other: one is of a part of the data only, or settings differ
            between runs of a system, or of an arm.
    """

    def __init__(self, found: Iterable[Record]) -> None:
        found = list(found)
        _check_settings(found)
        self.unfinished: list[Record] = []
        self._finished: dict[tuple[str, str], dict[int, Record]] = {}
        for record in sorted(found, key=lambda record: (record.system, record.arm, record.seed)):
            if record.is_finished:
                self._finished.setdefault((record.system, record.arm), {})[record.seed] = record
            else:
                self.unfinished.append(record)

    def by_seed(self, system: str, arm: str) -> dict[int, Record]:
        return self._finished.get((system, arm), {})

    def of(self, system: str, arm: str) -> list[Record]:
        """In the order of their seeds."""
        return list(self.by_seed(system, arm).values())

    def arms(self, system: str) -> list[str]:
        return [arm for name, arm in self._finished if name == system]

    def has(self, system: str) -> bool:
        return bool(self.arms(system))

    def all_of(self, system: str) -> list[Record]:
        return [record for arm in self.arms(system) for record in self.of(system, arm)]

    def values(self, system: str, arm: str, get: Get) -> list[float]:
        """Of every seed that has one."""
        return [value for record in self.of(system, arm) if (value := get(record)) is not None]

    def paired(
        self, system: str, first: Choice, second: Choice, difference: Callable[[float, float], float]
    ) -> list[float]:
        """The difference of two choices, each seed with itself."""
        ours, others = (self.by_seed(system, arm) for arm, _ in (first, second))
        pairs = [(first[1](ours[seed]), second[1](others[seed])) for seed in ours if seed in others]
        return [difference(a, b) for a, b in pairs if a is not None and b is not None]

    def learned(self, system: str, mode: str) -> str:
        """The arm that shows what λ a mode learns: where λ is learned to the end, if such runs exist."""
        return f"{mode}-learned" if self.of(system, f"{mode}-learned") else mode


def _check_settings(found: Sequence[Record]) -> None:
    first: dict[tuple[str, ...], Record] = {}
    for record in found:
        settings = flat(record.head["settings"])
        examples = settings["examples"]
        if examples is not None:
            raise ValueError(
                f"{_name(record)}: made of {examples} examples, to see whether it runs: no result, delete it"
            )
        _check_same(record, first.setdefault((record.system, record.arm), record), settings)
        if "+" not in record.arm:  # a sweep, which has settings of its own
            of_system = [key for key in settings if not key.startswith("arm.")]
            _check_same(record, first.setdefault((record.system,), record), of_system)


def _check_same(record: Record, other: Record, keys: Iterable[str]) -> None:
    ours, others = (flat(each.head["settings"]) for each in (record, other))
    differ = [f"{key} = {ours[key]!r} and {others.get(key)!r}" for key in keys if ours[key] != others.get(key)]
    if differ:
        names = f"{_name(record)} and {_name(other)}"
        raise ValueError(f"{names} were made with different settings ({', '.join(differ)}): they cannot be compared")


def _name(record: Record) -> str:
    return f"{record.system}, {record.arm}, seed {record.seed}"


def metric(rule: str, stage: str, split: str) -> Get:
    """The metric of a checkpoint, as it stands (``"before"``) or after a stage of the swap."""

    def get(record: Record) -> float | None:
        point = record.end[rule]
        scores = point if stage == "before" else point.get(stage)
        if scores is None or scores.get(split) is None:
            return None
        return scores[split]["metric"]

    return get


def cost(system: System, before: float, after: float) -> float:
    """What a change costs: in points of accuracy, or in % of the perplexity. Above 0 is worse."""
    return before - after if system.higher_is_better else 100 * (after / before - 1)


def swap_costs(
    runs: Runs, system: System, arm: str, rule: str = "best", *, split: str = "test", stage: str = "swapped"
) -> list[float]:
    """What a checkpoint loses from before the swap to a stage after it, by seed."""
    before, after = metric(rule, "before", split), metric(rule, stage, split)
    return runs.paired(system.name, (arm, before), (arm, after), lambda a, b: cost(system, a, b))


def unit(system: System) -> str:
    return "points" if system.higher_is_better else "%"


def enough(system: System) -> int:
    """How many seeds a claim needs: the perceptrons are cheap."""
    return 5 if system.row in ("Adult", "FMNIST") else 3


# --- λ over a run -----------------------------------------------------------------------------------------------------


def learning_epochs(record: Record) -> list[dict[str, Any]]:
    """The epochs in which λ was learned, epoch 0 (before training) first. Where λ is never hardened: all of them."""
    if not is_hardened(record):
        return record.epochs
    start = record.head["settings"]["arm"]["start"]
    # At the switch itself the phase is called "harden" already, and λ is what has been learned.
    switch = 0 if isinstance(start, str) else start * record.epochs[-1]["step"]
    is_learned = (epoch["phase"] == "learn" or epoch["step"] <= switch for epoch in record.epochs)
    return [epoch for epoch, learned in zip(record.epochs, is_learned, strict=True) if learned]


def is_hardened(record: Record) -> bool:
    return record.head["settings"]["arm"]["hardens"]


def learned_hardness(record: Record) -> list[float]:
    """λ of every site when the learning has ended."""
    return learning_epochs(record)[-1]["hardness"]


def drift(epochs: Sequence[Mapping[str, Any]]) -> float | None:
    """The mean over layers and epochs of |λ(t) − λ(t − 1)|; the paper's measure of how much λ adapts."""
    steps = [step for epoch in epochs if epoch["epoch"] > 0 for step in epoch["drift"]]
    return math.fsum(steps) / len(steps) if steps else None


def ranks(values: Sequence[float]) -> list[float]:
    """From 1; those that are equal share the mean of their ranks. Records hold seven digits: six decide."""
    rounded = [float(f"{value:.6g}") for value in values]
    order = sorted(range(len(values)), key=rounded.__getitem__)
    found = [0.0] * len(values)
    start = 0
    while start < len(order):
        stop = start
        while stop < len(order) and rounded[order[stop]] == rounded[order[start]]:
            stop += 1
        for index in order[start:stop]:
            found[index] = (start + 1 + stop) / 2
        start = stop
    return found


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's: Pearson's of the ranks. None where all values of one are equal: it has no order to compare.

    Raises:
        ValueError: where the two have different lengths.
    """
    if len(a) != len(b):
        raise ValueError(f"both profiles must have as many sites, got {len(a)} and {len(b)}")
    middle = (len(a) + 1) / 2
    x, y = ([rank - middle for rank in ranks(values)] for values in (a, b))
    sizes = math.fsum(v * v for v in x) * math.fsum(v * v for v in y)
    if sizes == 0:
        return None
    return math.fsum(v * w for v, w in zip(x, y, strict=True)) / math.sqrt(sizes)


def rank_correlations(runs: Runs, system: str, first: str, second: str) -> dict[int, list[float]]:
    """Of the profiles of two modes by epoch, each seed with itself; epochs where it is undefined are left out."""
    ours = runs.by_seed(system, runs.learned(system, first))
    others = runs.by_seed(system, runs.learned(system, second))
    found: dict[int, list[float]] = {}
    for seed in ours:
        if seed in others:
            for a, b in zip(ours[seed].epochs, others[seed].epochs, strict=False):
                value = rank_correlation(a["hardness"], b["hardness"])
                if value is not None:
                    found.setdefault(a["epoch"], []).append(value)
    return found
