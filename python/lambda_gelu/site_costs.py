"""What the swap of each site does to the loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ._calls import first_argument, uncompiled
from ._dtypes import precise_dtype, widest_dtype
from ._scores import aside
from .modules import LambdaGELU
from .sites import find_sites
from .statistics import Statistics

_lambda_gelu = torch.ops.lambda_gelu.lambda_gelu.default

_METHODS = ("first-order", "probe")

Loss = Callable[[nn.Module], Tensor]


@dataclass(frozen=True)
class SiteWeight:
    """What one site does to the loss when it becomes ReLU.

    Attributes:
        cost: by how much the loss grows; negative where it falls.
        gap: E[ReLU(x) − f(x; λ)] of the site at its present λ.
        weight: cost / gap, the cost of a unit of expected gap; 0 where the gap is 0.
    """

    cost: float
    gap: float
    weight: float


def site_weights(
    model: nn.Module, loss: Loss, *, method: str = "first-order", statistics: Statistics | None = None
) -> dict[str, SiteWeight]:
    """What each site does to the loss per unit of its expected gap, for :func:`lambda_gelu.budget_targets`.

    The model runs in eval mode and without torch.compile; its weights, gradients, modes, buffers and the random numbers
    of torch are afterwards what they were. With several processes, give each the same data, or all will have weights of
    their own.

    Args:
        model: with at least one :class:`LambdaGELU`.
        loss: of the model on calibration data: a function of the model that returns a scalar tensor, its mean loss. Two
            calls must be about the same data. For ``"first-order"`` it must be differentiable, not computed under
            ``torch.no_grad()``, and holds the activations of all it computes at once.
        method: ``"first-order"``: Σ g·(ReLU(x) − f(x; λ)), g the gradient of the loss at the site's output; one forward
            and one backward. ``"probe"``: the loss with that site alone as ReLU minus the loss; one forward more for
            every site, exact where the error of the swap is too large for a first order.
        statistics: from which the expected gaps come, of :func:`lambda_gelu.observe`. Default None: from the data of
            the loss itself.

    Returns:
        dict: by site, in the order of :func:`find_sites`.

    Raises:
        ValueError: for another method, a loss that is not a finite scalar or has no gradient, a site that it does not
            reach, statistics of another model, a model that is substituted already or is inside
            DistributedDataParallel (give its ``.module``).
        TypeError: for a loss that cannot be called or returns no tensor.
    """
    sites = find_sites(model)
    if method not in _METHODS:
        raise ValueError(f'method must be "first-order" or "probe", got {method!r}')
    if not callable(loss):
        raise TypeError(f"loss must be a function of the model, got {type(loss).__name__}")
    if any(isinstance(module, nn.parallel.DistributedDataParallel) for module in model.modules()):
        raise ValueError("the model is inside DistributedDataParallel, which waits for gradients: give its .module")
    substituted = [name for name, site in sites.items() if site._substituted]
    if substituted:
        raise ValueError(f"computed as ReLU already, inside relu_substituted: {', '.join(substituted)}")
    if statistics is not None:
        statistics.check_model(model)
        statistics.require_complete("site weights")
    measured = {name: _Gap(site) for name, site in sites.items()}
    costs = (_first_order if method == "first-order" else _probe)(model, measured, loss)
    weights = {}
    for name, site in sites.items():
        gap = measured[name].mean if statistics is None else statistics[name].expected_gap(site.hardness)
        weights[name] = SiteWeight(costs[name], gap, costs[name] / gap if gap > 0 else 0.0)
    return weights


class _Gap:
    """The mean gap of a site, and a factor of it in the output: at 0 the derivative by it is Σ g·gap."""

    def __init__(self, site: LambdaGELU) -> None:
        self.site = site
        self.factor = torch.zeros((), device=site.raw_hardness.device, dtype=torch.float32, requires_grad=True)
        self.count = 0
        self._sum = 0.0

    def add(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> Tensor | None:
        x = first_argument(args, kwargs).detach()
        x = x.to(precise_dtype(x.dtype))
        # ReLU(x) - f(x) = -f(-|x|), to the last digits also where it is small beside x.
        gap = -_lambda_gelu(-x.abs(), self.site.hardness.detach(), self.site.channel_dim)
        self._sum += gap.sum(dtype=widest_dtype(gap.device)).item()
        self.count += gap.numel()
        return (output + (self.factor * gap).to(output.dtype)) if torch.is_grad_enabled() else None

    @property
    def mean(self) -> float:
        return self._sum / self.count


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; its modes, its buffers and torch's random numbers are put back afterwards."""
    # Outside of inference mode nothing can write to a tensor that was made in it.
    buffers = [(buffer, buffer._version, buffer.clone()) for buffer in model.buffers() if not buffer.is_inference()]
    with torch.inference_mode(False), aside(model), uncompiled():
        model.eval()
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, version, value in buffers:
                    if buffer._version != version:
                        buffer.copy_(value)


def _first_order(model: nn.Module, measured: Mapping[str, _Gap], loss: Loss) -> dict[str, float]:
    with _unchanged(model), _hooked(measured), torch.enable_grad():
        value = _checked(loss(model))
        _require_reached(measured)
        if not value.requires_grad:
            raise ValueError("loss has no gradient: it must not be computed under torch.no_grad() or be detached")
        factors = [gap.factor for gap in measured.values()]
        gradients = torch.autograd.grad(value, factors, allow_unused=True)
    return {
        name: 0.0 if gradient is None else gradient.item() for name, gradient in zip(measured, gradients, strict=True)
    }


def _probe(model: nn.Module, measured: Mapping[str, _Gap], loss: Loss) -> dict[str, float]:
    with torch.no_grad():
        with _unchanged(model), _hooked(measured):
            before = _checked(loss(model)).item()
        _require_reached(measured)
        costs = {}
        for name, gap in measured.items():
            gap.site._substituted += 1
            try:
                with _unchanged(model):
                    costs[name] = _checked(loss(model)).item() - before
            finally:
                gap.site._substituted -= 1
    return costs


def _require_reached(measured: Mapping[str, _Gap]) -> None:
    unreached = [name for name, gap in measured.items() if not gap.count]
    if unreached:
        raise ValueError(f"the loss never executes {', '.join(unreached)}")


@contextmanager
def _hooked(measured: Mapping[str, _Gap]) -> Iterator[None]:
    with ExitStack() as stack:
        for gap in measured.values():
            stack.callback(gap.site.register_forward_hook(gap.add, with_kwargs=True).remove)
        yield


def _checked(value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"loss must return a tensor, got {type(value).__name__}")
    if value.numel() != 1:
        raise ValueError(f"loss must return a scalar, got shape {tuple(value.shape)}")
    if not math.isfinite(value.item()):
        raise ValueError(f"loss must be finite, got {value.item()}")
    return value.reshape(())
