"""λ of a model, and σ of its pre-activations, as numbers for a logger."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..sites import find_sites, has_sites
from ..statistics import observe


def hardness_metrics(model: nn.Module) -> dict[str, float]:
    """``hardness_min``, ``hardness_mean`` and ``hardness_max`` over all λ, and ``hardness/<site>``, the site's mean.

    Empty where there is no site, as after :func:`lambda_gelu.to_relu_`.
    """
    if not has_sites(model):
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

    Over all calls, all examples and, where a site has λ per channel, per channel; of this process alone. NaN where the
    site was given NaN or infinities, and for channels that another process computes. Empty until the context ends;
    sites that were not called, and contexts that end in an exception, give none. :func:`lambda_gelu.observe` measures
    it, and more.

    Yields:
        dict: σ by site name, float64 on the CPU, of shape ``(num_parameters,)``.

    Raises:
        ValueError: for a model without a site.
    """
    std: dict[str, Tensor] = {}
    with observe(model) as statistics:
        yield std
    unseen = statistics.never_executed
    for name, histogram in statistics.items():
        if name not in unseen:
            usable = [channel.count > 0 and not channel.nonfinite for channel in histogram.channels]
            values = [c.std if known else math.nan for c, known in zip(histogram.channels, usable, strict=True)]
            std[name] = torch.tensor(values, dtype=torch.float64, device="cpu")
