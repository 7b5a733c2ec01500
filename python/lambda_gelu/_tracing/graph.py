"""The graph of what consumes what: calls of layers, and what moves numbers between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .._layers import kind_of
from ..modules import LambdaGELU
from ..sites import _site_name, unwrapped


class DataflowError(ValueError):
    """Why what a layer computes cannot be followed to its consumers."""


@dataclass(eq=False)
class Value:
    """A tensor that a layer computed, or what became of it on its way to others.

    Attributes:
        shape: None in a trace without inputs.
        uses: what consumes it.
        sources: where it comes from: a call, the value that was moved, or both factors of a product as far as they are
            known; empty for what no layer computed.
    """

    shape: tuple[int, ...] | None
    sources: tuple[Call | Value, ...] = ()
    uses: list[Call | Moved | Unknown] = field(default_factory=list)

    def roots(self) -> set[Call]:
        """The calls that it comes from, through values that were moved or multiplied."""
        return {
            root for source in self.sources for root in (source.roots() if isinstance(source, Value) else (source,))
        }


@dataclass(eq=False)
class Call:
    """A call of a layer or site."""

    module: nn.Module
    input: Value | None
    output: Value


@dataclass(eq=False)
class Moved:
    """A use that moves numbers or pools those of one channel.

    Attributes:
        value: what becomes of it.
        move: does it to a tensor of the shape of the input, or raises DataflowError; None: every number stays where it
            is.
        product: where another tensor multiplies it, what does that: a factor passes, but no constant. Else empty.
    """

    value: Value
    move: Callable[[Any], Any] | None = None
    product: str = ""


@dataclass(eq=False)
class Unknown:
    """A use through which nothing can be followed: what it is, for a reader."""

    what: str


@dataclass
class Dataflow:
    """What consumes what in one forward.

    Attributes:
        names: of all modules.
        calls: of every layer and site that was called.
        loose: parameters and buffers, by id, that something other than a call of their layer reads.
    """

    names: Mapping[nn.Module, str]
    calls: dict[nn.Module, list[Call]]
    loose: set[int]

    def holders(self, tensor: Tensor) -> list[str]:
        """The places that hold this very parameter or buffer."""
        return [
            f"{name}.{key}"
            for module, name in self.names.items()
            for key, value in (*module._parameters.items(), *module._buffers.items())
            if value is tensor
        ]


def ends_of(value: Value, positions: Any = None, *, of_factor: bool = False) -> Iterator[tuple[Call | Unknown, Any]]:
    """The calls and unknown uses that a value reaches, each with what became of `positions` on the way there.

    Args:
        positions: a float64 tensor of the value's shape, or None to follow no positions.
        of_factor: whether it is a factor per channel that is followed, which a product with another tensor passes on,
            or a constant, which it does not.

    Raises:
        DataflowError: where an operation does more than move them.
    """
    for use in value.uses:
        if isinstance(use, Moved) and (of_factor or not use.product):
            moved = positions if use.move is None else use.move(positions)
            yield from ends_of(use.value, moved, of_factor=of_factor)
        else:
            yield Unknown(use.product) if isinstance(use, Moved) else use, positions


def note_product(factors: Sequence[Value | None], shape: tuple[int, ...] | None, what: str) -> Value | None:
    """Notes the product of two tensors, of which not both come from the same call: that would square a factor.

    Args:
        factors: their values, None for what no layer computed.
        shape: of the product.

    Returns:
        The value of the product; None where it cannot be followed.
    """
    known = [factor for factor in factors if factor is not None]
    roots = [factor.roots() for factor in known]
    if not known or (len(known) > 1 and roots[0] & roots[1]):
        return None
    product = Value(shape, tuple(known))
    for factor in known:
        factor.uses.append(Moved(product, _broadcast(shape), what))
    return product


def _broadcast(shape: tuple[int, ...] | None) -> Callable[[Any], Any]:
    def move(positions: Any) -> Any:
        if positions is None:
            return None
        if shape is None:
            raise DataflowError("it is multiplied, and without example_inputs its channels cannot be told behind that")
        return positions.expand(shape)

    return move


def channel_positions(shape: tuple[int, ...], dim: int) -> Tensor:
    """Every element holds its channel along `dim`, counted from 1; float64."""
    sizes = [1] * len(shape)
    sizes[dim] = -1
    return torch.arange(1, shape[dim] + 1, dtype=torch.float64, device="cpu").view(sizes).expand(shape).contiguous()


def channels_along(positions: Tensor, dim: int) -> tuple[int, ...]:
    """The channel, counted from 0, of every index along `dim` of what :func:`channel_positions` became.

    Raises:
        DataflowError: where an index holds several.
    """
    if not -positions.dim() <= dim < positions.dim():
        raise DataflowError(f"it arrives with shape {tuple(positions.shape)}, which has no dimension {dim}")
    by_index = positions.movedim(dim, 0).flatten(1)
    if by_index.shape[1] == 0:
        raise DataflowError("it has no elements in this run")
    if not bool((by_index == by_index[:, :1]).all()):
        raise DataflowError("its channels are mixed on the way")
    return tuple(int(channel) - 1 for channel in by_index[:, 0].tolist())


def module_names(model: nn.Module) -> dict[nn.Module, str]:
    return {module: _site_name(name) for name, module in unwrapped(model).named_modules()}


def is_layer(module: nn.Module) -> bool:
    return isinstance(module, LambdaGELU) or kind_of(module) is not None


def titled(module: nn.Module, names: Mapping[nn.Module, str]) -> str:
    return f"{names.get(module, 'a module')} ({type(module).__name__})"
