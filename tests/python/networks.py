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
