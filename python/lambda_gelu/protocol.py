"""The whole way from λ-GELU to a ReLU network, beside a training loop: calibrate, harden, swap, recover."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from . import _C
from ._calls import evaluating, same_modes
from ._protocol_checks import (
    changeable_sites,
    check_calibration,
    check_callables,
    check_counts,
    check_metric,
    check_recovery,
    check_swap,
    check_targets,
    latest_onset,
    optimizers_of,
    steps_of,
)
from ._scores import as_number, aside
from ._windows import Windows
from .hardening import HardnessScheduler, resolved_targets
from .pacing import AllowedLoss, Remaining, Settled
from .recovery import ActivationL1, Distillation, Teacher, distillation_loss, drop_parameters_, in_backward
from .report import SubstitutionReport
from .shadow import BestSubstituted, ShadowScore, shadow_evaluate
from .sites import find_sites, has_sites, reshard, unwrapped
from .statistics import Statistics, observe
from .substitution import to_relu_
from .targets import HardnessCapWarning, SiteWeight, suggest_targets

Evaluate = Callable[[nn.Module], "float | Tensor"]


class Substitution:
    r"""Calibrates, hardens, swaps and recovers, one :meth:`step` after another of a training.

    ======= ==================================================================================================
    stage   what happens
    ======= ==================================================================================================
    learn   λ is learned. In the last `calibrate` steps the pre-activations are observed, and from them follows
            the target of every site: the λ at which the swap has a signal-to-error ratio of `tolerance_db`.
    harden  λ is frozen and raised to the targets, over `harden` of the steps that remain, and kept there until
            the swap. The targets follow the pre-activations.
    recover The sites are ReLU now. The same optimizer goes on, without λ.
    done    after `total_steps`.
    ======= ==================================================================================================

    The protocol and its defaults are ours; the paper hardens every layer to one λ and swaps.

    Pre-activations are observed from `calibrate` steps before the onset until the swap: every forward of the model but
    those of :meth:`validate`, and those within ``with substitution.unobserved():``.

    Steps are the caller's unit: of the optimizer, or epochs. The swap is made in place, within the :meth:`step` that
    ends the hardening. A model inside DistributedDataParallel cannot be changed so, and is refused; where ranks share
    parameters (``fully_shard``), every rank does the same, and what they observed is added up.

    To resume, make everything as at the start, then load in this order, since the first puts model and optimizer into
    the stage of the checkpoint::

        substitution.load_state_dict(checkpoint["substitution"])
        model.load_state_dict(checkpoint["model"])
        optimizer.load_state_dict(checkpoint["optimizer"])

    Args:
        model: with at least one site, wrapped or not; the one that is called.
        optimizer: one or several, whose λ are dropped at the swap. Default None: nothing is dropped.
        total_steps: of the whole training, recovery included.
        start: the onset of hardening, see :class:`HardnessScheduler`: a fraction of `total_steps`, a step, or
            :class:`Settled`, which :meth:`validate` reports to. Default 0.25.
        harden: the share of the steps after the onset, within (0, 1], in which λ rises. Default 0.7.
        recover: what comes after the swap: a fraction of `total_steps`, or a number of steps; 0 for none. Default 0.15.
        calibrate: how many steps are observed before targets are chosen anew: a fraction of `total_steps`, or a number
            of steps. Default 0.05.
        every: only each `every`-th call of a site is observed, and at least one of `calibrate`. Default 4.
        calibration: runs calibration data through the model, ``calibration(model)``, instead of observing the training;
            in eval mode, without gradient and on random numbers of its own. The bias correction needs it. Default None.
        tolerance_db, cap, per: see :func:`suggest_targets`. Default 30, 64 and ``"layer"``; ``"channel"`` needs λ per
            channel at every site.
        targets: chooses targets in place of :func:`suggest_targets`: ``targets(statistics)`` gives λ by site. Default
            None.
        follow: whether the targets follow the pre-activations while λ rises. Default True.
        schedule, rate: see :class:`HardnessScheduler`. Default ``"geometric"`` and None.
        correction, max_loss, example_inputs: see :func:`to_relu_`. Default ``"none"``, None and None.
        weights: ``weights(model)`` gives :func:`site_weights` right before the swap, for the predicted cost in the
            report. Default None.
        evaluate: ``evaluate(model)`` gives the validation metric, for the report and the swap. Default None: the report
            has the metric of the last :meth:`validate` before the swap, and after it.
        higher_is_better: of the metric. Needed wherever scores are compared: for `correction`, `max_loss`, `rate` and
            `keep_best`. Default None.
        metric_name: for the report. Default ``"metric"``.
        distillation: a :class:`Distillation`: during recovery the model from before the swap teaches. Default None.
        activation_l1: the factor of an :class:`ActivationL1` that rises over the recovery. Default None.
        keep_best: whether :meth:`validate` keeps the checkpoint that is best as a ReLU network, in :attr:`best`, in
            memory or, where it is a path, in that file. Default False.
        group: the process group of torch.distributed over whose ranks the statistics are added up. Default None: all
            ranks, where there are several.

    Attributes:
        best: a :class:`BestSubstituted`, or None.

    Raises:
        ValueError, TypeError: naming the argument, for a model without a site or one that cannot be changed in place,
            and for an optimizer of another model; nothing is changed. Later, from :meth:`step`, when targets are due:
            for no calibration data, a site that was never executed, activations that are NaN; nothing is changed.

    Example::

        >>> substitution = lambda_gelu.Substitution(model, optimizer, total_steps=len(loader) * epochs)
        >>> for epoch in range(epochs):
        ...     for x, y in loader:
        ...         optimizer.zero_grad()
        ...         (loss_of(model(x), y) + substitution.extra_loss()).backward()
        ...         optimizer.step()
        ...         substitution.step()
        ...     substitution.validate(accuracy)
        >>> print(substitution.report())
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Iterable[torch.optim.Optimizer] | None = None,
        *,
        total_steps: int,
        start: float | int | Settled = 0.25,
        harden: float = 0.7,
        recover: float | int = 0.15,
        calibrate: float | int = 0.05,
        every: int = 4,
        calibration: Callable[[nn.Module], Any] | None = None,
        tolerance_db: float = 30.0,
        cap: float = 64.0,
        per: str = "layer",
        targets: Callable[[Statistics], Mapping[str, Any]] | None = None,
        follow: bool = True,
        schedule: str = "geometric",
        rate: AllowedLoss | None = None,
        correction: str = "none",
        max_loss: float | None = None,
        example_inputs: Any = None,
        weights: Callable[[nn.Module], Mapping[str, SiteWeight]] | None = None,
        evaluate: Evaluate | None = None,
        higher_is_better: bool | None = None,
        metric_name: str = "metric",
        distillation: Distillation | None = None,
        activation_l1: float | None = None,
        keep_best: bool | str | os.PathLike[str] = False,
        group: Any = None,
    ) -> None:
        sites = changeable_sites(model)
        self._optimizers = optimizers_of(optimizer, model)
        check_counts(total_steps=total_steps, every=every)
        recover_steps = steps_of("recover", recover, total_steps, least=0)
        calibrate_steps = steps_of("calibrate", calibrate, total_steps, least=1)
        onset, swap_step = latest_onset(start, total_steps), total_steps - recover_steps
        check_targets(sites, tolerance_db=tolerance_db, cap=cap, per=per, harden=harden)
        check_swap(correction=correction, max_loss=max_loss)
        check_recovery(recover_steps, distillation, activation_l1)
        check_callables(calibration=calibration, targets=targets, weights=weights, evaluate=evaluate)
        check_metric(
            deciding={"correction": correction != "none", "max_loss": max_loss is not None},
            comparing={"rate": rate is not None, "keep_best": bool(keep_best)},
            evaluate=evaluate,
            higher_is_better=higher_is_better,
        )
        check_calibration(calibration, onset=onset, correction=correction)
        hardened = onset + _C.HardeningWindow(total_steps - onset, 0.0, harden).last_step
        if hardened > swap_step:
            raise ValueError(
                f"harden={harden:g} has λ at its target at step {hardened}, after the swap at step {swap_step}: lower "
                "harden, recover or start"
            )
        self._model, self._total_steps, self._swap_step = model, total_steps, swap_step
        self._latest_onset, self._calibrate_steps, self._every = onset, calibrate_steps, min(every, calibrate_steps)
        self._observe_from = 0 if isinstance(start, Settled) else max(0, onset - calibrate_steps)
        self._calibration, self._evaluate, self._example_inputs = calibration, evaluate, example_inputs
        self._group, self._weights = group, weights
        self._suggest, self._tolerance, self._cap, self._per = targets, float(tolerance_db), float(cap), per
        self._follow, self._correction, self._max_loss = bool(follow), correction, max_loss
        self._higher_is_better, self._metric_name = higher_is_better, metric_name
        self._distillation, self._activation_l1 = distillation, activation_l1
        self._uses_reports = isinstance(start, Settled) or rate is not None
        self.best: BestSubstituted | None = None
        if keep_best:
            self.best = BestSubstituted(
                model,
                higher_is_better=bool(higher_is_better),
                tolerance_db=tolerance_db,
                path=None if keep_best is True else keep_best,
            )
        self._step = 0
        first = self._suggested(self._calibrated()) if onset == 0 else None
        self._scheduler = HardnessScheduler(
            model, total_steps, start=start, end=Remaining(harden), schedule=schedule, rate=rate
        )
        if first is not None:
            self._adopt(*first)
        self._plan: dict[str, Any] = {
            "sites": {name: site.num_parameters for name, site in sites.items()},
            "total_steps": total_steps,
            "start": asdict(start) if isinstance(start, Settled) else start,
            "harden": harden,
            "swap_step": swap_step,
            "calibrate_steps": calibrate_steps,
            "every": self._every,
            "calibration": calibration is not None,
            "tolerance_db": self._tolerance,
            "cap": self._cap,
            "per": per,
            "follow": self._follow,
            "schedule": schedule,
            "rate": None if rate is None else asdict(rate),
            "correction": correction,
            "max_loss": max_loss,
            "higher_is_better": higher_is_better,
            "distillation": None if distillation is None else [distillation.weight, distillation.temperature],
            "activation_l1": activation_l1,
            "keep_best": bool(keep_best),
        }
        self._scores: dict[str, float] = {}  # of the last validation before the swap, as stages of the report
        self._windows = Windows(model, per, self._every)
        self._report: SubstitutionReport | None = None
        self._teacher: Teacher | None = None
        self._penalty: ActivationL1 | None = None
        self._hooks = ExitStack()
        self._last_call: tuple[tuple[Any, ...], dict[str, Any], Any] | None = None
        self._observe_if_due()

    @property
    def stage(self) -> str:
        """``"learn"``, ``"harden"``, ``"recover"`` or ``"done"``."""
        if self._step >= self._total_steps:
            return "done"
        if self._report is not None:
            return "recover"
        return "learn" if self._scheduler.phase == "learn" else "harden"

    @property
    def swap_step(self) -> int:
        """The sites become ReLU at the end of this step, or became it, where :meth:`swap` was called."""
        return self._swap_step

    @property
    def scheduler(self) -> HardnessScheduler | None:
        """What hardens, with the present targets; None after the swap."""
        return None if self._report is not None else self._scheduler

    @property
    def statistics(self) -> Statistics | None:
        """Of the pre-activations, lately observed; None where nothing was, and where `calibration` is given."""
        return self._windows.recent() if self._windows.hold_any else None

    def step(self) -> None:
        """To be called after every step of the training. After the last one it does nothing.

        Raises:
            ValueError: where targets are due and there is no calibration data, a site that was never executed, or
                activations that were NaN.
            RuntimeError: inside :meth:`unobserved`.

            Nothing is changed by either, nor by an exception of `evaluate` and the other functions that it calls, and
            the step is not counted.
        """
        if self._step >= self._total_steps:
            return
        self._windows.refuse_paused("step()")
        if self._report is None:
            self._step_before_swap()
        else:
            self._step_of_recovery(self._report)
        if self._step == self._total_steps:
            self._hooks.close()

    def recalibrate(self) -> None:
        """Forgets what was observed and counts from zero, as after activations that were NaN.

        Raises:
            RuntimeError: inside :meth:`unobserved`.
        """
        self._windows.refuse_paused("recalibrate()")
        self._windows.forget()

    def swap(self) -> SubstitutionReport:
        """Swaps now, with λ as it is: what remains of the training is recovery.

        Before the first step for a GELU network that was never trained for it, or to end the hardening early.

        Raises:
            RuntimeError: after the swap.
            ValueError: as :func:`to_relu_`; nothing is changed.
        """
        if self._report is not None:
            raise RuntimeError(f"the sites are ReLU already, since step {self._swap_step}")
        planned, self._swap_step = self._swap_step, self._step
        try:
            self._swap(False)
        except BaseException:
            self._swap_step = planned
            raise
        return self.report()

    def validate(self, evaluate: Evaluate | None = None) -> ShadowScore:
        """Scores the model as it stands and as if substituted, and takes note: for the report, the onset, the best.

        What is evaluated counts neither for the targets nor for :meth:`extra_loss`. Every module is in training or
        evaluation mode afterwards as it was before.

        Args:
            evaluate: ``evaluate(model)`` gives the score. Default None: what the constructor was given.

        Returns:
            ShadowScore: with the same score twice where no site is left.

        Raises:
            ValueError: where there is no `evaluate`; for a score that is not finite where `start` or `rate` depends on
                it; and as :meth:`step`. Nothing is changed.
        """
        evaluate = self._evaluate if evaluate is None else evaluate
        if evaluate is None:
            raise ValueError("evaluate must be given here or to the constructor")
        with self.unobserved(), same_modes(self._model):
            if has_sites(self._model):
                score = shadow_evaluate(self._model, evaluate, statistics=self.best is not None)
            else:
                value = as_number(evaluate(self._model))
                score = ShadowScore(value, value)
        self.record(score, recovered=self._evaluate is None or evaluate is self._evaluate)
        return score

    def record(self, score: ShadowScore, *, recovered: bool = True) -> None:
        """Takes note of a score that was found elsewhere, as :meth:`validate` does with its own.

        Args:
            score: of the present step; with statistics where `keep_best` is on.
            recovered: whether after the swap it is the metric of the report. Default True.

        Raises:
            ValueError: as :meth:`validate`.
        """
        if self.best is not None:
            self.best.check(score)
        if self._report is None:
            self._report_metric(score.as_is)
            self._scores = {"before": score.as_is, "swapped": score.as_relu}
        elif recovered:
            self._report = self._report.with_metrics(recovered=score.as_is)
        if self.best is not None:
            self.best.update(score, step=self._step)

    def extra_loss(self) -> Tensor:
        """What recovery adds to the loss of a forward: distillation and the penalty on activations; 0 otherwise.

        To be added once after every forward of the model.

        Raises:
            RuntimeError: in recovery, where the model was not called with gradient since the last time.
        """
        losses = []
        if self._teacher is not None and self._distillation is not None and self.stage == "recover":
            if self._last_call is None:
                raise RuntimeError(
                    "no forward with gradient since the last extra_loss(): ask for it once after every forward of the "
                    "model that Substitution was given"
                )
            (args, kwargs, output), self._last_call = self._last_call, None
            student = self._distillation.logits_of(output)
            teacher = self._distillation.logits_of(self._teacher(*args, **kwargs))
            divergence = distillation_loss(student, teacher, self._distillation.temperature)
            losses.append(self._distillation.weight * divergence)
        if self._penalty is not None and self.stage == "recover":
            losses.append(self._penalty.loss())
        if losses:
            return torch.stack([loss.to(losses[0]) for loss in losses]).sum()
        return torch.zeros((), device=next(self._model.parameters()).device)

    def report(self) -> SubstitutionReport:
        """What the swap did, with the metric at every stage at which it is known.

        Raises:
            RuntimeError: before the swap.
        """
        if self._report is None:
            raise RuntimeError(f"nothing is swapped yet: the swap is at step {self._swap_step}, this is {self._step}")
        return self._report

    # --- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """What resuming needs beside the states of model and optimizers: plain data and tensors, for ``torch.save``.

        In a recovery with distillation that includes the weights of the teacher.
        """
        return {
            "plan": copy.deepcopy(self._plan),
            "step": self._step,
            "swap_step": self._swap_step,
            "stage": self.stage,
            "scheduler": None if self._report is not None else self._scheduler.state_dict(),
            **self._windows.state_dict(),
            "scores": dict(self._scores),
            "report": None if self._report is None else self._report.to_dict(),
            "teacher": None if self._teacher is None else self._teacher.state_dict(),
            "penalty": None if self._penalty is None else self._penalty.state_dict(),
            "best": None if self.best is None else self.best.state_dict(),
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Puts the protocol, and with it model and optimizers, into the stage of a checkpoint.

        To be loaded before the states of model and optimizers, which fit only then. The weights come with theirs: here
        λ is set while it is frozen, and after the swap the sites become ReLU and λ leaves the optimizers.

        Raises:
            ValueError: for what is no state of this class, of another plan or model, or of a stage before the swap
                where the model is a ReLU network already; nothing is changed.
        """
        report = self._checked_report(state_dict)
        present, last = (self._loaded_statistics(state_dict[key]) for key in ("present", "last"))
        teacher = self._loaded_teacher(state_dict["teacher"], is_swapped=report is not None)
        if self.best is not None:
            copy.copy(self.best).load_state_dict(state_dict["best"])  # what it refuses, it refuses on a copy
        if report is None:
            self._scheduler.load_state_dict(state_dict["scheduler"])
        else:
            self._swap_step = state_dict["swap_step"]
            self._replace(list(report.substituted), teacher)
        self._windows.end()
        self._step, self._scores, self._report = state_dict["step"], dict(state_dict["scores"]), report
        self._last_call = None
        if self._penalty is not None:
            self._penalty.load_state_dict(state_dict["penalty"])
        if self.best is not None:
            self.best.load_state_dict(state_dict["best"])
        if self._step >= self._total_steps:
            self._hooks.close()
        self._observe_if_due()
        self._windows.load(present, last)

    def _checked_report(self, state_dict: Mapping[str, Any]) -> SubstitutionReport | None:
        """The report in a state that fits this protocol, None in one from before the swap."""
        missing = [key for key in self.state_dict() if key not in state_dict]
        if missing:
            raise ValueError(f"state_dict lacks {', '.join(missing)}")
        for key, mine in self._plan.items():
            theirs = state_dict["plan"].get(key)
            if theirs != mine:
                raise ValueError(f"{key} differs: the state has {theirs!r}, this protocol {mine!r}")
        report = None if state_dict["report"] is None else SubstitutionReport.from_dict(state_dict["report"])
        if self._report is not None and report is None:
            raise ValueError(
                f"the state is of stage {state_dict['stage']!r}, before the swap, but the model is a ReLU network "
                "already: make it and this protocol anew"
            )
        if self._report is not None and report is not None and report.substituted != self._report.substituted:
            raise ValueError(
                f"the state has ReLU at {list(report.substituted)}, the model at {list(self._report.substituted)}"
            )
        return report

    def _loaded_statistics(self, state: Mapping[str, Any] | None) -> Statistics | None:
        if state is None:
            return None
        statistics = Statistics({})
        statistics.load_state_dict(state)
        if set(statistics) != set(self._plan["sites"]) or statistics.per != self._per:
            raise ValueError(
                f"the state has statistics of another model: per {statistics.per} of the sites {list(statistics)}"
            )
        return statistics

    def _loaded_teacher(self, state: Mapping[str, Any] | None, *, is_swapped: bool) -> Teacher | None:
        if state is None or not is_swapped:
            return None
        teacher = Teacher(self._model) if self._teacher is None else copy.deepcopy(self._teacher)
        try:
            teacher.load_state_dict(state)
        except RuntimeError as error:
            raise ValueError(f"the teacher of the state is of another model: {error}") from error
        return teacher

    # --- before the swap ---------------------------------------------------------------------------------------------

    def _step_before_swap(self) -> None:
        step, scheduler = self._step + 1, self._scheduler
        is_whole = step > self._observe_from and (step - self._observe_from) % self._calibrate_steps == 0
        onset = self._latest_onset if scheduler.onset_step is None else scheduler.onset_step
        follows = self._follow and is_whole and scheduler.phase != "learn"
        due = self._suggested(self._for_targets(is_whole)) if step == onset or follows else None
        before = scheduler.state_dict()
        try:
            if due is not None:
                scheduler.set_targets(due[0])
            scheduler.step()
            if step == self._swap_step:
                self._swap(is_whole)
        except BaseException:
            scheduler.load_state_dict(before)
            raise
        self._step = step
        if due is not None and self.best is not None:
            self.best.set_tolerance(due[1])
        if self._report is None:
            if is_whole:
                self._windows.turn()
            self._observe_if_due()

    def _step_of_recovery(self, report: SubstitutionReport) -> None:
        if self._step + 1 == self._total_steps and self._evaluate is not None:
            self._report = report.with_metrics(recovered=self._score(self._evaluate))
        self._step += 1
        self._last_call = None
        if self._penalty is not None:
            self._penalty.step()

    def _report_metric(self, metric: float) -> None:
        """Tells the scheduler, which may begin to harden here and now."""
        scheduler = self._scheduler
        if not self._uses_reports:
            return
        undecided = scheduler.onset_step is None
        before = scheduler.state_dict()
        scheduler.report(-metric if self._higher_is_better else metric)
        if not undecided or scheduler.phase == "learn":
            return
        try:
            self._adopt(*self._suggested(self._for_targets(False)))
        except BaseException:
            for site in find_sites(self._model).values():
                site.unfreeze_hardness()  # to the last bit: λ has not moved yet
            scheduler.load_state_dict(before)
            raise

    def _adopt(self, targets: Mapping[str, Any], required: Mapping[str, float]) -> None:
        self._scheduler.set_targets(targets)
        if self.best is not None:
            self.best.set_tolerance(required)

    def _suggested(self, statistics: Statistics) -> tuple[Mapping[str, Any], dict[str, float]]:
        """Targets, and the SER that each site is to reach with them."""
        statistics = _over_ranks(statistics, self._group)
        statistics.require_complete("targets")
        if self._suggest is not None:
            targets = resolved_targets(find_sites(self._model), self._suggest(statistics))
        else:
            with warnings.catch_warnings():
                if self._is_hardening():  # the cap was warned of at the onset
                    warnings.simplefilter("ignore", HardnessCapWarning)
                targets = suggest_targets(statistics, self._tolerance, cap=self._cap, per=self._per)
        sites = find_sites(self._model)
        required = {name: min(self._tolerance, statistics[name].ser_db(targets[name])) for name in sites}
        return targets, required

    def _is_hardening(self) -> bool:
        return self._step > 0 and self._scheduler.phase != "learn"

    # --- what is observed --------------------------------------------------------------------------------------------

    def _observe_if_due(self) -> None:
        if self._calibration is None and self._report is None and self._step >= self._observe_from:
            self._windows.begin()

    @contextmanager
    def unobserved(self) -> Iterator[None]:
        """What runs within counts neither for the targets nor for :meth:`extra_loss`."""
        call = self._last_call
        with self._windows.paused(), nullcontext() if self._penalty is None else self._penalty.paused():
            try:
                yield
            finally:
                self._last_call = call

    def _for_targets(self, is_whole: bool) -> Statistics:
        if self._calibration is not None:
            return self._calibrated()
        return self._windows.present() if is_whole else self._windows.recent()

    def _calibrated(self) -> Statistics:
        assert self._calibration is not None
        with (
            aside(self._model),
            evaluating(self._model),
            torch.no_grad(),
            observe(self._model, per=self._per) as statistics,
        ):
            self._calibration(self._model)
        return statistics

    def _score(self, evaluate: Evaluate) -> float:
        with aside(self._model):
            return as_number(evaluate(self._model))

    # --- the swap ----------------------------------------------------------------------------------------------------

    def _swap(self, is_whole: bool) -> None:
        statistics = None
        if self._calibration is None and self._windows.has_counted():
            statistics = _over_ranks(self._for_targets(is_whole), self._group)
        with self.unobserved():
            teacher = None if self._distillation is None else Teacher(self._model)
            raw = _raw_hardness(self._model)
            report = to_relu_(
                self._model,
                correction=self._correction,
                statistics=statistics,
                weights=None if self._weights is None else self._weights(self._model),
                calibrate=self._calibration,
                evaluate=self._evaluate,
                higher_is_better=self._higher_is_better,
                metric_name=self._metric_name,
                max_loss=self._max_loss,
                example_inputs=self._example_inputs,
            )
            self._windows.end()
        self._begin_recovery(raw, list(report.substituted), teacher)
        self._report = report if self._evaluate is not None else report.with_metrics(**self._scores)

    def _replace(self, names: list[str], teacher: Teacher | None) -> None:
        """The swap of a checkpoint, where the model has not had it."""
        raw: dict[str, Tensor] = {}
        self._windows.end()
        if names and self._report is None:
            raw = _raw_hardness(self._model)
            to_relu_(self._model, sites=names)
        self._begin_recovery(raw, names, teacher)

    def _begin_recovery(self, raw: Mapping[str, Tensor], names: list[str], teacher: Teacher | None) -> None:
        """`raw`: s of the sites that have just become ReLU."""
        for optimizer in self._optimizers:
            drop_parameters_(optimizer, [raw[name] for name in names if name in raw])
        self._hooks.close()
        self._teacher = teacher
        if teacher is not None:
            # A closure, since copy.deepcopy of the model would copy what a method is bound to.
            handle = self._model.register_forward_hook(
                lambda module, args, kwargs, output: self._note_call(args, kwargs, output), with_kwargs=True
            )
            self._hooks.callback(handle.remove)
        steps = self._total_steps - self._swap_step
        if self._activation_l1 is not None and names and steps > 0:
            self._penalty = ActivationL1(self._model, self._activation_l1, steps, sites=names)
            self._hooks.callback(self._penalty.remove)

    def _note_call(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if torch.is_grad_enabled() and not in_backward():
            self._last_call = (args, kwargs, output)


def _raw_hardness(model: nn.Module) -> dict[str, Tensor]:
    """s of every site, as the optimizers have it."""
    reshard(unwrapped(model))
    return {name: site.raw_hardness for name, site in find_sites(model).items()}


def _over_ranks(statistics: Statistics, group: Any) -> Statistics:
    """Summed over the ranks, where there are several."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size(group) > 1):
        return statistics
    return statistics.snapshot().all_reduce(group)
