"""Which λ to harden to, from what the sites are given."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from . import _C
from ._checks import check_finite, check_names, check_positive
from .site_costs import SiteWeight, site_weights
from .statistics import Statistics, check_per

__all__ = ["HardnessCapWarning", "SiteWeight", "budget_targets", "site_weights", "suggest_targets"]


class HardnessCapWarning(UserWarning):
    """A tolerance or a budget would take a λ above the cap."""


def suggest_targets(
    statistics: Statistics, tolerance_db: float = 30.0, *, cap: float = 64.0, per: str = "layer"
) -> dict[str, float | list[float]]:
    """The smallest λ at which the swap to ReLU costs each site no more than the tolerance.

    That is the λ whose SER, 10 log10(E[ReLU(x)²] / E[(ReLU(x) − f(x; λ))²]), is `tolerance_db`. Ten dB more take 2.15
    times the λ. To be given to :class:`lambda_gelu.HardnessScheduler` as `target`.

    Args:
        statistics: of :func:`lambda_gelu.observe`, of the activations that the network has when it is swapped.
        tolerance_db: the SER to reach, in dB, finite and positive. Default 30 (ours).
        cap: no target is larger. Default 64 (ours): a site whose activations are tiny or nearly all negative would
            otherwise be taken without bound. One that no activation makes positive is taken there, unless its error
            vanishes at λ = 1 already.
        per: ``"layer"``: one λ for every site; ``"channel"``: one for every channel, each with the tolerance, from
            statistics with ``per="channel"``. A site with one λ takes the first kind only.

    Returns:
        dict: a float for every site, or with ``"channel"`` a list of as many as it has channels. 1 where every λ keeps
            the tolerance.

    Raises:
        ValueError: for another tolerance or cap, naming sites that were never executed or had NaN, and for targets per
            channel from statistics per layer.

    Warns:
        HardnessCapWarning: naming the sites at the cap, with the SER that they have there.
    """
    check_statistics(statistics)
    check_per(per)
    return suggest_targets_by_site(statistics, tolerance_db, cap, dict.fromkeys(statistics, per))


def suggest_targets_by_site(
    statistics: Statistics, tolerance_db: float, cap: float, per: Mapping[str, str]
) -> dict[str, float | list[float]]:
    """As :func:`suggest_targets`, with `per` by site; warns of the line that called the caller of this."""
    check_positive("tolerance_db", tolerance_db)
    check_positive("cap", cap)
    if "channel" in per.values() and statistics.per != "channel":
        raise ValueError('targets per channel need statistics per channel: observe(model, per="channel")')
    statistics.require_complete("targets")
    targets: dict[str, float | list[float]] = {}
    capped = []
    for name, histogram in statistics.items():
        by_channel = per[name] == "channel"
        parts = histogram.channels if by_channel else (histogram,)
        found = [_C.tolerance_target(part._merged, tolerance_db, cap) for part in parts]
        missed = [part.ser_db(cap) for part, (_, is_capped) in zip(parts, found, strict=True) if is_capped]
        if missed:
            channels = f"{len(missed)} of {len(parts)} channels, " if by_channel else ""
            capped.append(f"{name} ({channels}{min(missed):.1f} dB)")
        values = [value for value, _ in found]
        targets[name] = values if by_channel else values[0]
    if capped:
        warnings.warn(
            f"{tolerance_db:g} dB would need a hardness above the cap of {cap:g}, where these sites stay below: "
            f"{', '.join(capped)}",
            HardnessCapWarning,
            stacklevel=3,
        )
    return targets


def budget_targets(
    statistics: Statistics,
    weights: Mapping[str, float | SiteWeight],
    budget: float,
    *,
    floor: float | Mapping[str, float | Tensor] = 1.0,
    cap: float = 64.0,
) -> dict[str, float]:
    """About the least hardening with which the swap of all sites together costs no more than a budget.

    Takes the cost of a site at λ as its weight times its E[ReLU(x) − f(x; λ)], and gives every site the same share of
    the budget. Where λ is large, so that this falls with λ⁻², no other λ of the same cost have a smaller product; at
    the soft end their product can be some percent larger than need be. A site that stays below its share at its floor
    leaves the rest to the others.

    Args:
        statistics: of :func:`lambda_gelu.observe`, of all the sites.
        weights: for every site, what a unit of its expected gap costs: :func:`site_weights` gives them, or any numbers
            of one unit. Their absolute value counts: where the swap of one site alone lowers the loss, that tells
            nothing about how it does with the others. A site of weight 0 stays at its floor.
        budget: what all may cost, in the unit of weight times gap, that of the loss with :func:`site_weights`; finite
            and positive.
        floor: the least λ of every site, or by name, as the present λ of the sites (of several the smallest counts).
            Default 1.
        cap: no target is larger, unless its floor is. Default 64 (ours).

    Returns:
        dict: λ by site.

    Raises:
        ValueError: for sites that are unknown or missing in `weights` or `floor`, numbers out of range, and naming
            sites that were never executed or had NaN.

    Warns:
        HardnessCapWarning: naming the sites that cost more than their share at the cap, with what is predicted for
            all: the others harden more to make up for it, as far as the cap lets them.
    """
    check_positive("budget", budget)
    check_positive("cap", cap)
    check_statistics(statistics)
    statistics.require_complete("targets")
    names = list(statistics)
    its_weights = [abs(_number("weight", name, w)) for name, w in _for_all("weights", weights, names).items()]
    floors = _for_all("floor", floor if isinstance(floor, Mapping) else dict.fromkeys(names, floor), names)
    lowest = [_lowest(name, value) for name, value in floors.items()]
    found = _C.budget_targets([statistics[name]._merged for name in names], its_weights, budget, lowest, cap)
    over = [name for name, capped in zip(names, found.capped, strict=True) if capped]
    if over:
        kept = found.total <= budget * (1 + 1e-9)  # the rounding of a search
        warnings.warn(
            f"at the cap of {cap:g} these sites cost more than their share: {', '.join(over)}. "
            + ("The others make up for it" if kept else f"The budget of {budget:g} is not kept")
            + f": {found.total:.4g} is predicted",
            HardnessCapWarning,
            stacklevel=2,
        )
    return dict(zip(names, found.hardness, strict=True))


def check_statistics(statistics: Statistics) -> None:
    """Raises TypeError for what :func:`lambda_gelu.observe` does not yield."""
    if not isinstance(statistics, Statistics):
        raise TypeError(f"statistics must be those of lambda_gelu.observe, got {type(statistics).__name__}")


def _for_all(what: str, values: Mapping[str, object], names: Sequence[str]) -> dict[str, object]:
    if not isinstance(values, Mapping):
        raise TypeError(f"{what} must be a mapping by site name, got {type(values).__name__}")
    check_names(what, values, names)
    return {name: values[name] for name in names}


def _number(what: str, name: str, value: object) -> float:
    number: Any = value.weight if isinstance(value, SiteWeight) else value
    check_finite(f"{what} of {name!r}", number)
    return float(number)


def _lowest(name: str, value: object) -> float:
    floor = _number("floor", name, min(value.flatten().tolist()) if isinstance(value, Tensor) else value)
    if floor <= 0:
        raise ValueError(f"floor of {name!r} must be positive, got {floor}")
    return floor
