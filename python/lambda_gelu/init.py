"""The hardness at the start of training, over the depth of a model."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from ._calls import record_calls
from .modules import LambdaGELU
from .sites import find_sites, reshard

_MODES = ("uniform", "increasing", "decreasing")


def init_hardness_(
    model: nn.Module,
    mode: str = "uniform",
    low: float = 1.1,
    high: float = 2.0,
    *,
    example_inputs: Any = None,
) -> dict[str, float]:
    """Sets λ of every :class:`LambdaGELU` of a model, by depth (the three modes of arXiv 2603.21991).

    Args:
        model: a model with at least one site; none of them frozen.
        mode: ``"uniform"``: s = 0, that is λ = 1 + ln 2 ≈ 1.693 at every site, whatever `low` and `high` are;
            ``"increasing"``: linear in depth from `low` at the first site to `high` at the last; ``"decreasing"``: the
            other way round. A single site gets the first value.
        low, high: 1 < low <= high, finite. Default 1.1 and 2.0 (ours: the paper only says "close to 1").
        example_inputs: what the model is called with: a tensor, a tuple of positional or a mapping of keyword
            arguments. With it, depth is the order in which the sites are first executed; without it, the order in
            which they are registered, which is the same for most models.

    Returns:
        dict: λ by site name, in order of depth.

    Raises:
        ValueError: for other modes or ranges, a model without a site, a frozen site, or a site that `example_inputs`
            does not reach; nothing is changed.
    """
    if mode not in _MODES:
        raise ValueError(f"mode must be one of {', '.join(map(repr, _MODES))}, got {mode!r}")
    if not (1 < low <= high < math.inf):
        raise ValueError(f"low and high must be finite with 1 < low <= high, got {low} and {high}")
    sites = find_sites(model)
    frozen = [name for name, site in sites.items() if site.is_frozen]
    if frozen:
        raise ValueError(f"hardness is frozen at {', '.join(frozen)}; unfreeze_hardness() first")
    if example_inputs is not None:
        sites = _in_order_of_execution(model, sites, example_inputs)
    hardness = dict(zip(sites, _profile(mode, low, high, len(sites)), strict=True))
    for name, site in sites.items():
        site._check_learnable(hardness[name])  # before the first one changes
    for name, site in sites.items():
        site.set_hardness(hardness[name])
    return hardness


def _profile(mode: str, low: float, high: float, count: int) -> list[float]:
    if mode == "uniform":
        return [1 + math.log(2)] * count
    first, last = (low, high) if mode == "increasing" else (high, low)
    return [first + (last - first) * index / max(count - 1, 1) for index in range(count)]


def _in_order_of_execution(
    model: nn.Module, sites: dict[str, LambdaGELU], example_inputs: Any
) -> dict[str, LambdaGELU]:
    names: dict[nn.Module, str] = {site: name for name, site in sites.items()}
    calls = record_calls(model, sites.values(), example_inputs)
    reshard(model)
    ordered = {names[call.module]: sites[names[call.module]] for call in calls}
    if len(ordered) < len(sites):
        missed = [name for name in sites if name not in ordered]
        raise ValueError(f"example_inputs do not reach {', '.join(missed)}")
    return ordered
