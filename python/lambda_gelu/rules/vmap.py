"""vmap: the batch dimension becomes another dimension of the input, or part of its channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_forward = torch.ops.lambda_gelu.lambda_gelu.default
_backward = torch.ops.lambda_gelu.lambda_gelu_backward.default
_observe = torch.ops.lambda_gelu.observe_.default


def _batch_first(tensor: Tensor, dim: int | None, batch_size: int) -> Tensor:
    return tensor.expand(batch_size, *tensor.shape) if dim is None else tensor.movedim(dim, 0)


def _channel_dim(hardness: torch.Size, input: torch.Size, channel_dim: int) -> int:
    """The dimension of one example along which λ varies, in [0, len(input)); 0 where there is one λ.

    The operator's own checks, in terms of an example: it would name the batch.
    """
    if len(hardness) != 1:
        raise ValueError(f"hardness must have one dimension, got shape {list(hardness)}")
    count, rank = hardness[0], len(input)
    if count == 1:
        return 0
    if rank == 0:
        raise ValueError(f"hardness must have 1 element for an input without dimensions, got {count}")
    if not -rank <= channel_dim < rank:
        raise ValueError(
            f"channel_dim must be in [{-rank}, {rank - 1}] for an input of shape {list(input)}, got {channel_dim}"
        )
    dim = channel_dim % rank
    if count != input[dim]:
        raise ValueError(f"hardness must have 1 or {input[dim]} elements (input.size({dim})), got {count}")
    return dim


Reshape = Callable[[Tensor], Tensor]


def _channels_with_batch(hardness: Tensor, channel_dim: int) -> tuple[Reshape, Reshape]:
    """How to make (B, ...) examples one input whose dimension 0 runs over batch and channel, and back.

    hardness: (B, n), one row per example. channel_dim: of one example, not negative.
    """
    batch_size, count = hardness.shape
    if count == 1:  # one λ per example: the batch dimension is the channel
        return (lambda tensor: tensor), (lambda tensor: tensor)
    dim = channel_dim + 1
    return (
        lambda tensor: tensor.movedim(dim, 1).flatten(0, 1),
        lambda tensor: tensor.unflatten(0, (batch_size, count)).movedim(1, dim),
    )


def _example_shape(tensor: Tensor, dim: int | None) -> torch.Size:
    if dim is None:
        return tensor.shape
    dim %= tensor.dim()
    return tensor.shape[:dim] + tensor.shape[dim + 1 :]


def _forward_vmap(  # noqa: PLR0917 (the arguments of the op)
    info: Any,
    in_dims: tuple[int | None, ...],
    input: Tensor,
    hardness: Tensor,
    channel_dim: int = 1,
    temperature: float | None = None,
) -> tuple[Tensor, int]:
    input_dim, hardness_dim = in_dims[:2]
    channel = _channel_dim(_example_shape(hardness, hardness_dim), _example_shape(input, input_dim), channel_dim)
    if hardness_dim is None and input_dim is not None:
        return _forward(input.movedim(input_dim, 0), hardness, channel + 1, temperature), 0
    input = _batch_first(input, input_dim, info.batch_size)
    hardness = _batch_first(hardness, hardness_dim, info.batch_size)
    fold, unfold = _channels_with_batch(hardness, channel)
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
    channel = _channel_dim(_example_shape(hardness, in_dims[2]), _example_shape(input, in_dims[1]), channel_dim)
    # A shared λ is expanded too: every example has a gradient of its own for it.
    grad_output, input, hardness = (
        _batch_first(tensor, dim, info.batch_size)
        for tensor, dim in zip((grad_output, input, hardness), in_dims[:3], strict=True)
    )
    fold, unfold = _channels_with_batch(hardness, channel)
    grad_input, grad_hardness = _backward(fold(grad_output), fold(input), hardness.flatten(), 0, temperature)
    return (unfold(grad_input), grad_hardness.unflatten(0, hardness.shape)), (0, 0)


def _inplace_vmap(*_: Any) -> None:
    raise RuntimeError(
        "lambda_gelu_backward_ writes into grad_output, which vmap cannot have done; lambda_gelu_backward returns it"
    )


def _observe_vmap(  # noqa: PLR0917
    info: Any,
    in_dims: tuple[int | None, ...],
    input: Tensor,
    counts: Tensor,
    moments: Tensor,
    channel_dim: int = 1,
) -> tuple[None, None]:
    """All examples count together, as they do in a batch."""
    if in_dims[1] is not None or in_dims[2] is not None:
        raise RuntimeError("observe_ adds to counts and moments, which must not be mapped over by vmap")
    rank = input.dim() - 1
    if counts.size(0) != 1 and not -rank <= channel_dim < rank:
        raise ValueError(f"channel_dim must be in [{-rank}, {rank - 1}] for an example, got {channel_dim}")
    _observe(input.movedim(in_dims[0], 0), counts, moments, channel_dim + (channel_dim >= 0))
    return None, None


def register() -> None:
    """Once, before the first vmap: without a rule torch warns and loops."""
    torch.library.register_vmap("lambda_gelu::lambda_gelu", _forward_vmap)
    torch.library.register_vmap("lambda_gelu::lambda_gelu_backward", _backward_vmap)
    torch.library.register_vmap("lambda_gelu::lambda_gelu_backward_", _inplace_vmap)
    torch.library.register_vmap("lambda_gelu::observe_", _observe_vmap)
