"""λ of a model, and σ of its pre-activations, as numbers for a logger."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .._calls import first_argument, uncompiled
from .._dtypes import widest_dtype
from ..modules import LambdaGELU
from ..sites import find_sites


def hardness_metrics(model: nn.Module) -> dict[str, float]:
    """``hardness_min``, ``hardness_mean`` and ``hardness_max`` over all λ, and ``hardness/<site>``, the site's mean.

    Empty where there is no site, as after :func:`lambda_gelu.to_relu_`.
    """
    if not any(isinstance(module, LambdaGELU) for module in model.modules()):
        return {}
    values = {name: site.hardness.tolist() for name, site in find_sites(model).items()}
    every = [value for site in values.values() for value in site]
    return {
        "hardness_min": min(every),
        "hardness_mean": sum(every) / len(every),
        "hardness_max": max(every),
        **{f"hardness/{name}": sum(site) / len(site) for name, site in values.items()},
    }


@contextmanager
def preactivation_std(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Measures σ, the standard deviation of what every site is given within the context.

    Over all calls, all examples and, where a site has λ per channel, per channel; of this process alone. Empty until
    the context ends; sites that were not called, and contexts that end in an exception, give none. What is in
    torch.compile runs eagerly meanwhile, since compiled code does not look for new hooks.

    Yields:
        dict: σ by site name, float64 (float32 where the device has no other), of shape ``(num_parameters,)``.

    Raises:
        ValueError: for a model without a site.
    """
    sites = find_sites(model)
    moments = {name: _Moments(site) for name, site in sites.items()}
    handles = [site.register_forward_pre_hook(moments[name].add, with_kwargs=True) for name, site in sites.items()]
    std: dict[str, Tensor] = {}
    try:
        with uncompiled():
            yield std
    finally:
        for handle in handles:
            handle.remove()
    std |= {name: moment.std() for name, moment in moments.items() if moment.count}


class _Moments:
    """Mean and squared deviation of batches, merged as in Chan, Golub and LeVeque (1979)."""

    def __init__(self, site: LambdaGELU) -> None:
        self._channel_dim = site.channel_dim if site.num_parameters > 1 else None
        self.count = 0
        self._mean: Tensor | float = 0.0
        self._deviation: Tensor | float = 0.0

    @torch.no_grad()
    def add(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = first_argument(args, kwargs).detach()
        rows = x.reshape(1, -1) if self._channel_dim is None else x.movedim(self._channel_dim, 0).flatten(1)
        rows = rows.to(widest_dtype(rows.device))
        count = rows.size(1)
        if count == 0:
            return
        mean = rows.mean(1)
        difference = mean - self._mean
        total = self.count + count
        self._deviation += (rows - mean[:, None]).square().sum(1) + difference.square() * (self.count * count / total)
        self._mean += difference * (count / total)
        self.count = total

    def std(self) -> Tensor:
        return torch.as_tensor(self._deviation / self.count).sqrt()
