"""λ-GELU in Hugging Face's transformers: the Trainer's schedule, optimizer and logs, and pretrained models."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from .. import AllowedLoss, HardnessScheduler, Remaining, Settled, convert_, find_sites, param_groups
from ._metrics import hardness_metrics
from ._plan import as_json, checked_plan
from ._require import require

_transformers: Any = require("transformers", "transformers")
_callbacks: Any = require("transformers.trainer_callback", "transformers")


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
