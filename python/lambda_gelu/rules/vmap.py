"""vmap: the batch dimension becomes another dimension of the input, or part of its channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_forward = torch.ops.lambda_gelu.lambda_gelu.default
_backward = torch.ops.lambda_gelu.lambda_gelu_backward.default


def _batch_first(tensor: Tensor, dim: int | None, batch_size: int) -> Tensor:
    return tensor.expand(batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _wrap(channel_dim: int, rank: int) -> int:
    if not -rank <= channel_dim < rank:
        raise ValueError(
            f"channel_dim must be in [{-rank}, {rank - 1}] for an input of {rank} dimensions, got {channel_dim}"
        )
    return channel_dim % rank


Reshape = Callable[[Tensor], Tensor]


def _channels_with_batch(hardness: Tensor, channel_dim: int, rank: int) -> tuple[Reshape, Reshape]:
    """How to make (B, ...) examples one input whose dimension 0 runs over batch and channel, and back.

    hardness: (B, n), one row per example. rank: of one example.
    """
    batch_size, count = hardness.shape
    if count == 1:  # one λ per example: the batch dimension is the channel
        return (lambda tensor: tensor), (lambda tensor: tensor)
    dim = _wrap(channel_dim, rank) + 1
    return (
        lambda tensor: tensor.movedim(dim, 1).flatten(0, 1),
        lambda tensor: tensor.unflatten(0, (batch_size, count)).movedim(1, dim),
    )


def _forward_vmap(  # noqa: PLR0917 (the arguments of the op)
    info: Any,
    in_dims: tuple[int | None, ...],
    input: Tensor,
    hardness: Tensor,
    channel_dim: int = 1,
    temperature: float | None = None,
) -> tuple[Tensor, int]:
    input_dim, hardness_dim = in_dims[:2]
    if hardness_dim is None and input_dim is not None:
        dim = 0 if hardness.numel() == 1 else _wrap(channel_dim, input.dim() - 1) + 1
        return _forward(input.movedim(input_dim, 0), hardness, dim, temperature), 0
    input = _batch_first(input, input_dim, info.batch_size)
    hardness = _batch_first(hardness, hardness_dim, info.batch_size)
    fold, unfold = _channels_with_batch(hardness, channel_dim, input.dim() - 1)
    return unfold(_forward(fold(input), hardness.flatten(), 0, temperature)), 0


def _backward_vmap(  # noqa: PLR0917
    info: Any,
    in_dims: tuple[int | None, ...],
    grad_output: Tensor,
    input: Tensor,
    hardness: Tensor,
    channel_dim: int = 1,
    temperature: float | None = None,
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    # A shared λ is expanded too: every example has a gradient of its own for it.
    grad_output, input, hardness = (
        _batch_first(tensor, dim, info.batch_size)
        for tensor, dim in zip((grad_output, input, hardness), in_dims[:3], strict=True)
    )
    fold, unfold = _channels_with_batch(hardness, channel_dim, input.dim() - 1)
    grad_input, grad_hardness = _backward(fold(grad_output), fold(input), hardness.flatten(), 0, temperature)
    return (unfold(grad_input), grad_hardness.unflatten(0, hardness.shape)), (0, 0)


def _inplace_vmap(*_: Any) -> None:
    raise RuntimeError(
        "lambda_gelu_backward_ writes into grad_output, which vmap cannot have done; lambda_gelu_backward returns it"
    )


def register() -> None:
    """Once, before the first vmap: without a rule torch warns and loops."""
    torch.library.register_vmap("lambda_gelu::lambda_gelu", _forward_vmap)
    torch.library.register_vmap("lambda_gelu::lambda_gelu_backward", _backward_vmap)
    torch.library.register_vmap("lambda_gelu::lambda_gelu_backward_", _inplace_vmap)
