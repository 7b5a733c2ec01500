"""When hardening starts, by when it is done, and when it waits: rules on plain numbers, without a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ._checks import check_choice, check_finite, check_int, check_positive


@dataclass(frozen=True)
class Settled:
    """Hardening starts when λ and the validation metric have settled, for `start` of :class:`HardnessScheduler`.

    They have once `patience` reports in a row found every λ and the metric near a reference. The reference is a report;
    the first that is not near it takes its place. So a slow drift is seen as well as a jump.

    Args:
        patience: number of reports in a row, at least 1. Default 3.
        hardness_tolerance: how far a λ may be from the reference's, relative to it; finite and positive. Default 0.02.
        metric_tolerance: the same for the metric, relative to the larger of the two. Default 0.01.
        latest: where hardening starts in any case, as `start` says it: the fraction of the run as a float, or a step as
            an int. Default 0.5.

    All defaults are ours; the paper starts at a fixed epoch.

    Raises:
        ValueError, TypeError: naming the argument.
    """

    patience: int = 3
    hardness_tolerance: float = 0.02
    metric_tolerance: float = 0.01
    latest: float | int = 0.5

    def __post_init__(self) -> None:
        check_int("patience", self.patience, 1)
        check_positive("hardness_tolerance", self.hardness_tolerance)
        check_positive("metric_tolerance", self.metric_tolerance)
        check_finite("latest", self.latest)


@dataclass(frozen=True)
class Remaining:
    """Hardening is done after this fraction of the steps that remain when it starts, for `end` of
    :class:`HardnessScheduler`: what to say where the start is not known beforehand.

    Args:
        fraction: in (0, 1].

    Raises:
        ValueError, TypeError: otherwise.
    """

    fraction: float

    def __post_init__(self) -> None:
        check_finite("fraction", self.fraction)
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction must satisfy 0 < fraction <= 1, got {self.fraction}")


@dataclass(frozen=True)
class AllowedLoss:
    """λ waits while the loss is too high, for `rate` of :class:`HardnessScheduler`.

    Hardening takes a share ``1 - waiting`` of its steps, in which λ follows the schedule, and may spend the rest
    waiting at the λ it has, to let training make good what hardening has cost. It waits after every reported loss above
    ``reference loss + allowed`` until one is not, and until a first one is reported. It is done by the end in any case:
    once the steps that are left are needed, λ goes on whatever the loss, which is warned of and counted
    (:attr:`HardnessScheduler.forced_steps`). Where nothing waits, λ is at its target early.

    Args:
        allowed: what hardening may cost, in the loss's own unit; finite and positive.
        waiting: the share of the steps of hardening that may be spent waiting, in (0, 1). Default 0.5 (ours).
        reference: ``"lowest"``: the lowest loss from the last report before the first of these steps on, so that λ goes
            on only within `allowed` of the best. ``"last"``: the last loss with which λ went on, so that each report
            may be `allowed` above the one before, and costs may add up. Default ``"lowest"`` (ours).

    Raises:
        ValueError, TypeError: naming the argument.
    """

    allowed: float
    waiting: float = 0.5
    reference: str = "lowest"

    def __post_init__(self) -> None:
        check_positive("allowed", self.allowed)
        check_finite("waiting", self.waiting)
        if not 0 < self.waiting < 1:
            raise ValueError(f"waiting must satisfy 0 < waiting < 1, got {self.waiting}")
        check_choice("reference", self.reference, ("lowest", "last"))


@dataclass(frozen=True)
class Settling:
    """What :class:`Settled` has seen: the reference, and how many reports in a row were near it."""

    streak: int = 0
    metric: float | None = None
    hardness: Mapping[str, list[float]] = field(default_factory=dict)


def settled_further(rule: Settled, seen: Settling, metric: float, hardness: Mapping[str, list[float]]) -> Settling:
    """After one more report."""
    if seen.metric is None:
        return Settling(0, metric, hardness)
    near = abs(metric - seen.metric) <= rule.metric_tolerance * max(abs(metric), abs(seen.metric)) and all(
        abs(now - then) <= rule.hardness_tolerance * then
        for name, values in hardness.items()
        for now, then in zip(values, seen.hardness[name], strict=True)
    )
    return replace(seen, streak=seen.streak + 1) if near else Settling(0, metric, hardness)


@dataclass(frozen=True)
class Pace:
    """Where :class:`AllowedLoss` stands: steps that λ went, the reference, whether it waits, steps it was forced to."""

    gone: int = 0
    reference: float | None = None
    waits: bool = True
    forced: int = 0


def paced_by_loss(rule: AllowedLoss, pace: Pace, loss: float) -> Pace:
    """After one more report."""
    if pace.reference is None or pace.gone == 0:  # nothing that λ has done
        return replace(pace, reference=loss, waits=False)
    reference = min(pace.reference, loss) if rule.reference == "lowest" else pace.reference
    waits = loss > reference + rule.allowed
    if rule.reference == "last" and not waits:
        reference = loss
    return replace(pace, reference=reference, waits=waits)


def paced_by_step(pace: Pace, *, needed: int, left: int) -> Pace:
    """After one more step, where λ goes `needed` in all and `left` are left, this one included."""
    must = needed - pace.gone >= left
    if pace.gone >= needed or (pace.waits and not must):
        return pace
    return replace(pace, gone=pace.gone + 1, forced=pace.forced + pace.waits)
