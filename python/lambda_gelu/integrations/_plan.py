"""The options of a HardnessScheduler as the callbacks keep them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from ..pacing import AllowedLoss, Remaining, Settled

_RULES = {"start": Settled, "end": Remaining, "rate": AllowedLoss}


def checked_plan(metric: str | None, **options: Any) -> dict[str, Any]:
    """The options, with rules in place of the mappings that :func:`as_json` made of them.

    Raises:
        ValueError: for a rule that follows a metric where none is named.
    """
    plan = dict(options)
    for name, rule in _RULES.items():
        if isinstance(plan[name], Mapping):
            plan[name] = rule(**plan[name])
    if metric is None and (isinstance(plan["start"], Settled) or plan["rate"] is not None):
        raise ValueError("Settled and AllowedLoss follow a metric of the validation: name it, as in metric='eval_loss'")
    if isinstance(plan["target"], Mapping):
        plan["target"] = {name: _numbers(target) for name, target in plan["target"].items()}
    return plan


def as_json(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Without objects of ours."""
    return {name: asdict(value) if is_dataclass(value) else value for name, value in plan.items()}  # type: ignore[arg-type]


def _numbers(target: Any) -> Any:
    return target.tolist() if hasattr(target, "tolist") else target
