"""The schedule that hardens: λ is learned, then frozen and raised to its target."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from numbers import Real
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from . import _C
from ._checks import check_int, check_names, checked_number
from .modules import LambdaGELU
from .pacing import AllowedLoss, Pace, Remaining, Settled, Settling, paced_by_loss, paced_by_step, settled_further
from .sites import find_sites, reshard, unwrapped, warn_of_separate_hardness
from .statistics import Statistics, check_per
from .targets import check_statistics, suggest_targets_by_site

Target: TypeAlias = float | Sequence[float] | Tensor  # of a site: one λ, or one per channel


@dataclass(frozen=True)
class _State:
    """What a run has decided so far. Never changed in place, so that a call that fails leaves everything as it was."""

    targets: dict[str, float | list[float]]
    onset: int | None  # None: not decided yet
    step: int = 0
    learned: dict[str, list[float]] = field(default_factory=dict)  # λ at the onset, per channel; empty before
    # Where targets have changed since: the tick at which they did, and the λ from there, per channel.
    path: dict[str, tuple[int, list[float]]] = field(default_factory=dict)
    settling: Settling = field(default_factory=Settling)
    pace: Pace = field(default_factory=Pace)


class HardnessScheduler:
    """Learns λ first, then freezes it and raises it to a target (arXiv 2603.21991).

    The steps are the caller's unit, epochs or batches; call :meth:`step` after each. Before the onset λ is learned.
    From then on every site is frozen and its λ follows the schedule, from the λ it has learned, channel by channel, to
    the target that it reaches at the end and keeps. A learned λ that is at or above its target is kept: hardening never
    lowers λ.

    What the paper does is the default: onset and end at fixed fractions of the run, linear in λ, one target for all.
    Everything else is ours: a start once λ and the metric have settled (:class:`Settled`), waiting while the loss is
    too high (:class:`AllowedLoss`), targets by site and channel, and targets that follow the statistics
    (:meth:`set_targets`, :meth:`follow`).

    In several processes each rank has its own scheduler. They do the same where they are told the same: give
    :meth:`report` a metric that is the same on every rank, for example after an all-reduce.

    Args:
        model: the whole model, with at least one :class:`LambdaGELU`.
        total_steps: number of steps of the run, at least 1.
        start: the onset: a float, the fraction of the run in [0, 1), with ``ceil(start * total_steps)`` as the step; an
            int, the step itself; or :class:`Settled`, with reports of a metric. Default 0.25 (second-hand reading of
            the paper).
        target: λ to reach, finite and positive: a float, or for every site name of :func:`find_sites` a float or a
            sequence of one per channel. Default None: ``relu_gap.target_from_gate_gap(0.1)`` ≈ 7.98 (ε is ours).
        schedule: ``"linear"`` (the paper's), ``"geometric"``, ``"harmonic"`` (linear in 1/λ) or ``"cosine"``.
        end: the step at which λ is at its target: the fraction of the run in (0, 1], after the onset; or
            :class:`Remaining`, the fraction of what remains at the onset. Default 1. With an earlier one the last steps
            train at the target.
        rate: how fast λ goes. Default None: evenly in time. :class:`AllowedLoss`: it waits while the loss that is
            reported is too high.

    Raises:
        ValueError, TypeError: for anything else, naming the argument; nothing is changed.

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
        start: float | int | Settled = 0.25,
        target: float | Mapping[str, Target] | None = None,
        schedule: str = "linear",
        end: float | Remaining = 1.0,
        rate: AllowedLoss | None = None,
    ) -> None:
        check_int("total_steps", total_steps)
        if rate is not None and not isinstance(rate, AllowedLoss):
            raise TypeError(f"rate must be an AllowedLoss or None, got {type(rate).__name__}")
        self._sites = find_sites(model)
        self._model = unwrapped(model)
        reshard(self._model)  # what is gathered after an evaluation looks like a λ that is not spread
        warn_of_separate_hardness(model, self._sites)
        if not isinstance(schedule, str):
            raise TypeError(f"schedule must be a str, got {type(schedule).__name__}")
        self._total_steps, self._schedule, self._rate = total_steps, schedule, rate
        self._settled = start if isinstance(start, Settled) else None
        name, latest = ("latest", start.latest) if isinstance(start, Settled) else ("start", start)
        self._latest = _step_of(name, latest, end, total_steps)  # of a fixed start: the onset itself
        self._end = end if isinstance(end, Remaining) else float(end)
        _C.scheduled_hardness(schedule, [], 1.0, 0.0)  # refuses an unknown name
        targets = resolved_targets(self._sites, _C.target_from_gate_gap(0.1) if target is None else target)
        self._plan: dict[str, Any] = {
            "total_steps": total_steps,
            "start": asdict(start) if isinstance(start, Settled) else start if isinstance(start, int) else float(start),
            "end": asdict(self._end) if isinstance(self._end, Remaining) else self._end,
            "schedule": schedule,
            "targets": targets,
            "rate": None if rate is None else asdict(rate),
        }
        self._state = _State(targets=targets, onset=None if self._settled else self._latest)
        self._commit(self._state)

    @property
    def phase(self) -> str:
        """``"learn"``, ``"harden"`` or ``"done"``."""
        return self._phase(self._state)

    @property
    def onset_step(self) -> int | None:
        """The step from which on λ is frozen; None while it has not been decided."""
        return self._state.onset

    @property
    def end_step(self) -> int | None:
        """The step from which on every λ is at its target; None while it has not been decided."""
        return None if self._state.onset is None else self._last_step(self._state.onset)

    @property
    def targets(self) -> dict[str, float | list[float]]:
        """The present targets by site: a float, or a list of one per channel."""
        return {name: _copied(target) for name, target in self._state.targets.items()}

    @property
    def forced_steps(self) -> int:
        """How many steps λ went on although the loss was too high: see :class:`AllowedLoss`."""
        return self._state.pace.forced

    def step(self, metric: float | Tensor | None = None) -> None:
        """To be called after every step of the run. Beyond the end λ stays at its target.

        Args:
            metric: what this step was found to be worth, if it was: as :meth:`report` right after it.

        Raises:
            RuntimeError: where the step was one of phase ``"learn"`` but a site is frozen, so that nothing was learned.
            ValueError, TypeError: as :meth:`report`. In all cases nothing is changed.
        """
        value = None if metric is None else _checked_metric(metric)
        state = self._state
        if self._phase(state) == "learn":
            self._refuse_frozen()
        forced = state.pace.forced
        state = self._stepped(state)
        is_first_forced = forced == 0 < state.pace.forced
        self._commit(state if value is None else self._reported(state, value))
        if is_first_forced:
            reference = state.pace.reference
            why = "no loss has been reported" if reference is None else f"too far above {reference:g}"
            warnings.warn(
                f"the loss does not let λ go on: {why}. From step {state.step} on all steps are needed to reach the "
                f"targets by step {self.end_step}: λ goes on whatever the loss",
                stacklevel=2,
            )

    def report(self, metric: float | Tensor) -> None:
        """Tells the validation metric of the present step, for :class:`Settled` and :class:`AllowedLoss`.

        With :class:`Settled` hardening may start here and now, which freezes every site at the λ it has. A schedule
        with neither takes no notice of it.

        Args:
            metric: a float or a tensor of one element, finite; the same on every rank. For :class:`AllowedLoss` a loss:
                lower is better. For :class:`Settled` either way is well.

        Raises:
            ValueError: for a metric or a learned λ that is not finite.
            TypeError: for what is no number.
            RuntimeError: as :meth:`step`. In all cases nothing is changed.
        """
        value = _checked_metric(metric)
        if self._settled is not None or self._rate is not None:
            self._commit(self._reported(self._state, value))

    def set_targets(self, target: float | Mapping[str, Target]) -> None:
        """Replaces the targets, at any time of the run.

        A site whose target changes goes on from its present λ and reaches the new one at the end, along what remains of
        the schedule. Where nothing remains it is there at once. λ never falls: a target below the present λ keeps it.

        Args:
            target: as at construction.

        Raises:
            ValueError, TypeError: as at construction; nothing is changed.
        """
        state = self._state
        targets = resolved_targets(self._sites, target)
        path = dict(state.path)
        if self._phase(state) != "learn":
            tick, _ = self._ticks(state)
            changed = [name for name in self._sites if targets[name] != state.targets[name]]
            path.update({name: (tick, self._hardened(state, name)) for name in changed})
        self._commit(replace(state, targets=targets, path=path))

    def follow(
        self, statistics: Statistics, tolerance_db: float = 30.0, *, cap: float = 64.0, per: str = "layer"
    ) -> dict[str, float | list[float]]:
        """Takes :func:`lambda_gelu.suggest_targets` as the targets from now on, as :meth:`set_targets` does.

        Called again with new statistics while λ rises, the targets follow the pre-activations, which training and
        hardening move. In several processes reduce the statistics first, so that every rank takes the same.

        Args:
            statistics: of :func:`lambda_gelu.observe`, of this model.
            tolerance_db, cap: see :func:`lambda_gelu.suggest_targets`. Default 30 and 64 (ours).
            per: ``"layer"``: one target for every site; ``"channel"``: one for every λ, from statistics per channel; a
                site with a single λ takes that of the layer. Default ``"layer"``.

        Returns:
            dict: the targets by site.

        Raises:
            ValueError, TypeError: as :func:`lambda_gelu.suggest_targets`, and for statistics of another model, naming
                the sites; nothing is changed.

        Warns:
            HardnessCapWarning: naming the sites at the cap.
        """
        check_statistics(statistics)
        check_per(per)
        statistics.check_model(self._model)
        kinds = {name: per if site.num_parameters > 1 else "layer" for name, site in self._sites.items()}
        self.set_targets(suggest_targets_by_site(statistics, tolerance_db, cap, kinds))
        return self.targets

    def get_last_hardness(self) -> dict[str, Tensor]:
        """The present λ of every site, detached, shape ``(num_parameters,)``."""
        return {name: site.hardness.detach() for name, site in self._sites.items()}

    # --- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The plan, and all that the run has decided, as plain numbers, strings, lists and dicts.

        Its keys are the same at every step, as torch.distributed.checkpoint needs it: no λ is an empty list.
        """
        state = self._state
        return {
            **self._plan,
            "targets": _copied(self._plan["targets"]),
            "step": state.step,
            "learned_hardness": self._by_site(state.learned),
            "onset": state.onset,
            "present_targets": self.targets,
            "path_tick": {name: state.path[name][0] if name in state.path else 0 for name in self._sites},
            "path_hardness": self._by_site({name: hardness for name, (_, hardness) in state.path.items()}),
            "settling": {**asdict(state.settling), "hardness": self._by_site(state.settling.hardness)},
            "pace": asdict(state.pace),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Resumes a run, before or after the model's own state is loaded.

        From the switch on it freezes the sites at the λ of its step. A state of phase ``"learn"`` touches no site: what
        is frozen stays so until the model's state or ``unfreeze_hardness()`` frees it, and :meth:`step` refuses it.

        Raises:
            ValueError: where the state belongs to another plan or model; nothing is changed.
            TypeError: for what is no mapping.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be a mapping, got {type(state_dict).__name__}")
        given = {"rate": None, **state_dict}  # rate: versions without it had none
        missing = [key for key in (*self._plan, "step", "learned_hardness") if key not in given]
        if missing:
            raise ValueError(f"state_dict lacks {', '.join(missing)}")
        for key, expected in self._plan.items():
            if given[key] != expected:
                raise ValueError(f"{key} differs: the state has {given[key]!r}, this scheduler {expected!r}")
        try:
            self._commit(self._loaded(given))
        except (KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"the state is not one that state_dict() has made: {error!r}") from error

    def _loaded(self, given: Mapping[str, Any]) -> _State:
        step = given["step"]
        if not _is_count(step):
            raise ValueError(f"step must be a non-negative int, got {step!r}")
        # A key that earlier versions did not have: it has not happened.
        settling = dict(given.get("settling", {}))
        settling["hardness"] = _filled(settling.get("hardness", {}))
        state = _State(
            targets=resolved_targets(self._sites, given.get("present_targets", given["targets"])),
            onset=given.get("onset", None if self._settled else self._latest),
            step=step,
            learned=_filled(given["learned_hardness"]),
            settling=Settling(**settling),
            pace=Pace(**given.get("pace", {})),
        )
        for key, value in (("settling.metric", state.settling.metric), ("pace.reference", state.pace.reference)):
            if value is not None and not (isinstance(value, Real) and math.isfinite(value)):
                raise ValueError(f"{key} must be None or a finite number, got {value!r}")
        self._check_onset(state)
        self._check_pace(state)
        is_learning = self._phase(state) == "learn"
        referred = () if state.settling.metric is None else self._sites
        moved = _filled(given.get("path_hardness", {}))
        self._check_counts("learned_hardness", state.learned, () if is_learning else self._sites, step)
        self._check_counts("settling.hardness", state.settling.hardness, referred, step)
        self._check_counts("path_hardness", moved, () if is_learning else self._sites.keys() & moved.keys(), step)
        tick = 0 if is_learning else self._ticks(state)[0]
        path = {name: (given["path_tick"][name], hardness) for name, hardness in moved.items()}
        for name, (begin, _) in path.items():
            if not (_is_count(begin) and begin <= tick):
                raise ValueError(f"path_tick of {name!r} must be an int from 0 to {tick}, got {begin!r}")
        return replace(state, path=path)

    def _check_onset(self, state: _State) -> None:
        if self._settled is None:
            valid, words = state.onset == self._latest, f"{self._latest}"
        elif state.onset is None:
            valid, words = state.step < self._latest, f"known at step {state.step}"
        else:
            highest = min(state.step, self._latest)
            valid, words = _is_count(state.onset) and state.onset <= highest, f"None or from 0 to {highest}"
        if not valid:
            raise ValueError(f"onset must be {words}, got {state.onset!r}")

    def _check_pace(self, state: _State) -> None:
        if self._rate is None:
            return
        if not (_is_count(state.pace.gone) and _is_count(state.pace.forced) and isinstance(state.pace.waits, bool)):
            raise ValueError(f"pace must count steps, got {state.pace}")
        least, most = 0, 0
        if state.onset is not None and state.step >= state.onset:
            needed = self._needed(state.onset)
            least = max(0, needed - max(0, self._last_step(state.onset) - state.step))
            most = min(needed, state.step - state.onset)
        if not least <= state.pace.gone <= most:
            raise ValueError(f"pace.gone must be from {least} to {most} at step {state.step}, got {state.pace.gone}")

    def _check_counts(self, key: str, values: Mapping[str, list[float]], expected_of: Iterable[str], step: int) -> None:
        expected = {name: self._sites[name].num_parameters for name in expected_of}
        counts = {name: len(hardness) for name, hardness in values.items()}
        if counts != expected:
            raise ValueError(f"{key} must have {expected} values at step {step}, got {counts}")

    def _by_site(self, values: Mapping[str, list[float]]) -> dict[str, list[float]]:
        return {name: list(values.get(name, ())) for name in self._sites}

    # --- how a state follows another ---------------------------------------------------------------------------------

    def _stepped(self, state: _State) -> _State:
        step, onset, settling, pace = state.step + 1, state.onset, state.settling, state.pace
        if onset is None and step >= self._latest:
            onset, settling = self._latest, Settling()
        if self._rate is not None and onset is not None and state.step >= onset:
            left = self._last_step(onset) - state.step
            pace = paced_by_step(pace, needed=self._needed(onset), left=left)
        return replace(state, step=step, onset=onset, settling=settling, pace=pace)

    def _reported(self, state: _State, metric: float) -> _State:
        is_learning = self._phase(state) == "learn"
        pace, settling, onset = state.pace, state.settling, state.onset
        if self._rate is not None:
            pace = paced_by_loss(self._rate, pace, metric)
        if self._settled is not None and is_learning:
            self._refuse_frozen()
            settling = settled_further(self._settled, settling, metric, self._learned_hardness())
            if settling.streak >= self._settled.patience:
                onset, settling = state.step, Settling()  # nobody asks for the reference any more
        return replace(state, onset=onset, settling=settling, pace=pace)

    def _commit(self, state: _State) -> None:
        """Makes it the present state, and writes its λ. Everything that can fail comes before the first change."""
        overrides: dict[str, Tensor] = {}
        if self._phase(state) != "learn":
            if not state.learned:
                state = replace(state, learned=self._learned_hardness())
            for name, site in self._sites.items():
                hardness = torch.tensor(self._hardened(state, name), dtype=torch.float64, device="cpu")
                overrides[name] = site._checked_override(hardness)
        for name, override in overrides.items():
            self._sites[name]._write_override(override, frozen=True)
        self._state = state

    def _learned_hardness(self) -> dict[str, list[float]]:
        reshard(self._model)
        learned = {name: site.hardness.tolist() for name, site in self._sites.items()}
        for name, values in learned.items():
            wrong = [value for value in values if not math.isfinite(value)]
            if wrong:
                raise ValueError(f"the learned hardness of {name!r} must be finite, got {wrong[0]}")
        return learned

    def _refuse_frozen(self) -> None:
        frozen = [name for name, site in self._sites.items() if site.is_frozen]
        if frozen:
            raise RuntimeError(
                f"step {self._state.step} is to learn the hardness, but it is frozen at {', '.join(frozen)}; "
                "unfreeze_hardness() first"
            )

    # --- where a state is on its way ---------------------------------------------------------------------------------

    def _phase(self, state: _State) -> str:
        if state.onset is None or state.step < state.onset:
            return "learn"
        tick, ticks = self._ticks(state)
        return "harden" if tick < ticks else "done"

    def _ticks(self, state: _State) -> tuple[int, int]:
        """How many steps λ has gone since the onset, and how many it goes in all."""
        assert state.onset is not None
        if self._rate is not None:
            return state.pace.gone, self._needed(state.onset)
        span = self._last_step(state.onset) - state.onset
        return min(state.step - state.onset, span), span

    def _last_step(self, onset: int) -> int:
        if isinstance(self._end, Remaining):
            return onset + _C.HardeningWindow(self._total_steps - onset, 0.0, self._end.fraction).last_step
        return _C.HardeningWindow(self._total_steps, 0.0, self._end).last_step

    def _needed(self, onset: int) -> int:
        """How many steps λ goes, where it may wait in the others."""
        assert self._rate is not None
        return _C.HardeningWindow(self._last_step(onset) - onset, 0.0, 1 - self._rate.waiting).last_step

    def _hardened(self, state: _State, name: str) -> list[float]:
        tick, ticks = self._ticks(state)
        begin, origin = state.path.get(name, (0, state.learned[name]))
        target = state.targets[name]
        window = _C.HardeningWindow(ticks, 0.0, 1.0)
        progress, start_progress = window.progress(tick), window.progress(begin)
        scheduled = _C.scheduled_hardness(self._schedule, origin, target, progress, start_progress)
        return [max(before, after) for before, after in zip(origin, scheduled, strict=True)]


def _step_of(name: str, when: float | int, end: float | Remaining, total_steps: int) -> int:
    """The step that a fraction or a step means; raises where it leaves hardening no step before the end."""
    _C.HardeningWindow(total_steps, 0.0, 1.0)  # refuses a total_steps below 1
    if isinstance(when, bool) or not isinstance(when, Real):
        raise TypeError(f"{name} must be a fraction (float) or a step (int), got {type(when).__name__}")
    if not isinstance(end, Remaining) and (isinstance(end, bool) or not isinstance(end, Real)):
        raise TypeError(f"end must be a fraction (float) or Remaining, got {type(end).__name__}")
    if isinstance(when, int):
        if not 0 <= when < total_steps:
            raise ValueError(f"{name} as a step must be from 0 to {total_steps - 1}, got {when}")
        when = when / total_steps
    return _C.HardeningWindow(total_steps, when, 1.0 if isinstance(end, Remaining) else end).first_step


def resolved_targets(
    sites: Mapping[str, LambdaGELU], target: float | Mapping[str, Target]
) -> dict[str, float | list[float]]:
    """What a scheduler is given as `target`, checked, by site: a float, or a list with a λ for each channel."""
    if isinstance(target, Mapping):
        check_names("target", target, sites)
        given: Mapping[str, Target] = target
    elif hasattr(target, "__len__") and not isinstance(target, (str, bytes)):
        raise TypeError(f"target must be a float or a mapping from site names, got {type(target).__name__}")
    else:
        given = dict.fromkeys(sites, target)
    return {name: _target(name, site, given[name]) for name, site in sites.items()}


def _target(name: str, site: LambdaGELU, target: Any) -> float | list[float]:
    if hasattr(target, "tolist"):  # a tensor or an array
        target = target.tolist()
    values = list(target) if isinstance(target, (list, tuple)) else [target]
    if len(values) not in (1, site.num_parameters):
        raise ValueError(f"target of {name!r} must have 1 or {site.num_parameters} values, got {len(values)}")
    dtype = site.hardness_override.dtype
    for value in values:
        checked_number(f"target of {name!r}", value)
        if not torch.finfo(dtype).tiny <= value <= torch.finfo(dtype).max:
            raise ValueError(f"target of {name!r} must be finite and positive in {dtype}, got {value}")
    return float(values[0]) if len(values) == 1 else [float(value) for value in values]


def _checked_metric(metric: Any) -> float:
    if isinstance(metric, Tensor) and metric.numel() == 1:
        metric = metric.item()
    if isinstance(metric, bool) or not isinstance(metric, Real):
        raise TypeError(f"metric must be a float or a tensor of one element, got {type(metric).__name__}")
    if not math.isfinite(metric):
        raise ValueError(f"metric must be finite, got {metric}")
    return float(metric)


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(entry) for key, entry in value.items()}
    return list(value) if isinstance(value, list) else value


def _filled(values: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    return {name: list(hardness) for name, hardness in values.items() if len(hardness) > 0}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
