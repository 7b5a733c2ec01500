"""What is trained: a data set, a network, an optimizer and their settings. Whoever trains takes no other decision."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lambda_gelu

Activation = Callable[[int, int], nn.Module]
"""Makes the module of one site from its number of channels and their dimension."""

Split = tuple[Tensor, Tensor]
"""x (N, ...) and y (N, ...): images and labels, or windows of tokens and the same one token later."""


def has_sites(network: nn.Module) -> bool:
    return any(isinstance(module, lambda_gelu.LambdaGELU) for module in network.modules())


@dataclass(frozen=True)
class Data:
    """`held_out` decides, `test` is reported, `calibration` is the part of `train` that sites are measured on."""

    train: Split
    held_out: Split
    calibration: Split
    test: Split


@dataclass(frozen=True)
class Score:
    """The mean cross entropy in nats, and accuracy in percent or perplexity."""

    loss: float
    metric: float


def as_float(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """What is stored is what the network is given."""
    return x


@dataclass(frozen=True)
class System:
    """A system of the paper, or a smaller one that says so in its name.

    Learning rates, weight decays, batch sizes and schedules of the rate are ours: the paper's are not known to us.

    Attributes:
        row: which row of the paper's tables it belongs to.
        full_size: whether network and data are the paper's.
        metric_name: ``"accuracy"`` in percent, or ``"perplexity"``.
        steps_per_epoch: default: all of the training data once.
        optimizer: ``"SGD"``, with momentum 0.9, or ``"AdamW"``.
        warmup_epochs, final_rate: the learning rate rises over the first, then falls as a cosine to this part of it.
        clip: largest norm of the gradient.
        score_batch: examples at a time where nothing is trained.
        temperature, lr_multiplier: τ and α of λ; they do not transfer between optimizers.
        load: reads the data from a folder; the second argument says whether to download what is missing.
        prepare: what is stored, on the device, into what the network is given; augmented, where a generator (of the
            CPU) comes along.
    """

    name: str
    title: str
    row: str
    full_size: bool
    metric_name: str
    epochs: int
    batch_size: int
    optimizer: str
    lr: float
    weight_decay: float
    load: Callable[[Path, bool], Data]
    network: Callable[[Activation], nn.Module]
    steps_per_epoch: int | None = None
    warmup_epochs: float = 0.0
    final_rate: float = 1.0
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = None
    score_batch: int = 512
    temperature: float = 0.1
    lr_multiplier: float = 10.0
    prepare: Callable[[Tensor, torch.Generator | None], Tensor] = as_float

    @property
    def higher_is_better(self) -> bool:
        return self.metric_name == "accuracy"

    def better(self, metric: float, than: float | None) -> bool:
        """Whether a metric improves on another; NaN never does."""
        if than is None:
            return not math.isnan(metric)
        return metric > than if self.higher_is_better else metric < than

    def steps_of_epoch(self, data: Data) -> int:
        """An incomplete last batch is left out, so that every step has the same size."""
        whole = max(1, len(data.train[1]) // self.batch_size)
        return whole if self.steps_per_epoch is None else min(whole, self.steps_per_epoch)

    def make_optimizer(self, network: nn.Module, lr_multiplier: float) -> torch.optim.Optimizer:
        """With ``initial_lr`` in every group, which :meth:`set_rate` scales."""
        groups: list[dict[str, Any]] = [{"params": list(network.parameters()), "lr": self.lr}]
        if has_sites(network):
            groups = lambda_gelu.param_groups(
                network, lr=self.lr, lr_multiplier=lr_multiplier, weight_decay=self.weight_decay
            )
        for group in groups:
            group["initial_lr"] = group["lr"]
        if self.optimizer == "SGD":
            return torch.optim.SGD(groups, lr=self.lr, momentum=0.9, weight_decay=self.weight_decay)
        return torch.optim.AdamW(groups, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay)

    def rate(self, step: int, steps_per_epoch: int, epochs: int) -> float:
        """The part of the learning rate that step number `step` uses; beyond the last step, that of the last."""
        warmup = round(self.warmup_epochs * steps_per_epoch)
        if step < warmup:
            return (step + 1) / warmup
        progress = min(1.0, (step - warmup) / max(1, epochs * steps_per_epoch - warmup))
        return self.final_rate + (1 - self.final_rate) * (1 + math.cos(math.pi * progress)) / 2

    def batch(
        self, split: Split, chosen: Tensor | slice, device: str, generator: torch.Generator | None = None
    ) -> Split:
        """What the network is given and the int64 targets, of the examples that are chosen."""
        x, y = split[0][chosen], split[1][chosen]
        return self.prepare(x.to(device), generator), y.long().to(device)

    def in_order(self, split: Split, device: str) -> Iterator[Split]:
        """Everything once."""
        for start in range(0, len(split[1]), self.score_batch):
            yield self.batch(split, slice(start, start + self.score_batch), device)

    def loss(self, logits: Tensor, target: Tensor, reduction: str = "mean") -> Tensor:
        return F.cross_entropy(logits.flatten(0, -2), target.flatten(), reduction=reduction)

    def score_of(self, loss: float, correct: int, count: int) -> Score:
        mean = loss / count
        if self.higher_is_better:
            return Score(mean, 100 * correct / count)
        return Score(mean, math.exp(min(mean, 700.0)))

    def settings(self) -> dict[str, Any]:
        """All of it that defines a training and is a plain value, for a record."""
        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "title"}
        return {key: value for key, value in values.items() if not callable(value)}
