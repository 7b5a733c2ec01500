"""Parameter groups for λ, and the schedule that hardens it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from . import _C
from .modules import LambdaGELU
from .sites import find_sites, reshard, unwrapped, warn_of_separate_hardness


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


class HardnessScheduler:
    """Learns λ first, then freezes it and raises it to a target (arXiv 2603.21991).

    The steps are the caller's unit, epochs or batches; call :meth:`step` after each. Before step ``ceil(start *
    total_steps)`` λ is learned. From then on every site is frozen and its λ follows the schedule, from the λ it has
    learned, channel by channel, to the target that it reaches at step ``ceil(end * total_steps)`` and keeps. A learned
    λ that is at or above its target is kept: hardening never lowers λ.

    Args:
        model: the whole model, with at least one :class:`LambdaGELU`.
        total_steps: number of steps of the run, at least 1.
        start, end: which part of the run hardens, 0 <= start < end <= 1. Default 0.25 (second-hand reading of the
            paper) and 1. With ``end < 1`` the last steps train at the target.
        target: λ to reach, finite and positive: a float, or one for every site name of :func:`find_sites`. Default
            None: ``relu_gap.target_from_gate_gap(0.1)`` ≈ 7.98 (ε is ours).
        schedule: ``"linear"`` (the paper's), ``"geometric"``, ``"harmonic"`` (linear in 1/λ) or ``"cosine"``.

    Raises:
        ValueError: for anything else; nothing is changed.

    Example::

        >>> scheduler = lambda_gelu.HardnessScheduler(model, total_steps=epochs)
        >>> for epoch in range(epochs):
        ...     train(model)
        ...     scheduler.step()
        >>> lambda_gelu.to_relu_(model)
    """

    def __init__(
        self,
        model: nn.Module,
        total_steps: int,
        *,
        start: float = 0.25,
        target: float | Mapping[str, float] | None = None,
        schedule: str = "linear",
        end: float = 1.0,
    ) -> None:
        if isinstance(total_steps, bool) or not isinstance(total_steps, int):
            raise TypeError(f"total_steps must be an int, got {type(total_steps).__name__}")
        self._sites = find_sites(model)
        self._model = unwrapped(model)
        reshard(self._model)  # what is gathered after an evaluation looks like a λ that is not spread
        warn_of_separate_hardness(model, self._sites)
        _C.HardeningWindow(total_steps, start, end)  # refuses an impossible or empty one
        _C.scheduled_hardness(schedule, [], 1.0, 0.0)  # refuses an unknown name
        self._plan: dict[str, Any] = {
            "total_steps": total_steps,
            "start": float(start),
            "end": float(end),
            "schedule": schedule,
            "targets": _targets(self._sites, target),
        }
        self._step = 0
        self._learned: dict[str, list[float]] = {}  # λ at the switch, per channel
        self._move_to(0, {})

    @property
    def _window(self) -> _C.HardeningWindow:
        """Made anew, since a native object would keep the scheduler from being copied and pickled."""
        return _C.HardeningWindow(self._plan["total_steps"], self._plan["start"], self._plan["end"])

    @property
    def phase(self) -> str:
        """``"learn"``, ``"harden"`` or ``"done"``."""
        return self._window.phase(self._step)

    def step(self) -> None:
        """To be called after every step of the run. Beyond the end λ stays at its target.

        Raises:
            RuntimeError: where the step was one of phase ``"learn"`` but a site is frozen, so that nothing was learned;
                nothing is changed.
        """
        frozen = [name for name, site in self._sites.items() if site.is_frozen]
        if self.phase == "learn" and frozen:
            raise RuntimeError(
                f"step {self._step} is to learn the hardness, but it is frozen at {', '.join(frozen)}; "
                "unfreeze_hardness() first"
            )
        self._move_to(self._step + 1, self._learned)

    def get_last_hardness(self) -> dict[str, Tensor]:
        """The present λ of every site, detached, shape ``(num_parameters,)``."""
        return {name: site.hardness.detach() for name, site in self._sites.items()}

    def state_dict(self) -> dict[str, Any]:
        """Plan, step and the λ from which hardening started, as plain numbers, strings, lists and dicts.

        Its keys are the same at every step, as torch.distributed.checkpoint needs it: no λ is an empty list.
        """
        return {
            **self._plan,
            "targets": dict(self._plan["targets"]),
            "step": self._step,
            "learned_hardness": {name: list(self._learned.get(name, ())) for name in self._sites},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Resumes a run, before or after the model's own state is loaded.

        From the switch on it freezes the sites at the λ of its step. A state of phase ``"learn"`` touches no site: what
        is frozen stays so until the model's state or ``unfreeze_hardness()`` frees it, and :meth:`step` refuses it.

        Raises:
            ValueError: where the state belongs to another plan or model; nothing is changed.
        """
        missing = [key for key in (*self._plan, "step", "learned_hardness") if key not in state_dict]
        if missing:
            raise ValueError(f"state_dict lacks {', '.join(missing)}")
        for key, expected in self._plan.items():
            if state_dict[key] != expected:
                raise ValueError(f"{key} differs: the state has {state_dict[key]!r}, this scheduler {expected!r}")
        step = state_dict["step"]
        learned = {name: list(values) for name, values in state_dict["learned_hardness"].items() if len(values) > 0}
        if not isinstance(step, int) or step < 0:
            raise ValueError(f"step must be a non-negative int, got {step!r}")
        expected_counts = {name: site.num_parameters for name, site in self._sites.items()}
        if self._window.phase(step) == "learn":
            expected_counts = {}
        counts = {name: len(values) for name, values in learned.items()}
        if counts != expected_counts:
            raise ValueError(f"learned_hardness must have {expected_counts} values at step {step}, got {counts}")
        self._move_to(step, learned)

    def _move_to(self, step: int, learned: dict[str, list[float]]) -> None:
        overrides: dict[str, Tensor] = {}
        if self._window.phase(step) != "learn":
            # Everything that can fail comes before the first change.
            if not learned:
                reshard(self._model)
                learned = {name: site.hardness.tolist() for name, site in self._sites.items()}
            for name, site in self._sites.items():
                hardness = self._hardened(name, learned[name], step)
                overrides[name] = site._checked_override(torch.tensor(hardness, dtype=torch.float64, device="cpu"))
        for name, override in overrides.items():
            self._sites[name]._write_override(override, frozen=True)
        self._step, self._learned = step, learned

    def _hardened(self, name: str, learned: list[float], step: int) -> list[float]:
        target = self._plan["targets"][name]
        scheduled = _C.scheduled_hardness(self._plan["schedule"], learned, target, self._window.progress(step))
        return [max(before, after) for before, after in zip(learned, scheduled, strict=True)]


def _targets(sites: Mapping[str, LambdaGELU], target: float | Mapping[str, float] | None) -> dict[str, float]:
    if target is None:
        target = _C.target_from_gate_gap(0.1)
    if isinstance(target, Mapping):
        unknown = [str(name) for name in target if name not in sites]
        missing = [name for name in sites if name not in target]
        if unknown or missing:
            raise ValueError(
                f"target must name every site once: unknown {unknown}, missing {missing}; the sites are {list(sites)}"
            )
        targets = {name: target[name] for name in sites}
    else:
        targets = dict.fromkeys(sites, target)
    for name, value in targets.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"target of {name!r} must be a float, got {type(value).__name__}")
        dtype = sites[name].hardness_override.dtype
        if not torch.finfo(dtype).tiny <= value <= torch.finfo(dtype).max:
            raise ValueError(f"target of {name!r} must be finite and positive in {dtype}, got {value}")
    return {name: float(value) for name, value in targets.items()}
