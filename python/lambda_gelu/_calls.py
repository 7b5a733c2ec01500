"""Which modules a model calls, in which order and with what."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def record_calls(model: nn.Module, modules: Iterable[nn.Module], example_inputs: Any) -> list[tuple[nn.Module, Tensor]]:
    """Runs the model once and returns the calls of `modules` in order, each with its input on the meta device.

    The run is in eval mode and without gradients, and leaves the model as it was.

    Args:
        example_inputs: a tensor, a tuple or list of positional arguments, or a mapping of keyword arguments.
    """
    calls: list[tuple[nn.Module, Tensor]] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        argument = args[0] if args else kwargs["input"]
        calls.append((module, argument.to("meta")))

    handles = [module.register_forward_pre_hook(record, with_kwargs=True) for module in modules]
    try:
        with _evaluating(model), torch.no_grad():
            if isinstance(example_inputs, Mapping):
                model(**example_inputs)
            elif isinstance(example_inputs, (tuple, list)):
                model(*example_inputs)
            else:
                model(example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
