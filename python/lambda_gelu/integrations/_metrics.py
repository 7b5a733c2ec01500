"""λ of a model as numbers for a logger."""

from __future__ import annotations

from torch import nn

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
