"""A small network for tests of whole models."""

import torch
from torch import nn

from lambda_gelu import LambdaGELU


def network_of_every_kind():
    """4 features to 3, with 4 sites: one λ and one per channel, each learned and frozen. Always the same weights."""
    torch.manual_seed(0)
    sites = [LambdaGELU(n, init_hardness=torch.linspace(1.2, 4, n)) for n in (1, 6, 1, 6)]
    for site in sites[2:]:
        site.freeze_hardness()
        site.set_hardness(torch.linspace(0.7, 2, site.num_parameters))
    return nn.Sequential(nn.Linear(4, 6), *sites, nn.Linear(6, 3))


def sites_alone(*hardness, num_parameters=1):
    """Nothing but sites, in float64, so that λ can be compared with arithmetic on doubles."""
    sites = [LambdaGELU(num_parameters, init_hardness=value, dtype=torch.float64) for value in hardness]
    return nn.Sequential(*sites)


def hardness_of(model):
    """λ of every site that is a child of the model, by channel."""
    return [site.hardness.tolist() for site in model]
