"""Bias correction: the shift that the swap adds on average, taken back in the layers behind a site.

ReLU(x) = f(x; λ) + e(x) with e >= 0: the swap adds E[e] to each channel of a site's output on average. A linear layer
or convolution behind it takes that back with b − W E[e], a batch norm with running_mean + E[e]. No training is needed,
but what e does beyond its mean stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ._dtypes import widest_dtype
from ._layers import shift_of, weight_of
from .modules import LambdaGELU
from .statistics import Statistics
from .successors import NoSuccessor, Successor, SuccessorLayer


class BiasCorrection:
    """The correction of one site, which can be taken back to the last bit.

    Args:
        successor: where it goes.
        gaps: E[ReLU(x) − f(x; λ)] for each channel of the site.
    """

    def __init__(self, successor: Successor, gaps: Tensor) -> None:
        self._successor = successor
        self._gaps = gaps
        self._before: list[tuple[nn.Module, str, Tensor | None]] = []

    @torch.no_grad()
    def apply(self) -> None:
        """Writes the corrected biases and running means; a layer that has no bias gets one."""
        for layer, shift in _shifts(self._successor.layers, self._gaps):
            module = layer.module
            if layer.kind == "norm":
                self._write(module, "running_mean", shift)
            elif layer.has_parameter:
                self._write(module, "bias", -shift)
            else:
                weight = weight_of(module)
                self._before.append((module, "bias", None))
                bias = -shift.to(weight.device, weight.dtype)
                module.bias = nn.Parameter(bias, requires_grad=weight.requires_grad)

    def _write(self, module: nn.Module, key: str, change: Tensor) -> None:
        tensor = getattr(module, key)
        self._before.append((module, key, tensor.clone()))
        tensor.copy_(tensor.to(widest_dtype(tensor.device)) + change.to(tensor.device))

    @torch.no_grad()
    def undo(self) -> None:
        """Puts back what was there."""
        while self._before:
            module, key, before = self._before.pop()
            if before is None:
                module.bias = None
            else:
                getattr(module, key).copy_(before)


def _shifts(layers: tuple[SuccessorLayer, ...], gaps: Tensor) -> Iterator[tuple[SuccessorLayer, Tensor]]:
    """What each layer that can take it has to take back, for each of its output channels, or, of a norm, channels."""
    for layer in layers:
        arriving = gaps[list(layer.channels)]
        if layer.kind == "norm":
            yield layer, arriving
            continue
        shift = shift_of(layer.module, arriving)
        if not layer.norms:
            yield layer, shift
        for norm in layer.norms:
            yield norm, shift[list(norm.channels)]


def why_not_corrected(successor: Successor | NoSuccessor, add_bias: bool) -> str:
    """Why a site is not corrected, for a report; empty where it can be."""
    if isinstance(successor, NoSuccessor):
        return str(successor)
    lacking = [layer.name for layer in successor.layers if not layer.has_parameter]
    if lacking and not add_bias:
        return f"no bias: {', '.join(lacking)} has none (add_bias=True gives it one)"
    return ""


def channel_dims(
    sites: Mapping[str, LambdaGELU], successors: Mapping[str, Successor | NoSuccessor]
) -> dict[str, int | None]:
    """The dimension whose channels each site must be observed by; None: as a whole."""
    dims: dict[str, int | None] = {}
    for name, site in sites.items():
        successor = successors[name]
        if site.num_parameters > 1:
            dims[name] = site.channel_dim
        else:
            dims[name] = successor.channel_dim if isinstance(successor, Successor) else None
    return dims


def expected_gaps(statistics: Statistics, name: str, site: LambdaGELU, successor: Successor) -> Tensor:
    """E[ReLU(x) − f(x; λ)] for each channel of a site: float64, on the CPU.

    Raises:
        ValueError: for statistics of other channels than the layers behind the site take.
    """
    histogram = statistics[name]
    dim = histogram.channel_dim
    if dim not in successor.same_dims or histogram.num_channels != successor.num_channels:
        got = "one histogram" if dim is None else f"{histogram.num_channels} channels in dimension {dim}"
        raise ValueError(
            f"{name}: the correction needs statistics of {successor.num_channels} channels in dimension "
            f"{successor.channel_dim}, got {got}: observe(model, per='channel', channel_dim={{{name!r}: "
            f"{successor.channel_dim}}}), or give calibrate instead"
        )
    hardness = site.hardness.detach().tolist()
    each = hardness if len(hardness) > 1 else hardness * histogram.num_channels
    gaps = [channel.expected_gap(value) for channel, value in zip(histogram.channels, each, strict=True)]
    return torch.tensor(gaps, dtype=torch.float64, device="cpu")
