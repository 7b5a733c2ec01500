"""Recovery after the swap: the optimizer goes on, the model from before it teaches, activations get rarer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ._checks import check_int, check_positive
from .sites import find_slots, reshard, unwrapped


def keep_optimizer_(optimizer: torch.optim.Optimizer, model: nn.Module) -> int:
    """Takes out of an optimizer what the model no longer has: the λ of the sites that :func:`to_relu_` replaced.

    The groups stay, also one that has become empty, so that learning-rate schedulers go on and a state dict of this
    optimizer fits one that was made and treated likewise. The state of every other parameter is not touched.

    Args:
        optimizer: any of ``torch.optim``, or what wraps one and has its ``param_groups`` and ``state``.
        model: everything that the optimizer moves. Where that is more than the swapped model, as a loss with
            parameters, put all of it into one module: ``nn.ModuleList([model, loss])``.

    Returns:
        int: how many parameters were taken out.

    Raises:
        ValueError: where the optimizer has no parameter of the model, as one that was made for another; nothing is
            changed.

    Example::

        >>> lambda_gelu.to_relu_(model)
        >>> lambda_gelu.keep_optimizer_(optimizer, model)
        >>> # go on training
    """
    reshard(model)  # what is gathered after an evaluation is not what the optimizer has
    present = set(model.parameters())  # tensors hash by identity
    every = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    gone = [parameter for parameter in every if parameter not in present]
    if len(gone) == len(every):
        raise ValueError(f"optimizer has no parameter of {type(model).__name__}: it was made for another model")
    drop_parameters_(optimizer, gone)
    return len(gone)


def drop_parameters_(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> None:
    """Takes parameters, their names and their state out of an optimizer; its groups stay."""
    gone = set(parameters)
    for group in optimizer.param_groups:
        kept = [index for index, parameter in enumerate(group["params"]) if parameter not in gone]
        if len(kept) == len(group["params"]):
            continue
        if "param_names" in group:
            group["param_names"] = [group["param_names"][index] for index in kept]
        group["params"] = [group["params"][index] for index in kept]
    for parameter in gone:
        optimizer.state.pop(parameter, None)


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0, *, mask: Tensor | None = None
) -> Tensor:
    r"""How far a student's distribution over the classes is from its teacher's.

    :math:`T^2 \, \mathrm{KL}(\mathrm{softmax}(t / T) \,\|\, \mathrm{softmax}(s / T))` in nats, with the teacher's
    distribution as the reference, the mean over all positions; a class at which the teacher's logit is −∞ adds nothing.
    The factor T² keeps the size of the gradient where T changes (Hinton, Vinyals and Dean 2015, arXiv 1503.02531).

    Args:
        student_logits, teacher_logits: of the same shape, classes in the last dimension. The teacher's get no gradient.
        temperature: T, finite and positive. Default 1.
        mask: boolean, of the shape without the last dimension: the positions that count. Default None: all.

    Returns:
        Tensor: 0-D, in float32, or float64 where the student's logits are. 0 where the mask is empty.

    Raises:
        ValueError: for other shapes, logits without a dimension, or another temperature.
        TypeError: for a temperature that is no number, or a mask that is not boolean.
    """
    check_positive("temperature", temperature)
    if student_logits.shape != teacher_logits.shape or student_logits.ndim == 0:
        raise ValueError(
            "student_logits and teacher_logits must have the same shape with classes in the last dimension, got "
            f"{tuple(student_logits.shape)} and {tuple(teacher_logits.shape)}"
        )
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(f"mask must be boolean, got {mask.dtype}")
    if mask is not None and mask.shape != student_logits.shape[:-1]:
        raise ValueError(f"mask must have shape {tuple(student_logits.shape[:-1])}, got {tuple(mask.shape)}")
    if mask is not None:  # first of all: NaN at a position that does not count would make its gradient NaN
        student_logits, teacher_logits = (torch.where(mask[..., None], x, 0) for x in (student_logits, teacher_logits))
    dtype = torch.promote_types(student_logits.dtype, torch.float32)
    student = F.log_softmax(student_logits.to(dtype) / temperature, dim=-1)
    teacher = F.log_softmax(teacher_logits.detach().to(dtype) / temperature, dim=-1)
    each = F.kl_div(student, teacher, reduction="none", log_target=True)
    divergence = torch.where(teacher.isneginf(), 0, each).sum(-1)  # 0 ln 0 = 0
    if mask is not None:
        return divergence.sum() / mask.sum().clamp(min=1) * temperature**2
    return divergence.mean() * temperature**2


@dataclass(frozen=True)
class Distillation:
    """How the model before the swap teaches the one after it.

    Args:
        weight: what :func:`distillation_loss` is multiplied by, finite and positive. Default 1 (ours).
        temperature: see :func:`distillation_loss`. Default 1 (ours).
        logits: takes what the model returns and gives the logits. Default None: a tensor is the logits, and anything
            else has them as its attribute or key ``logits``.

    Raises:
        ValueError: for another weight or temperature; TypeError for no number.
    """

    weight: float = 1.0
    temperature: float = 1.0
    logits: Callable[[Any], Tensor] | None = None

    def __post_init__(self) -> None:
        check_positive("weight", self.weight)
        check_positive("temperature", self.temperature)

    def logits_of(self, output: Any) -> Tensor:
        """The logits in what a model returned.

        Raises:
            TypeError: where there are none.
        """
        if self.logits is not None:
            return self.logits(output)
        found = output
        if not isinstance(found, Tensor):
            found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
        if not isinstance(found, Tensor):
            raise TypeError(
                f"the model returns {type(output).__name__}, which has no logits: say where they are, "
                "Distillation(logits=lambda output: ...)"
            )
        return found


class Teacher:
    """A frozen copy of a model, to be made before the swap.

    It is in ``eval()``, gives no gradient, and shares no memory with the model.

    Args:
        model: wrapped or not; the copy is of what is inside DistributedDataParallel and torch.compile.

    Example::

        >>> teacher = Teacher(model)
        >>> lambda_gelu.to_relu_(model)
        >>> loss = loss + distillation_loss(model(x), teacher(x))
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = copy.deepcopy(unwrapped(model)).eval().requires_grad_(False)
        for parameter in self._model.parameters():
            parameter.grad = None

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returned before the swap, in evaluation mode."""
        return self._model(*args, **kwargs)

    def state_dict(self) -> dict[str, Any]:
        """Of the copy: λ, weights and buffers."""
        return self._model.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Resumes; strict, as ``nn.Module``'s."""
        self._model.load_state_dict(state_dict)


class ActivationL1:
    """A rising penalty on the outputs of ReLUs, so that more of them are zero.

    The penalty is the factor times the sum, over the ReLUs, of the mean of their outputs; the factor rises linearly
    from 0 to `factor` in `ramp_steps` and stays. (A factor that is large from the first step has been seen to destroy a
    model; ProSparse, arXiv 2402.13516, raises it.)

    Args:
        model: after the swap; give the one whose forward is called, or what it wraps.
        factor: λ₁ at the end of the ramp, finite and positive.
        ramp_steps: at least 1.
        sites: names of the ReLUs, as ``report.substituted`` has them. Default None: every ``nn.ReLU``.

    Raises:
        ValueError: for another factor or ramp, a name without a ReLU, a model without any; TypeError for no number.

    Example::

        >>> sparsity = ActivationL1(model, 1e-4, 1000, sites=report.substituted)
        >>> loss = loss_of(model(x), y) + sparsity.loss()  # after every forward
        >>> loss.backward(); optimizer.step(); sparsity.step()
    """

    def __init__(self, model: nn.Module, factor: float, ramp_steps: int, *, sites: Iterable[str] | None = None) -> None:
        check_positive("factor", factor)
        check_int("ramp_steps", ramp_steps, 1)
        self._factor, self._ramp_steps = float(factor), ramp_steps
        slots = find_slots(model, nn.ReLU)
        names = [slot.name for slot in slots] if sites is None else list(sites)
        unknown = [name for name in names if all(slot.name != name for slot in slots)]
        if unknown or not names:
            raise ValueError(
                f"sites must name ReLUs of the model, got {unknown}; its ReLUs are {[s.name for s in slots]}"
            )
        modules = dict.fromkeys(slot.module for slot in slots if slot.name in set(names))
        self._step = 0
        self._means: list[Tensor] = []
        # Closures, since copy.deepcopy of the model would copy what a method is bound to.
        self._handles = [module.register_forward_hook(lambda module, args, y: self._add(y)) for module in modules]

    @property
    def factor(self) -> float:
        """The factor at the present step."""
        return self._factor * min(1.0, self._step / self._ramp_steps)

    def loss(self) -> Tensor:
        """The penalty of the forwards with gradient since the last call, 0-D, to be added to the loss.

        Raises:
            RuntimeError: where there was none.
        """
        if not self._means:
            raise RuntimeError("no forward with gradient since the last loss(): ask for it once after every forward")
        total = torch.stack([mean.to(self._means[0]) for mean in self._means]).sum()
        self._means = []
        return total * self.factor

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Forwards within do not count for :meth:`loss`, as those of an evaluation with gradients."""
        means, self._means = self._means, []
        try:
            yield
        finally:
            self._means = means

    def step(self) -> None:
        """To be called after every step of the optimizer."""
        self._step += 1
        self._means = []  # of forwards that nobody asked about

    def state_dict(self) -> dict[str, Any]:
        """Plan and step, as plain numbers."""
        return {"factor": self._factor, "ramp_steps": self._ramp_steps, "step": self._step}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Resumes.

        Raises:
            ValueError: for the state of another plan; nothing is changed.
        """
        mine = self.state_dict()
        missing = [key for key in mine if key not in state_dict]
        if missing:
            raise ValueError(f"state_dict lacks {', '.join(missing)}")
        for key in ("factor", "ramp_steps"):
            if state_dict[key] != mine[key]:
                raise ValueError(f"{key} differs: the state has {state_dict[key]!r}, this one {mine[key]!r}")
        self._step = state_dict["step"]

    def remove(self) -> None:
        """Takes the hooks out of the model."""
        for handle in self._handles:
            handle.remove()
        self._means = []

    def _add(self, output: Tensor) -> None:
        if torch.is_grad_enabled() and not in_backward():
            self._means.append(output.mean(dtype=torch.promote_types(output.dtype, torch.float32)))


def in_backward() -> bool:
    """Whether this is a forward that activation checkpointing does again, in backward.

    torch has no public way to ask; without its private one such a forward is counted twice.
    """
    if torch.compiler.is_compiling():
        return False
    task = getattr(torch._C, "_current_graph_task_id", None)
    return task is not None and task() != -1
