"""What a :class:`lambda_gelu.Substitution` is asked for: refused before anything is changed, by the argument's name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from . import _C
from ._checks import check_choice, check_int, check_positive
from .modules import LambdaGELU
from .pacing import Settled
from .recovery import Distillation
from .sites import replaceable_sites, reshard, unwrapped
from .substitution import CORRECTIONS, check_max_loss, refuse_substituted


def changeable_sites(model: nn.Module) -> dict[str, LambdaGELU]:
    """By name; raises ValueError for a model in which they cannot become ReLU in the middle of a training."""
    refuse_substituted(model)
    places = replaceable_sites(
        model, "nn.ReLU()", "the swap comes in the middle of the training, and the wrapper would not see it"
    )
    return {name: slots[0].module for name, slots in places.items()}


def optimizers_of(optimizer: Any, model: nn.Module) -> list[Any]:
    """None, one or several as a list; raises ValueError for one of another model."""
    if optimizer is None:
        return []
    optimizers = list(optimizer) if isinstance(optimizer, Iterable) else [optimizer]
    wrong = [type(each).__name__ for each in optimizers if not hasattr(each, "param_groups")]
    if wrong:
        raise TypeError(f"optimizer must be an optimizer, several, or None, got {wrong[0]}")
    reshard(unwrapped(model))
    parameters = set(model.parameters())
    for each in optimizers:
        if not any(parameter in parameters for group in each.param_groups for parameter in group["params"]):
            raise ValueError(f"optimizer has no parameter of {type(model).__name__}: it was made for another model")
    return optimizers


def steps_of(name: str, value: float | int, total_steps: int, *, least: int) -> int:
    """Of a fraction of the training, or a number of steps."""
    _check_fraction_or_int(name, value, "a number of steps")
    if isinstance(value, float):
        if not 0 <= value < 1 or (value == 0 and least > 0):
            raise ValueError(f"{name} as a fraction must be from 0 to below 1, got {value}")
        value = _C.HardeningWindow(total_steps, 0.0, value).last_step if value > 0 else 0
    if not least <= value < total_steps:
        raise ValueError(f"{name} must be from {least} to {total_steps - 1} steps, got {value}")
    return value


def latest_onset(start: float | int | Settled, total_steps: int) -> int:
    """The step at which hardening begins at the latest."""
    name, value = ("latest", start.latest) if isinstance(start, Settled) else ("start", start)
    _check_fraction_or_int(name, value, "a step")
    if isinstance(value, float):
        return _C.HardeningWindow(total_steps, value, 1.0).first_step
    if not 0 <= value < total_steps:
        raise ValueError(f"{name} as a step must be from 0 to {total_steps - 1}, got {value}")
    return value


def check_counts(*, total_steps: int, every: int) -> None:
    check_int("total_steps", total_steps, 1)
    check_int("every", every, 1)


def check_targets(sites: Mapping[str, LambdaGELU], *, tolerance_db: float, cap: float, per: str, harden: float) -> None:
    for name, value in (("tolerance_db", tolerance_db), ("cap", cap), ("harden", harden)):
        check_positive(name, value)
    if harden > 1:
        raise ValueError(f"harden must be above 0 and at most 1, got {harden}")
    check_choice("per", per, ("layer", "channel"))
    single = [name for name, site in sites.items() if site.num_parameters == 1]
    if per == "channel" and single:
        raise ValueError(f"per='channel' needs λ per channel at every site, and there is one λ at {', '.join(single)}")


def check_swap(*, correction: str, max_loss: float | None) -> None:
    check_choice("correction", correction, CORRECTIONS)
    check_max_loss(max_loss)


def check_calibration(calibration: Any, *, onset: int, correction: str) -> None:
    """Raises where something needs calibration data of its own, and there are none."""
    if correction != "none" and calibration is None:
        raise ValueError("correction='bias' needs calibration, which runs calibration data through the model")
    if onset == 0 and calibration is None:
        raise ValueError("start leaves no step to observe before hardening: give calibration")


def check_callables(**functions: Any) -> None:
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise TypeError(f"{name} must be a function, got {type(function).__name__}")


def check_recovery(steps: int, distillation: Distillation | None, activation_l1: float | None) -> None:
    if distillation is not None and not isinstance(distillation, Distillation):
        raise TypeError(f"distillation must be a Distillation, got {type(distillation).__name__}")
    if activation_l1 is not None:
        check_positive("activation_l1", activation_l1)
    if steps == 0 and (distillation is not None or activation_l1 is not None):
        raise ValueError("distillation and activation_l1 need a recovery, but recover is 0")


def check_metric(
    *, deciding: Mapping[str, bool], comparing: Mapping[str, bool], evaluate: Any, higher_is_better: bool | None
) -> None:
    """Raises where something is to be decided or compared by a metric, and that or its direction is not given.

    Args:
        deciding: the options that call `evaluate`, and whether each is asked for.
        comparing: the options that compare scores that are given later.
    """
    if higher_is_better is not None and not isinstance(higher_is_better, bool):
        raise TypeError(f"higher_is_better must be a bool or None, got {type(higher_is_better).__name__}")
    decides = [name for name, asked in deciding.items() if asked]
    if decides and evaluate is None:
        raise ValueError(f"{' and '.join(decides)} need evaluate: the metric decides")
    compares = decides + [name for name, asked in comparing.items() if asked]
    if compares and higher_is_better is None:
        raise ValueError(f"higher_is_better must be given: {' and '.join(compares)} compare scores")


def _check_fraction_or_int(name: str, value: Any, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a fraction (float) or {what} (int), got {type(value).__name__}")
