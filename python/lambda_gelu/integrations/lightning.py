"""λ-GELU in Lightning: schedule and protocol as callbacks. Serves ``lightning`` and ``pytorch_lightning``."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import AllowedLoss, HardnessScheduler, LambdaGELU, Remaining, Settled, Substitution
from .._checks import check_choice
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
        check_choice("interval", interval, ("step", "epoch"))
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


class SubstitutionCallback(_pytorch.Callback):
    """The whole protocol by steps of the optimizer: a :class:`lambda_gelu.Substitution` over the run.

    Its state lies in the checkpoint, and ``fit(..., ckpt_path=...)`` continues it in the stage that it was in, bit for
    bit. Give the optimizer :func:`lambda_gelu.param_groups` in ``configure_optimizers``. In one process.

    For what recovery adds to the loss, add :meth:`extra_loss` in ``training_step``.

    Args:
        module: the path of the network within the LightningModule, as ``"net"``. Default ``""``: the whole. With
            `distillation` it must be the module that ``training_step`` calls.
        **options: of :class:`lambda_gelu.Substitution`, except `total_steps`. With `evaluate` every validation scores
            the network as it stands and as if substituted, and logs both: ``<metric_name>`` and
            ``<metric_name>_as_relu``.

    Attributes:
        substitution: the :class:`lambda_gelu.Substitution`, None before training begins.

    Raises:
        TypeError: for options that it does not have.
        ValueError: when training begins: for what it refuses, several processes, a run without an end, and a checkpoint
            without its state or of another plan.

    Example::

        >>> class Module(lightning.LightningModule):
        ...     def training_step(self, batch, index):
        ...         return self.loss_of(batch) + self.substitution.extra_loss()
        >>> module.substitution = SubstitutionCallback(tolerance_db=30.0, module="net")
        >>> lightning.Trainer(max_epochs=20, callbacks=[module.substitution]).fit(module, data)
        >>> print(module.substitution.substitution.report())
    """

    def __init__(self, *, module: str = "", **options: Any) -> None:
        if "total_steps" in options:
            raise TypeError("total_steps is the Trainer's: give it max_steps or max_epochs")
        inspect.signature(Substitution).bind(None, total_steps=1, **options)
        self._module = module
        self._options = options
        self._restored: Mapping[str, Any] | None = None
        self._global_step = 0
        self._hook: Any = None
        self._validation = contextlib.ExitStack()
        self.substitution: Substitution | None = None

    def extra_loss(self) -> Tensor | float:
        """See :meth:`lambda_gelu.Substitution.extra_loss`; 0 outside of training."""
        if self.substitution is None or not torch.is_grad_enabled():
            return 0.0
        return self.substitution.extra_loss()

    def state_dict(self) -> dict[str, Any]:
        """That of the protocol; empty before training begins."""
        return {} if self.substitution is None else self.substitution.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until training begins."""
        self._restored = state_dict

    def setup(self, trainer: Any, pl_module: nn.Module, stage: str) -> None:
        """Lets the weights of a ReLU network into the module, which becomes one only after they are loaded."""
        if stage == "fit":  # whether there is a checkpoint is not known yet
            self._hook = pl_module.register_load_state_dict_pre_hook(_with_own_hardness)

    def on_fit_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Makes the protocol; of a checkpoint in its stage, before the states of the optimizers are loaded."""
        self._hook.remove()
        if trainer.world_size > 1:
            raise ValueError(
                f"{type(self).__name__} needs one process, got {trainer.world_size}: DistributedDataParallel does not "
                "see the swap"
            )
        restored, self._restored = self._restored, None
        if trainer.ckpt_path is not None and not restored:
            raise ValueError(f"the checkpoint has no state of {type(self).__name__}: it was written without one")
        total = trainer.estimated_stepping_batches
        if not (math.isfinite(total) and total > 0):
            raise ValueError("the protocol needs the length of the run: give the Trainer max_steps")
        network = pl_module.get_submodule(self._module)
        substitution = Substitution(network, trainer.optimizers, total_steps=int(total), **self._options)
        if restored:
            substitution.load_state_dict(restored)
        self.substitution = substitution

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:
        """Notes where the Trainer is."""
        self._global_step = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """One step of the protocol, where the batch was the last of an optimizer's step."""
        if trainer.global_step == self._global_step:
            return
        self._global_step = trainer.global_step
        assert self.substitution is not None
        self.substitution.step()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """What is validated does not count for the targets."""
        if self.substitution is not None:
            self._validation.enter_context(self.substitution.unobserved())

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """From here on activations count again."""
        with torch.inference_mode(False):  # what counts them is used in training
            self._validation.close()

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Scores the network with `evaluate`, as it stands and as if substituted."""
        if trainer.sanity_checking or trainer.state.fn != "fit" or self._options.get("evaluate") is None:
            return
        assert self.substitution is not None
        name = self._options.get("metric_name", "metric")
        with torch.inference_mode(False), torch.no_grad():  # hardening may begin, which writes to the model
            score = self.substitution.validate()
        pl_module.log_dict({name: score.as_is, f"{name}_as_relu": score.as_relu})


def _with_own_hardness(module: nn.Module, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
    """Adds the λ that a module has and a state dict lacks: that of a ReLU network."""
    for name, site in module.named_modules(remove_duplicate=False):  # a shared site is in the state at each place
        if isinstance(site, LambdaGELU):
            own = site.state_dict(prefix=f"{prefix}{name}.")
            if not any(key in state_dict for key in own):
                state_dict.update(own)
