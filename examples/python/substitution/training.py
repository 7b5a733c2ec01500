"""A plain training loop, what is noted while it runs, and the checkpoint it leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import lambda_gelu
from lambda_gelu import LambdaGELU
from progress import Bar

from .tasks import Batch, Task


def train(
    task: Task,
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Batch],
    *,
    steps: range,
    bar: Bar,
    rate: Callable[[int], float] | None = None,
    extra_loss: Callable[[Tensor, Tensor], Tensor | float] | None = None,
    after_step: Callable[[int], None] | None = None,
) -> None:
    """Trains over `steps`, numbered from the start of the run.

    Args:
        rate: part of the learning rate at a step; default: that of the task.
        extra_loss: of the inputs and the logits; is added to the loss.
        after_step: called with the number of steps done.
    """
    network.train()
    for step in steps:
        task.set_rate(optimizer, (rate or task.rate)(step))
        optimizer.zero_grad()
        x, target = next(batches)
        logits = network(x)
        loss = task.loss(logits, target)
        if extra_loss is not None:
            loss = loss + extra_loss(x, logits)
        loss.backward()
        optimizer.step()
        if after_step is not None:
            after_step(step + 1)
        bar.update()


def scores(task: Task, network: nn.Module, split: str = "test") -> dict[str, float]:
    return asdict(task.score(network, split))


def hardness_of(network: nn.Module) -> dict[str, float]:
    """λ of every site, the mean over its channels."""
    return {name: site.hardness.mean().item() for name, site in lambda_gelu.find_sites(network).items()}


@torch.no_grad()
def measured(task: Task, network: nn.Module, examples: int | None = None) -> dict[str, dict[str, float]]:
    """Of every site on the calibration data, directly: its activation beside ReLU, without a histogram between.

    Returns:
        ``{site: {"hardness", "sigma", "effective_hardness", "ser_db", "gap", "zeros_before", "zeros_after"}}``; the gap
        is the mean of ReLU(x) − f, zeros are shares of outputs that are exactly 0 as they stand and as ReLU.
    """
    sites = lambda_gelu.find_sites(network)
    sums = {name: torch.zeros(7, dtype=torch.float64) for name in sites}

    def note(name: str) -> Callable[[LambdaGELU, tuple[Tensor], Tensor], None]:
        def hook(site: LambdaGELU, inputs: tuple[Tensor], output: Tensor) -> None:
            x, f = inputs[0].double(), output.double()
            relu = x.clamp(min=0)
            gap = relu - f
            parts = (x, x.square(), relu.square(), gap, gap.square(), f == 0, relu == 0)
            sums[name] += torch.stack([part.double().mean() for part in parts]) * x.numel()
            counts[name] += x.numel()

        return hook

    counts = dict.fromkeys(sites, 0)
    handles = [site.register_forward_hook(note(name)) for name, site in sites.items()]
    try:
        task.calibrate(network, examples)
    finally:
        for handle in handles:
            handle.remove()
    result = {}
    for name, site in sites.items():
        mean, square, signal, gap, error, before, after = (sums[name] / counts[name]).tolist()
        sigma, hardness = (square - mean**2) ** 0.5, site.hardness.mean().item()
        ser_db = 10 * torch.log10(torch.tensor(signal / error)).item()
        result[name] = {
            "hardness": hardness,
            "sigma": sigma,
            "effective_hardness": hardness * sigma,
            "ser_db": ser_db,
            "gap": gap,
            "zeros_before": before,
            "zeros_after": after,
        }
    return result


def save(path: Path, network: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".part")
    torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict()}, temporary)
    temporary.replace(path)  # a run that is interrupted leaves no half checkpoint


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)
