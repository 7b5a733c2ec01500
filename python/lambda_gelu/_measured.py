"""The SER of the swap, measured on the tensors that reach the sites."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ._calls import first_argument
from ._dtypes import widest_dtype
from .modules import LambdaGELU

_lambda_gelu = torch.ops.lambda_gelu.lambda_gelu.default


@contextmanager
def measured_ser(sites: Mapping[str, LambdaGELU]) -> Iterator[dict[str, float]]:
    """Sums ReLU(x)² and (ReLU(x) − f(x; λ))² over what the sites are given within the context, in float64.

    Yields:
        dict: by site, empty within the context, the SER in dB afterwards; sites that were not called, or whose input is
        spread over ranks, are not in it.
    """
    meters = {name: _Meter(site) for name, site in sites.items()}
    handles = [site.register_forward_pre_hook(meters[name], with_kwargs=True) for name, site in sites.items()]
    result: dict[str, float] = {}
    try:
        yield result
    finally:
        for handle in handles:
            handle.remove()
    result.update({name: meter.ser_db() for name, meter in meters.items() if meter.count})


class _Meter:
    def __init__(self, site: LambdaGELU) -> None:
        self.count = 0
        self._hardness = site.hardness.detach()
        self._channel_dim = site.channel_dim
        self._signal = 0.0
        self._error = 0.0

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        input = first_argument(args, kwargs)
        if not isinstance(input, Tensor) or hasattr(input, "device_mesh"):
            return
        x = input.detach().to(widest_dtype(input.device))
        relu = x.relu()
        gap = relu - _lambda_gelu(x, self._hardness.to(x), self._channel_dim)
        self._signal += relu.square().sum().item()
        self._error += gap.square().sum().item()
        self.count += x.numel()

    def ser_db(self) -> float:
        if self._error == 0:
            return math.inf
        return 10 * math.log10(self._signal / self._error) if self._signal > 0 else -math.inf
