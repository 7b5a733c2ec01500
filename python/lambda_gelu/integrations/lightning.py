"""λ-GELU in Lightning: the schedule as a callback. Serves ``lightning`` and ``pytorch_lightning``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from .. import AllowedLoss, HardnessScheduler, Remaining, Settled
from ._metrics import hardness_metrics
from ._plan import checked_plan
from ._require import require

_pytorch: Any
try:
    _pytorch = require("lightning.pytorch", "lightning")
except ImportError as missing:
    try:
        import pytorch_lightning as _pytorch
    except ModuleNotFoundError:
        raise missing from None


class HardnessCallback(_pytorch.Callback):
    """Learns λ, then hardens it: a :class:`lambda_gelu.HardnessScheduler` over the run.

    Its state lies in the checkpoint, and ``fit(..., ckpt_path=...)`` continues it. Give the optimizer
    :func:`lambda_gelu.param_groups` in ``configure_optimizers``.

    Args:
        interval: ``"step"``: after every step of the optimizer, over ``trainer.estimated_stepping_batches``;
            ``"epoch"``: after every epoch, over ``trainer.max_epochs``.
        start, target, schedule, end, rate: see :class:`lambda_gelu.HardnessScheduler`; sites of a `target` are named
            from the LightningModule on. With ``Trainer(fast_dev_run=...)`` the few steps harden from the first on.
        metric: which logged metric of every validation is reported to the scheduler, as ``"val_loss"``; in several
            processes log it with ``sync_dist=True``. Needed where `start` or `rate` follows one. Default None.
        log: whether λ goes to the module's log (every ``log_every_n_steps`` steps, or every epoch): ``hardness_min``,
            ``hardness_mean`` and ``hardness_max``, and ``hardness/<site>``, the mean over its channels. Default True.

    Raises:
        ValueError: for another `interval`, and a rule that follows a metric where none is named; when training starts:
            for what the scheduler refuses, for a run without an end, and for a checkpoint without its state or of
            another plan; after a validation: for a metric that was not logged or is not finite.

    Example::

        >>> trainer = lightning.Trainer(max_epochs=20, callbacks=[HardnessCallback()])
    """

    def __init__(
        self,
        *,
        interval: str = "step",
        start: float | int | Settled = 0.25,
        target: float | Mapping[str, Any] | None = None,
        schedule: str = "linear",
        end: float | Remaining = 1.0,
        rate: AllowedLoss | None = None,
        metric: str | None = None,
        log: bool = True,
    ) -> None:
        if interval not in ("step", "epoch"):
            raise ValueError(f"interval must be 'step' or 'epoch', got {interval!r}")
        self._interval = interval
        self._metric = metric
        self._plan = checked_plan(metric, start=start, target=target, schedule=schedule, end=end, rate=rate)
        self._log = log
        self._restored: Mapping[str, Any] | None = None
        self._global_step = 0  # of the trainer, when the schedule last moved
        self.scheduler: HardnessScheduler | None = None

    def state_dict(self) -> dict[str, Any]:
        """The scheduler's, and the unit of its steps; empty before training starts."""
        return {} if self.scheduler is None else {"interval": self._interval, "scheduler": self.scheduler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until training starts."""
        self._restored = state_dict

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Makes the scheduler, or continues that of a checkpoint."""
        plan = self._plan
        if trainer.fast_dev_run:  # may be one step, which has no room for two phases
            plan = {**plan, "start": 0.0, "end": 1.0, "rate": None}
        scheduler = HardnessScheduler(pl_module, self._total_steps(trainer), **plan)
        saved = self._restored or self.state_dict()  # of a checkpoint, or of an earlier fit
        if trainer.global_step > 0:
            if not saved:
                raise ValueError(
                    f"the checkpoint of step {trainer.global_step} has no state of {type(self).__name__}: "
                    "it was written without one"
                )
            if saved["interval"] != self._interval:
                raise ValueError(f"interval differs: the state has {saved['interval']!r}, this one {self._interval!r}")
            scheduler.load_state_dict(saved["scheduler"])
        self._restored = None
        self._global_step = trainer.global_step
        self.scheduler = scheduler

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """One step of the schedule, where the batch was the last of an optimizer's step."""
        if trainer.global_step == self._global_step:
            return
        self._global_step = trainer.global_step
        if self._interval == "step":
            assert self.scheduler is not None
            self.scheduler.step()
            every = trainer.log_every_n_steps  # 0: never
            if self._log and every and trainer.global_step % every == 0:
                pl_module.log_dict(hardness_metrics(pl_module))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """One step of the schedule by epochs."""
        if self._interval == "epoch":
            assert self.scheduler is not None
            self.scheduler.step()
            if self._log:
                pl_module.log_dict(hardness_metrics(pl_module))

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Reports the metric; not that of the sanity check, nor of a validation outside of training."""
        if self._metric is None or trainer.sanity_checking or self.scheduler is None or trainer.state.fn != "fit":
            return
        if self._metric not in trainer.callback_metrics:
            logged = ", ".join(map(repr, trainer.callback_metrics))
            raise ValueError(f"metric {self._metric!r} was not logged, only {logged or 'nothing'}")
        self.scheduler.report(trainer.callback_metrics[self._metric])

    def _total_steps(self, trainer: Any) -> int:
        by_steps = self._interval == "step"
        total = trainer.estimated_stepping_batches if by_steps else trainer.max_epochs
        if total is None or not (math.isfinite(total) and total > 0):
            raise ValueError(
                f"the schedule by {self._interval}s needs the length of the run: give the Trainer "
                f"{'max_steps' if by_steps else 'max_epochs'}"
            )
        return int(total)
