"""Parameter groups for λ."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

from torch import Tensor, nn

from .hardening import HardnessScheduler
from .sites import find_sites, warn_of_separate_hardness

__all__ = ["HardnessScheduler", "param_groups"]


def param_groups(
    model: nn.Module,
    *,
    lr: float,
    lr_multiplier: float = 10.0,
    weight_decay: float = 0.0,
    groups: Iterable[Mapping[str, Any]] | None = None,
    **defaults: Any,
) -> list[dict[str, Any]]:
    """Parameter groups for an optimizer, with λ in a group of its own.

    λ gets the learning rate ``lr * lr_multiplier`` and no weight decay (arXiv 2603.21991: s has its own learning rate
    α·η and no weight decay). A learning-rate schedule that scales each group's own rate keeps the multiplier; one that
    sets the rate itself, as OneCycleLR does with a scalar ``max_lr``, erases it: give that a list, one per group.

    Args:
        model: the whole model, with at least one :class:`LambdaGELU`.
        lr: η, the learning rate of everything else.
        lr_multiplier: α. Default 10 (ours). Neither it nor τ transfers between optimizers: one step of SGD moves λ in
            proportion to α, η and λ's gradient, one step of Adam in proportion to α and η. With SGD, whose steps are as
            large as λ's gradient and grow with 1/τ², α = 10 can drive λ to 1 quickly, where s learns no more: watch λ,
            and lower α if it falls.
        weight_decay: of everything else. Default 0.
        groups: your own groups, as timm, Hugging Face and others build them: mappings with ``"params"`` (a tensor or
            ordered iterable of tensors or of (name, tensor) pairs) and options, which win over `lr` and `weight_decay`.
            λ is taken out of them ("ndim <= 1 gets no decay" catches it) and empty groups are dropped; your lists are
            not changed. Parameters that none of them lists stay out. Default None: one group of all other parameters.
        **defaults: further options of every group that does not set them, the one of λ included.

    Returns:
        list of dict: your groups, then ``{"params": [...], "lr": lr * lr_multiplier, "weight_decay": 0.0, "name":
        "hardness"}``. Every parameter is in exactly one of them.

    Raises:
        ValueError: for a model without a site, a parameter listed twice, a group without ``"params"``, or an `lr` or
            `lr_multiplier` that is negative or not finite.
        TypeError: for one that is no number, and for parameters in a set.

    Example::

        >>> optimizer = torch.optim.AdamW(lambda_gelu.param_groups(model, lr=1e-3, weight_decay=0.05))
    """
    for name, value in (("lr", lr), ("lr_multiplier", lr_multiplier), ("weight_decay", weight_decay)):
        if not isinstance(value, (Real, Tensor)):  # optimizers take a tensor, which may change under a compiled step
            raise TypeError(f"{name} must be a float, got {type(value).__name__}")
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be finite and not negative, got {value}")
    sites = find_sites(model)
    hardness = list(dict.fromkeys(site.raw_hardness for site in sites.values()))
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    if any(parameter not in names for parameter in hardness):
        raise ValueError(
            "a raw_hardness is no parameter of the model, but computed from another: with FullyShardedDataParallel say "
            "use_orig_params=True, or use fully_shard (FSDP2)"
        )
    warn_of_separate_hardness(model, sites)
    base = {"lr": lr, "weight_decay": weight_decay, **defaults}
    if groups is None:
        groups = [{"params": list(model.parameters())}]
    result: list[dict[str, Any]] = []
    seen: set[Tensor] = set()  # tensors hash by identity
    taken = set(hardness)
    named = False
    for group in groups:
        entries = _entries(group)
        named = named or any(isinstance(entry, tuple) for entry in entries)
        for entry in entries:
            parameter = _parameter(entry)
            if parameter in seen:
                raise ValueError(f"{names.get(parameter, 'a parameter')} is listed twice in groups")
            seen.add(parameter)
        others = [entry for entry in entries if _parameter(entry) not in taken]
        if others:
            result.append({**base, **group, "params": others})
    result.append(
        {
            **defaults,
            "params": [(names[parameter], parameter) for parameter in hardness] if named else hardness,
            "lr": lr * lr_multiplier,
            "weight_decay": 0.0,
            "name": "hardness",
        }
    )
    return result


def _entries(group: Mapping[str, Any]) -> list[Any]:
    if not isinstance(group, Mapping):
        raise TypeError(f"groups must be mappings with 'params', got {type(group).__name__}")
    if "params" not in group:
        raise ValueError(f"a group has no 'params', only {', '.join(map(repr, group))}")
    parameters = group["params"]
    if isinstance(parameters, (set, frozenset)):
        raise TypeError("'params' must be ordered, got a set: its order, and so the optimizer's state, differs by run")
    return [parameters] if isinstance(parameters, Tensor) else list(parameters)


def _parameter(entry: Any) -> Tensor:
    parameter = entry[1] if isinstance(entry, tuple) else entry
    if not isinstance(parameter, Tensor):
        raise TypeError(f"'params' must hold tensors or (name, tensor) pairs, got {type(parameter).__name__}")
    return parameter
