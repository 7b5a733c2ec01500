"""Scores that a caller's function gives a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ._calls import same_modes, uncompiled


def as_number(score: Any) -> float:
    """A score as a float.

    Raises:
        TypeError: for what is no number and no tensor of one element.
    """
    if isinstance(score, Tensor) and score.numel() == 1:
        score = score.item()
    try:
        if isinstance(score, (str, bytes)):
            raise TypeError
        return float(score)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"evaluate must give a number, got {type(score).__name__}") from None


def cuda_devices(model: nn.Module) -> list[int]:
    """Whose random numbers the model may use beside the CPU's."""
    devices = {parameter.device for parameter in model.parameters()}
    return sorted(device.index or 0 for device in devices if device.type == "cuda")


@contextmanager
def aside(model: nn.Module) -> Iterator[None]:
    """What runs within leaves the modes of the modules and torch's random numbers as they were."""
    with torch.random.fork_rng(devices=cuda_devices(model)), same_modes(model):
        yield


class Metric:
    """A metric of one model, measured again and again: each time with the same random numbers of torch, and eagerly.

    Args:
        evaluate: takes the model and gives its score.
        higher_is_better: which direction is an improvement.
    """

    def __init__(self, model: nn.Module, evaluate: Callable[[nn.Module], Any], higher_is_better: bool | None) -> None:
        self._model = model
        self._evaluate = evaluate
        self._sign = 1 if higher_is_better else -1

    def __call__(self) -> float:
        """The score now."""
        with aside(self._model), uncompiled():
            return as_number(self._evaluate(self._model))

    def cost(self, score: float, before: float) -> float:
        """By how much a score is worse than another; NaN is worse than anything."""
        cost = self._sign * (before - score)
        return math.inf if math.isnan(cost) else cost

    def improves(self, score: float, before: float) -> bool:
        """Whether a score is better than another; anything is better than NaN."""
        return not math.isnan(score) and (math.isnan(before) or self.cost(score, before) < 0)
