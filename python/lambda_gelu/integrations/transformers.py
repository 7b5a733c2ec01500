"""λ-GELU in Hugging Face's transformers: schedule, protocol and optimizer of the Trainer, its logs, trained models."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import (
    AllowedLoss,
    HardnessScheduler,
    Remaining,
    Settled,
    ShadowScore,
    Statistics,
    Substitution,
    convert_,
    find_sites,
    observe,
    param_groups,
    relu_substituted,
)
from ..sites import has_sites
from ._metrics import hardness_metrics
from ._plan import as_json, checked_plan
from ._require import require

_transformers: Any = require("transformers", "transformers")
_callbacks: Any = require("transformers.trainer_callback", "transformers")
_trainer_utils: Any = require("transformers.trainer_utils", "transformers")

_SUBSTITUTION_FILE = "substitution.pt"  # in the folder of a checkpoint


def optimizer_groups(
    model: nn.Module, args: Any, *, lr_multiplier: float = 10.0, trainer: Any = None
) -> list[dict[str, Any]]:
    """Parameter groups as ``transformers.Trainer`` builds them, with λ in a group of its own.

    The Trainer's rule would give s weight decay. Its learning-rate schedules scale each group's own rate, and so keep
    the multiplier.

    Args:
        model: the whole model, with at least one site.
        args: the ``TrainingArguments``: ``learning_rate`` and ``weight_decay``.
        lr_multiplier: α. Default 10, see :func:`lambda_gelu.param_groups`.
        trainer: a Trainer whose ``get_decay_parameter_names`` decides what decays. Default None: ``Trainer``'s own.

    Returns:
        list of dict: what decays, what does not, λ. Parameters without ``requires_grad`` are left out.

    Example::

        >>> optimizer = torch.optim.AdamW(optimizer_groups(model, args))
        >>> trainer = Trainer(model, args, optimizers=(optimizer, None), ...)
    """
    rule = _transformers.Trainer if trainer is None else type(trainer)
    decaying = set(rule.get_decay_parameter_names(trainer, model))
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for name, p in trained if name in decaying], "weight_decay": args.weight_decay},
        {"params": [p for name, p in trained if name not in decaying], "weight_decay": 0.0},
    ]
    return param_groups(model, lr=args.learning_rate, lr_multiplier=lr_multiplier, groups=groups)


class HardnessCallback(_callbacks.TrainerCallback, _callbacks.ExportableState):
    """Learns λ, then hardens it, by optimizer steps: a :class:`lambda_gelu.HardnessScheduler` over ``max_steps``.

    Its state lies in the checkpoint's ``trainer_state.json``, and ``train(resume_from_checkpoint=...)`` continues it.

    Args:
        start, target, schedule, end, rate: see :class:`lambda_gelu.HardnessScheduler`.
        metric: which metric of every evaluation is reported to the scheduler, as ``"eval_loss"``. Needed where `start`
            or `rate` follows one. Default None.

    Raises:
        ValueError: for a rule that follows a metric where none is named; when training begins: for what the scheduler
            refuses, and for a checkpoint without its state or of another plan; for a metric that is not finite.

    Warns:
        UserWarning: where an evaluation has no such metric.

    Example::

        >>> trainer = Trainer(model, args, callbacks=[HardnessCallback()], ...)
    """

    def __init__(
        self,
        *,
        start: float | int | Settled = 0.25,
        target: float | Mapping[str, Any] | None = None,
        schedule: str = "linear",
        end: float | Remaining = 1.0,
        rate: AllowedLoss | None = None,
        metric: str | None = None,
    ) -> None:
        self._metric = metric
        self._plan = checked_plan(metric, start=start, target=target, schedule=schedule, end=end, rate=rate)
        self.scheduler: HardnessScheduler | None = None
        self.scheduler_state: dict[str, Any] | None = None  # written by restore_callback_states_from_checkpoint

    def state(self) -> dict[str, Any]:
        """For ``trainer_state.json``."""
        scheduler_state = self.scheduler.state_dict() if self.scheduler else None
        args = {**as_json(self._plan), "metric": self._metric}
        return {"args": args, "attributes": {"scheduler_state": scheduler_state}}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Makes the scheduler, or continues that of a checkpoint."""
        name = type(self).__name__
        saved = state.stateful_callbacks.get(name)
        if isinstance(saved, list):
            raise ValueError(f"a run has one {name}, got {len(saved)}")
        scheduler = HardnessScheduler(model, state.max_steps, **self._plan)
        if state.global_step > 0:
            scheduler_state = saved["attributes"]["scheduler_state"] if saved else None
            if scheduler_state is None:
                raise ValueError(
                    f"the checkpoint of step {state.global_step} has no state of {name}: it was written without one"
                )
            scheduler.load_state_dict(scheduler_state)
        self.scheduler = scheduler
        # The Trainer writes the present state there with every checkpoint, but only where there has been one.
        state.stateful_callbacks[name] = self.state()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step of the schedule after each of the optimizer, however many batches that took."""
        assert self.scheduler is not None
        self.scheduler.step()

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Mapping[str, float], **kwargs: Any) -> None:
        """Reports the metric."""
        if self._metric is None or self.scheduler is None:
            return
        if self._metric in metrics:
            self.scheduler.report(metrics[self._metric])
        else:  # as of the other data sets, where there are several
            warnings.warn(f"this evaluation has no {self._metric!r}, only {', '.join(metrics)}", stacklevel=2)


class SubstitutionCallback(_callbacks.TrainerCallback):
    """The whole protocol by optimizer steps: a :class:`lambda_gelu.Substitution` over ``max_steps``.

    For a Trainer with :class:`SubstitutionTrainerMixin`. The model that the Trainer saves after the swap is a ReLU
    network. The state lies beside it, as ``substitution.pt`` in every checkpoint, and
    ``train(resume_from_checkpoint=...)`` continues it in the stage that it was in. In one process.

    Args:
        metric: which metric of every evaluation is recorded, as ``"eval_loss"``. Default ``"eval_loss"``. None: none.
        **options: of :class:`lambda_gelu.Substitution`, except `total_steps`. `evaluate` is called at the swap and at
            the end; without it the report has the metric of the last evaluations, under its name.

    Attributes:
        substitution: the :class:`lambda_gelu.Substitution`, None before training begins.

    Raises:
        TypeError: for options that it does not have.
        ValueError: when training begins: for what it refuses, a Trainer without the mixin, several processes, and a
            checkpoint without its state or of another plan.

    Example::

        >>> class MyTrainer(SubstitutionTrainerMixin, Trainer):
        ...     pass
        >>> callback = SubstitutionCallback(higher_is_better=False, distillation=lambda_gelu.Distillation())
        >>> trainer = MyTrainer(model, args, callbacks=[callback], ...)
        >>> trainer.train()
        >>> print(callback.substitution.report())
    """

    def __init__(self, *, metric: str | None = "eval_loss", **options: Any) -> None:
        if "total_steps" in options:
            raise TypeError("total_steps is the Trainer's: give it max_steps or num_train_epochs")
        inspect.signature(Substitution).bind(None, total_steps=1, **options)
        self._metric = metric
        if metric is not None and options.get("evaluate") is None:
            options = {"metric_name": metric, **options}
        self._options = options
        self._is_resumed = False
        self.substitution: Substitution | None = None

    def prepare_resume(self, model: nn.Module, optimizer: Any, folder: str) -> None:
        """Puts model and optimizer into the stage of a checkpoint, before the Trainer loads their states.

        Raises:
            ValueError: for a checkpoint without its state or of another plan; nothing is changed.
        """
        file = Path(folder) / _SUBSTITUTION_FILE
        if not file.exists():
            raise ValueError(f"{folder} has no {_SUBSTITUTION_FILE}: it was written without {type(self).__name__}")
        state = torch.load(file, map_location="cpu", weights_only=True)
        substitution = Substitution(model, optimizer, total_steps=state["plan"]["total_steps"], **self._options)
        substitution.load_state_dict(state)
        self.substitution, self._is_resumed = substitution, True

    def on_train_begin(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        """Makes the protocol, unless it continues that of a checkpoint."""
        resumed, self._is_resumed = self._is_resumed, False
        if resumed:
            assert self.substitution is not None
            total = self.substitution.state_dict()["plan"]["total_steps"]
            if state.max_steps != total:
                raise ValueError(f"total_steps differs: the checkpoint has {total}, this Trainer {state.max_steps}")
            return
        if state.global_step > 0:
            raise ValueError(f"{type(self).__name__} resumes only in a Trainer with SubstitutionTrainerMixin")
        if args.world_size > 1:
            raise ValueError(
                f"{type(self).__name__} needs one process, got {args.world_size}: DistributedDataParallel does not see "
                "the swap"
            )
        self.substitution = Substitution(model, kwargs["optimizer"], total_steps=state.max_steps, **self._options)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One step of the protocol after each of the optimizer, however many batches that took."""
        assert self.substitution is not None
        self.substitution.step()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Writes the state into the checkpoint."""
        assert self.substitution is not None
        folder = Path(args.output_dir) / f"{_trainer_utils.PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if folder.is_dir():
            torch.save(self.substitution.state_dict(), folder / _SUBSTITUTION_FILE)

    def record(self, metrics: Mapping[str, float], prefix: str, statistics: Statistics | None) -> None:
        """Takes note of an evaluation that has the metric, as it stands and as if substituted."""
        if self.substitution is None or self._metric is None or self._metric not in metrics:
            return
        as_relu = metrics[_as_relu(self._metric, prefix)]
        self.substitution.record(ShadowScore(metrics[self._metric], as_relu, statistics))


class HardnessTrainerMixin:
    """A ``transformers.Trainer`` whose optimizer has λ in a group of its own, and whose logs show λ.

    Beside the training loss it logs ``hardness_min``, ``hardness_mean`` and ``hardness_max`` over all sites and
    channels, and for every site ``hardness/<name>``, the mean over its channels.

    Attributes:
        lr_multiplier: α. Default 10.

    Example::

        >>> class MyTrainer(HardnessTrainerMixin, Trainer):
        ...     lr_multiplier = 5.0
        >>> trainer = MyTrainer(model, args, callbacks=[HardnessCallback()], ...)
    """

    lr_multiplier: float = 10.0

    # What transformers.Trainer has:
    model: Any
    args: Any
    optimizer: Any
    current_gradient_accumulation_steps: Any
    optimizer_cls_and_kwargs: Any
    get_optimizer_cls_and_kwargs: Any

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        """The optimizer of the arguments, on :func:`optimizer_groups`.

        Raises:
            ValueError: for an optimizer that makes its own groups (GaLore, LOMO, Muon and others).
        """
        if self.optimizer is None:
            model = args[0] if args and args[0] is not None else kwargs.get("model") or self.model
            kind, options = self.optimizer_cls_and_kwargs or self.get_optimizer_cls_and_kwargs(self.args, model)
            if not isinstance(kind, type) or {"params", "model", "optimizer_dict"} & options.keys():
                raise ValueError(
                    f"{getattr(kind, '__name__', kind)} makes its own parameter groups; "
                    "give the Trainer `optimizers`, made with lambda_gelu.param_groups"
                )
            groups = optimizer_groups(model, self.args, lr_multiplier=self.lr_multiplier, trainer=self)
            self.optimizer = kind(groups, **options)
        return super().create_optimizer(*args, **kwargs)  # type: ignore[misc]

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Adds λ to the training loss; metrics of an evaluation stay as they are."""
        if "loss" in logs:
            logs.update(hardness_metrics(self.model))
        super().log(logs, *args, **kwargs)  # type: ignore[misc]


class SubstitutionTrainerMixin(HardnessTrainerMixin):
    """A ``transformers.Trainer`` for :class:`SubstitutionCallback`.

    Beside what :class:`HardnessTrainerMixin` does: every evaluation is made twice, as the model stands and as if
    substituted, with metrics such as ``eval_loss`` and ``eval_relu_loss`` (``metric_for_best_model="relu_loss"``
    chooses by the latter); the loss of training has what recovery adds to it; a checkpoint is resumed in its stage.
    """

    # What transformers.Trainer has:
    callback_handler: Any
    eval_dataset: Any
    model_init: Any

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's.

        Raises:
            ValueError: for a checkpoint without the state of a :class:`SubstitutionCallback` or of another plan, and
                for a `model_init` beside one.
        """
        callback = self._substitution_callback()
        if callback is not None and resume_from_checkpoint:
            folder = resume_from_checkpoint
            if folder is True:
                folder = _trainer_utils.get_last_checkpoint(self.args.output_dir)
            if self.model_init is not None:
                raise ValueError("a model that model_init makes anew cannot be resumed with SubstitutionCallback")
            if folder is not None:  # else the Trainer says so
                self.create_optimizer()
                callback.prepare_resume(self.model, self.optimizer, folder)
        return super().train(resume_from_checkpoint, *args, **kwargs)  # type: ignore[misc]

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """The metrics of the model as it stands, and as if substituted."""
        evaluate = super().evaluate  # type: ignore[misc]
        if isinstance(self.eval_dataset if eval_dataset is None else eval_dataset, dict):
            return evaluate(eval_dataset, ignore_keys, metric_key_prefix)  # once for each, through this
        callback = self._substitution_callback()
        substitution = None if callback is None else callback.substitution
        relu_prefix = f"{metric_key_prefix}_relu"
        statistics = None
        with contextlib.ExitStack() as stack:
            if substitution is not None:
                stack.enter_context(substitution.unobserved())
            if has_sites(self.model):
                with relu_substituted(self.model):
                    as_relu = evaluate(eval_dataset, ignore_keys, relu_prefix)
                if substitution is not None and substitution.best is not None:
                    statistics = stack.enter_context(observe(self.model))
                metrics = evaluate(eval_dataset, ignore_keys, metric_key_prefix)
            else:
                metrics = evaluate(eval_dataset, ignore_keys, metric_key_prefix)
                scores = {key: value for key, value in metrics.items() if key.startswith(f"{metric_key_prefix}_")}
                as_relu = {_as_relu(key, metric_key_prefix): value for key, value in scores.items()}
        metrics = {**as_relu, **metrics}
        if callback is not None:
            callback.record(metrics, metric_key_prefix, statistics)
        return metrics

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None, **kwargs: Any
    ) -> Any:
        """The Trainer's loss, and in training what recovery adds to it."""
        computed = super().compute_loss(  # type: ignore[misc]
            model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch, **kwargs
        )
        callback = self._substitution_callback()
        if callback is None or callback.substitution is None or not (model.training and torch.is_grad_enabled()):
            return computed
        loss, outputs = computed if return_outputs else (computed, None)
        extra = callback.substitution.extra_loss()
        if self._is_scaled(num_items_in_batch):  # and else the Trainer divides
            extra = extra / self.current_gradient_accumulation_steps
        loss = loss + extra.to(loss)
        return (loss, outputs) if return_outputs else loss

    def _is_scaled(self, num_items_in_batch: Any) -> bool:
        """Whether the loss is a part of the whole accumulated batch's already, as Trainer.training_step decides it."""
        trainer: Any = self
        declared = getattr(trainer, "loss_is_scaled_for_ga", None)
        if declared is not None:
            return declared
        accepts = trainer.model_accepts_loss_kwargs and num_items_in_batch is not None
        return accepts or trainer.compute_loss_func is not None

    def _substitution_callback(self) -> SubstitutionCallback | None:
        found = [each for each in self.callback_handler.callbacks if isinstance(each, SubstitutionCallback)]
        if len(found) > 1:
            raise ValueError(f"a run has one SubstitutionCallback, got {len(found)}")
        return found[0] if found else None


def _as_relu(metric: str, prefix: str) -> str:
    return f"{prefix}_relu_{metric.removeprefix(f'{prefix}_')}"


def converted(model_class: type, **options: Any) -> type:
    """A subclass of a transformers model whose GELU are :class:`lambda_gelu.LambdaGELU`.

    Its ``from_pretrained`` reads checkpoints of the plain class, where every λ starts from ``init_hardness``, and what
    its own ``save_pretrained`` wrote, where every λ, τ and the frozen state come back.

    Args:
        model_class: for example ``GPT2LMHeadModel``; no Auto class.
        **options: of :func:`lambda_gelu.convert_`, except those that need a run of the model (``per="channel"`` and
            ``example_inputs``): the weights are not there yet.

    Raises:
        TypeError: for another class, or an option that ``convert_`` does not have.
        ValueError: for an option that needs a run.

    Example::

        >>> LambdaGPT2 = converted(GPT2LMHeadModel)
        >>> model = LambdaGPT2.from_pretrained("gpt2")
    """
    if not (isinstance(model_class, type) and issubclass(model_class, _transformers.PreTrainedModel)):
        raise TypeError(f"model_class must be a class of models, such as GPT2LMHeadModel, got {model_class}")
    inspect.signature(convert_).bind(None, **options)
    if options.get("per", "layer") != "layer" or "example_inputs" in options:
        raise ValueError("a run of the model needs its weights: load the plain model, then convert_ it")

    class Converted(model_class):  # type: ignore[misc, valid-type]
        def __init__(self, config: Any, *args: Any, **kwargs: Any) -> None:
            super().__init__(config, *args, **kwargs)
            convert_(self, **options)

        @classmethod
        def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
            model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
            for name, site in find_sites(model).items():
                if f"{name}.raw_hardness" in info["missing_keys"]:
                    site.reset_parameters()  # transformers left memory there as it found it
            return (model, info) if output_loading_info else model

    Converted.__name__ = f"Lambda{model_class.__name__}"
    Converted.__qualname__ = Converted.__name__
    return Converted
