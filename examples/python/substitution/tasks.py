"""The three tasks: network, optimizer, batches, scores. Whoever trains takes no other decision."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lambda_gelu
from examples.datasets import digits, fashion_mnist, wikitext_2
from lambda_gelu import LambdaGELU

Batch = tuple[Tensor, Tensor]
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"GELU": nn.GELU, "λ-GELU": LambdaGELU, "ReLU": nn.ReLU}


@dataclass(frozen=True)
class Score:
    """`loss` decides; `metric`, accuracy in percent or perplexity, is reported."""

    loss: float
    metric: float


@dataclass(frozen=True)
class Task:
    """A data set and how a network is trained on it.

    Attributes:
        steps: of a training from scratch, one batch each.
        score_every: steps between two scores: an epoch, where there is one.
        curve_examples: how much of the calibration data measures SER at each of them.
        warmup_steps, final_rate: the learning rate rises over the first, then falls as a cosine to this part of it.
        lr_multiplier: α of the λ group.
    """

    name: str
    title: str
    metric_name: str
    higher_is_better: bool
    steps: int
    score_every: int
    curve_examples: int
    optimizer: str
    lr: float
    weight_decay: float
    warmup_steps: int
    final_rate: float
    lr_multiplier: float
    batch_size: int
    make_network: Callable[[Callable[[], nn.Module]], nn.Module]
    splits: dict[str, Any]

    def network(self, activation: str, seed: int) -> nn.Module:
        torch.manual_seed(seed)
        return self.make_network(ACTIVATIONS[activation])

    def make_optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """With ``initial_lr`` in every group, which :meth:`set_rate` scales."""
        groups: list[dict[str, Any]] = [{"params": list(network.parameters()), "lr": self.lr}]
        if any(isinstance(module, LambdaGELU) for module in network.modules()):
            groups = lambda_gelu.param_groups(
                network, lr=self.lr, lr_multiplier=self.lr_multiplier, weight_decay=self.weight_decay
            )
        for group in groups:
            group["initial_lr"] = group["lr"]
        if self.optimizer == "SGD":
            return torch.optim.SGD(groups, lr=self.lr, momentum=0.9, weight_decay=self.weight_decay)
        return torch.optim.AdamW(groups, lr=self.lr, betas=(0.9, 0.95), weight_decay=self.weight_decay)

    def rate(self, step: int) -> float:
        """The part of the learning rate that step number `step` uses; beyond the last step, that of the last."""
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps))
        return self.final_rate + (1 - self.final_rate) * (1 + math.cos(math.pi * progress)) / 2

    def set_rate(self, optimizer: torch.optim.Optimizer, rate: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate

    def batches(self, seed: int) -> Iterator[Batch]:
        """Training batches without end, the same for the same seed."""
        return iter(_batches(self.splits["train"], self.batch_size, torch.Generator().manual_seed(seed)))

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, -2), target.flatten())

    @torch.no_grad()
    def score(self, network: nn.Module, split: str) -> Score:
        """On a split, in eval mode: ``"held_out"`` decides, ``"validation"`` is for curves, ``"test"`` is reported."""
        was_training = network.training
        network.eval()
        loss, correct, count = 0.0, 0, 0
        for x, target in in_order(self.splits[split], 1024):
            logits = network(x).flatten(0, -2)
            loss += F.cross_entropy(logits, target.flatten(), reduction="sum").item()
            correct += int((logits.argmax(-1) == target.flatten()).sum())
            count += target.numel()
        network.train(was_training)
        mean = loss / count
        return Score(mean, 100 * correct / count if self.higher_is_better else math.exp(mean))

    @torch.no_grad()
    def calibrate(self, network: nn.Module, examples: int | None = None) -> None:
        """Runs the calibration data, a part of the training data, through the network in eval mode.

        Args:
            examples: the first of them (images, or windows of a text). Default: all.
        """
        was_training = network.training
        network.eval()
        split = self.splits["calibration"]
        for x, _ in in_order(split if examples is None else _head(split, examples), 1024):
            network(x)
        network.train(was_training)

    def settings(self) -> dict[str, Any]:
        """All that defines the task, for a record."""
        kept = ("steps", "score_every", "optimizer", "lr", "weight_decay", "warmup_steps", "final_rate")
        sizes = {name: _count(split) for name, split in self.splits.items()}
        return {key: getattr(self, key) for key in (*kept, "lr_multiplier", "batch_size")} | {"sizes": sizes}

    def shortened(self, steps: int, examples: int) -> Task:
        """The same task with less of everything, to see whether it runs."""
        splits = {name: _head(split, examples) for name, split in self.splits.items()}
        return replace(
            self, steps=steps, score_every=max(1, steps // 4), warmup_steps=min(self.warmup_steps, 2), splits=splits
        )


def make(name: str, folder: Path, download: bool = False) -> Task:
    """The task of this name.

    Args:
        folder: where the data is, or is downloaded to.

    Raises:
        MissingDataError: where its data is not.
        CorruptDataError: where it is not the published data.
    """
    return TASKS[name](folder, download)


def _digits(folder: Path, download: bool) -> Task:
    images = digits.load()
    from digits import make_network  # noqa: PLC0415 - which ends the process where scikit-learn is missing

    return Task(
        name="digits",
        title="handwritten digits, MLP 4 × 64",
        metric_name="accuracy",
        higher_is_better=True,
        steps=900,
        score_every=15,
        curve_examples=512,
        optimizer="SGD",
        lr=0.05,
        weight_decay=1e-4,
        warmup_steps=0,
        final_rate=1.0,
        lr_multiplier=1.0,
        batch_size=64,
        make_network=make_network,
        splits={
            "train": images.train,
            "calibration": images.train,
            "held_out": images.held_out,
            "validation": images.test,
            "test": images.test,
        },
    )


def _fashion_mnist(folder: Path, download: bool) -> Task:
    images = fashion_mnist.load(folder, download)

    def make_network(activation: Callable[[], nn.Module]) -> nn.Module:
        hidden = [layer for _ in range(3) for layer in (nn.Linear(256, 256), activation())]
        return nn.Sequential(nn.Linear(784, 256), activation(), *hidden, nn.Linear(256, 10))

    return Task(
        name="fashion-mnist",
        title="Fashion-MNIST, MLP 4 × 256",
        metric_name="accuracy",
        higher_is_better=True,
        steps=8580,
        score_every=429,
        curve_examples=512,
        optimizer="SGD",
        lr=0.05,
        weight_decay=5e-4,
        warmup_steps=0,
        final_rate=0.1,
        lr_multiplier=1.0,
        batch_size=128,
        make_network=make_network,
        splits={
            "train": images.train,
            "calibration": _head(images.train, 5000),
            "held_out": images.held_out,
            "validation": images.held_out,
            "test": images.test,
        },
    )


def _gpt(folder: Path, download: bool) -> Task:
    text = wikitext_2.load_bytes(folder, download)
    return Task(
        name="gpt",
        title="WikiText-2 in bytes, GPT 4 × 128",
        metric_name="perplexity",
        higher_is_better=False,
        steps=1100,
        score_every=55,
        curve_examples=32,
        optimizer="AdamW",
        lr=2e-3,
        weight_decay=0.1,
        warmup_steps=50,
        final_rate=0.1,
        lr_multiplier=10.0,
        batch_size=16,
        make_network=GPT,
        splits={
            "train": text.train,
            "calibration": _head(text.train, 512),
            "held_out": _head(text.held_out, 256),
            "validation": _head(text.held_out, 256),
            "test": _head(text.test, 2048),
        },
    )


def _gpt_repeated(folder: Path, download: bool) -> Task:
    """The GPT on so little text that it overfits, as the paper's GPT-2 does on WikiText-2."""
    task = _gpt(folder, download)
    splits = task.splits | {"train": _head(task.splits["train"], 256)}
    return replace(task, name="gpt-repeated", title="32 KiB of WikiText-2 in bytes, GPT 4 × 128", splits=splits)


TASKS: dict[str, Callable[[Path, bool], Task]] = {
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
    "gpt": _gpt,
    "gpt-repeated": _gpt_repeated,
}


# --- the byte-level GPT -----------------------------------------------------------------------------------------------

CONTEXT, WIDTH, HEADS, LAYERS = 128, 128, 4, 4


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.attention = Attention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), activation(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norms[0](x))
        return x + self.mlp(self.norms[1](x))


class GPT(nn.Module):
    """Four pre-norm blocks; the embedding of the 256 bytes is the output layer too: 0.84 million parameters."""

    def __init__(self, activation: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.embedding = nn.Embedding(256, WIDTH)
        self.position = nn.Parameter(torch.zeros(CONTEXT, WIDTH))
        self.blocks = nn.Sequential(*(Block(activation) for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2 and "raw_hardness" not in name:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.embedding(x) + self.position[: x.shape[1]])
        return F.linear(self.norm(x), self.embedding.weight)


# --- batches ----------------------------------------------------------------------------------------------------------


def _batches(split: Any, batch_size: int, order: torch.Generator) -> Iterator[Batch]:
    while True:
        if isinstance(split, Tensor):
            starts = torch.randint(len(split) - CONTEXT, (batch_size, 1), generator=order)
            window = split[starts + torch.arange(CONTEXT + 1)].long()
            yield window[:, :-1], window[:, 1:]
            continue
        for chosen in torch.randperm(len(split[1]), generator=order).split(batch_size):
            yield split[0][chosen], split[1][chosen]


def in_order(split: Any, batch_size: int) -> Iterator[Batch]:
    """Everything once: images, or the windows of a text one after the other."""
    if isinstance(split, Tensor):
        windows = (len(split) - 1) // CONTEXT
        x, target = (split[shift : shift + windows * CONTEXT].long().reshape(windows, CONTEXT) for shift in (0, 1))
        yield from zip(x.split(batch_size // 16), target.split(batch_size // 16), strict=True)
    else:
        yield from zip(split[0].split(batch_size), split[1].split(batch_size), strict=True)


def _head(split: Any, examples: int) -> Any:
    if isinstance(split, Tensor):
        return split[: examples * CONTEXT + 1]
    return split[0][:examples], split[1][:examples]


def _count(split: Any) -> int:
    return len(split) if isinstance(split, Tensor) else len(split[1])
