"""What is noted of a network: its score, its score as if substituted, and its sites."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

import lambda_gelu

from .distributed import Ranks
from .system import Score, Split, System, has_sites


@contextlib.contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(was_training)


def score(system: System, network: nn.Module, split: Split, device: str, ranks: Ranks | None = None) -> Score:
    """In eval mode, shared among the processes."""
    ranks = ranks or Ranks()
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    with evaluating(network):
        for number, (x, target) in enumerate(system.in_order(split, device)):
            if number % ranks.size == ranks.rank:
                logits = network(x)
                right = (logits.flatten(0, -2).argmax(-1) == target.flatten()).sum()
                loss = system.loss(logits, target, "sum")
                sums += torch.stack([loss.double(), right.double(), loss.new_tensor(target.numel()).double()])
    loss_sum, correct, count = ranks.total(sums).tolist()
    return system.score_of(loss_sum, int(correct), int(count))


def calibrate(system: System, network: nn.Module, split: Split, device: str) -> None:
    """Runs a network on all of it, for whoever looks at it meanwhile."""
    with evaluating(network):
        for x, _ in system.in_order(split, device):
            network(x)


def observed(
    system: System, network: nn.Module, split: Split, device: str, ranks: Ranks | None = None
) -> lambda_gelu.Statistics:
    """What its sites are given; shared among the processes."""
    ranks = ranks or Ranks()
    with evaluating(network), lambda_gelu.observe(network) as statistics:
        for number, (x, _) in enumerate(system.in_order(split, device)):
            if number % ranks.size == ranks.rank:
                network(x)
    return ranks.merged(statistics)


def convert_(network: nn.Module) -> None:
    """Every GELU becomes a λ-GELU with λ = 1, which is the same function; a network with λ stays as it is."""
    if has_sites(network):
        return
    lambda_gelu.convert_(network)
    for site in lambda_gelu.find_sites(network).values():
        site.freeze_hardness()
        site.set_hardness(1.0)


def with_sites(network: nn.Module) -> nn.Module | None:
    """A network with λ itself; a converted copy of a GELU network; None for ReLU."""
    if has_sites(network):
        return network
    if not any(isinstance(module, nn.GELU) for module in network.modules()):
        return None
    converted = copy.deepcopy(network)
    convert_(converted)
    return converted


def hardness(network: nn.Module) -> list[list[float]]:
    """Every λ of every site."""
    return [site.hardness.detach().double().tolist() for site in lambda_gelu.find_sites(network).values()]


def sites(network: nn.Module, statistics: lambda_gelu.Statistics) -> dict[str, list[float]]:
    """By site, in the model's order: mean λ, σ of what it is given, κ = λσ, SER of the swap in dB, zeros of ReLU."""
    found: dict[str, list[float]] = {key: [] for key in ("hardness", "sigma", "kappa", "ser_db", "zeros")}
    every = lambda_gelu.find_sites(network)
    spread = any(site.num_parameters > 1 for site in every.values())
    if spread:
        found |= {"hardness_min": [], "hardness_max": []}
    for name, site in every.items():
        histogram, values = statistics[name], site.hardness.detach()
        asked = values if site.num_parameters > 1 else values.item()
        mean = values.double().mean().item()
        found["hardness"].append(mean)
        found["sigma"].append(histogram.std)
        found["kappa"].append(mean * histogram.std)
        found["ser_db"].append(histogram.ser_db(asked))
        found["zeros"].append(histogram.zero_share)
        if spread:
            found["hardness_min"].append(values.min().item())
            found["hardness_max"].append(values.max().item())
    return found


def drift(now: list[list[float]], before: list[list[float]]) -> list[float]:
    """|λ(t) − λ(t−1)| of every site, the mean over its channels."""
    return [
        sum(abs(a - b) for a, b in zip(new, old, strict=True)) / len(new) for new, old in zip(now, before, strict=True)
    ]


def facts(network: nn.Module, statistics: lambda_gelu.Statistics) -> list[dict[str, Any]]:
    """As :func:`sites`, one dictionary for each."""
    columns = sites(network, statistics)
    names = list(lambda_gelu.find_sites(network))
    return [
        {"name": name} | {key: values[index] for key, values in columns.items()} for index, name in enumerate(names)
    ]
