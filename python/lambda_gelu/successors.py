"""Which layers consume the output of a site, so that a constant per channel can be folded into them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ._layers import in_channels, in_dim, kind_of, out_dim, why_no_shift
from ._tracing import (
    Call,
    Dataflow,
    DataflowError,
    Unknown,
    Value,
    channel_positions,
    channels_along,
    ends_of,
    trace,
)
from .modules import LambdaGELU
from .sites import find_sites


@dataclass(frozen=True)
class SuccessorLayer:
    """A layer that consumes a site's output.

    Attributes:
        name: its place in the model.
        kind: ``"linear"``, ``"conv"``, ``"conv_transpose"`` or ``"norm"``.
        channels: the site's channel, counted from 0, for each input channel of the layer: several input channels have
            the same one behind a flattened feature map.
        parameter: what takes a constant: its bias, the ``running_mean`` of a norm, or, of a layer without bias whose
            output goes to batch norms alone, theirs. A bias that does not exist yet is named too.
        has_parameter: whether `parameter` exists.
    """

    name: str
    kind: str
    channels: tuple[int, ...]
    parameter: str
    has_parameter: bool = True
    module: nn.Module = field(repr=False, compare=False, kw_only=True)
    norms: tuple[SuccessorLayer, ...] = field(default=(), repr=False, compare=False, kw_only=True)


@dataclass(frozen=True)
class Successor:
    """What consumes a site's output: every layer that does.

    Attributes:
        layers: the layers.
        channel_dim: the dimension of the site's output that holds the channels; -1 where that is the last.
        num_channels: its size.
    """

    layers: tuple[SuccessorLayer, ...]
    channel_dim: int
    num_channels: int
    same_dims: tuple[int, ...] = field(repr=False, compare=False, kw_only=True)  # what else names that dimension

    def __str__(self) -> str:
        return ", ".join(layer.parameter for layer in self.layers)


@dataclass(frozen=True)
class NoSuccessor:
    """Why nothing can take a constant per channel from a site's output.

    Attributes:
        reason: for a reader.
    """

    reason: str

    def __str__(self) -> str:
        return f"no successor: {self.reason}"


def find_successors(model: nn.Module, example_inputs: Any = None) -> dict[str, Successor | NoSuccessor]:
    """For every site the layers that consume its output, where these are all that does.

    A layer is a linear layer (transformers' ``Conv1D`` too), a convolution, also transposed, or a norm with a running
    mean. On the way to it the output may be moved (views, transpositions, slices), pooled within a channel, or pass
    dropout, which eval mode makes the identity. Everything else that consumes it ends the search with a reason: a
    product, as in GEGLU, a residual sum, the end of the model, or an operation that is not known here.

    With `example_inputs` the model runs once on them, in eval mode, and every operation is seen: this proves it for
    what that run did; with at least two samples, so that a batch is not taken for a channel. Without them ``torch.fx``
    traces the model, for all inputs and default optional arguments, but it sees no shapes, knows fewer operations, and
    ends at a forward that asks for values or sizes: every site then has the same reason.

    Args:
        model: a model with sites; it is left as it was.
        example_inputs: a tensor, a tuple of positional or a mapping of keyword arguments. Default None.

    Returns:
        dict: by site, as :func:`lambda_gelu.find_sites` names it.

    Raises:
        ValueError: for a model without a site.
    """
    sites = find_sites(model)
    try:
        dataflow = trace(model, example_inputs)
    except DataflowError as reason:
        advice = "; give example_inputs" if example_inputs is None else ""
        return dict.fromkeys(sites, NoSuccessor(f"{reason}{advice}"))
    return {name: _successor(dataflow, site) for name, site in sites.items()}


def _successor(dataflow: Dataflow, site: LambdaGELU) -> Successor | NoSuccessor:
    try:
        return _found(dataflow, site)
    except DataflowError as reason:
        return NoSuccessor(str(reason))


def _found(dataflow: Dataflow, site: LambdaGELU) -> Successor:
    output = only_call(dataflow, site).output
    for call in only_calls(output):
        reason = why_no_shift(call.module)
        if reason:
            raise DataflowError(f"it goes to {dataflow.names[call.module]}: {reason}")
        refuse_shared(dataflow, call.module)
    dim, arrivals = channels_of(site, output)
    layers = tuple(_layer(dataflow, call, channels) for call, channels in arrivals.items())
    if output.shape is None:
        return Successor(layers, dim, len(layers[0].channels), same_dims=(dim,))
    dim_count = len(output.shape)
    same_dims = (dim, dim - dim_count)
    return Successor(layers, -1 if dim == dim_count - 1 else dim, output.shape[dim], same_dims=same_dims)


def only_call(dataflow: Dataflow, module: nn.Module) -> Call:
    """The call of a site or layer that has one."""
    calls = dataflow.calls.get(module, [])
    if not calls:
        raise DataflowError("it was never called")
    if len(calls) > 1:
        raise DataflowError(f"it is called {len(calls)} times in one forward")
    return calls[0]


def only_calls(value: Value, *, of_factor: bool = False) -> Iterator[Call]:
    """The layers that consume a value, or a factor of it, once each; only they may."""
    ends = [end for end, _ in ends_of(value, of_factor=of_factor)]
    if not ends:
        raise DataflowError("nothing uses its output")
    for end in ends:
        if isinstance(end, Unknown):
            raise DataflowError(f"it goes to {end.what}")
    yield from dict.fromkeys(end for end in ends if isinstance(end, Call))


def refuse_shared(dataflow: Dataflow, module: nn.Module, keys: Sequence[str] = ("bias", "running_mean")) -> None:
    """Raises DataflowError for a layer that is called again, or of which something else uses one of the tensors."""
    name = dataflow.names[module]
    if len(dataflow.calls[module]) > 1:
        raise DataflowError(f"{name} is called {len(dataflow.calls[module])} times in one forward")
    tensors = {**module._parameters, **module._buffers}
    for key in keys:
        tensor = tensors.get(key)
        if tensor is None:
            continue
        others = [place for place in dataflow.holders(tensor) if place != f"{name}.{key}"]
        if others:
            raise DataflowError(f"{name}.{key} is shared with {', '.join(others)}")
        if id(tensor) in dataflow.loose:
            raise DataflowError(f"{name}.{key} is also read outside of {name}")


def channels_of(site: LambdaGELU, output: Value, *, of_factor: bool = False) -> tuple[int, dict[Call, tuple[int, ...]]]:
    """The dimension of a site's output that holds its channels, and which of them arrive where."""
    if output.shape is None:
        dims = {in_dim(call.module) for call in only_calls(output, of_factor=of_factor)}
        if len(dims) > 1:
            raise DataflowError("it goes to layers that have their channels in different dimensions")
        (dim,) = dims
        if site.num_parameters > 1 and site.channel_dim != dim:
            raise DataflowError(
                f"it has a λ per channel along dimension {site.channel_dim}, and only example_inputs tell whether that "
                f"is dimension {dim}, where its successor has the channels"
            )
        return dim, arrivals(output, dim, of_factor=of_factor)
    if site.num_parameters > 1:
        dim = range(len(output.shape))[site.channel_dim]
        return dim, arrivals(output, dim, of_factor=of_factor)
    found = {}
    problems = []
    # Behind a flattened feature map each of its dimensions would do: the channels are the first behind the batch.
    for dim in sorted(range(len(output.shape)), key=lambda dim: (dim != 1, -dim)):
        try:
            found[dim] = arrivals(output, dim, of_factor=of_factor)
        except DataflowError as reason:
            problems.append(reason)
    # But where every input channel of the layers has one of its own, that is the finest.
    for dim, channels in found.items():
        if all(each == tuple(range(output.shape[dim])) for each in channels.values()):
            return dim, channels
    found.pop(0, None)  # the samples of a batch, mixed with channels
    if not found:
        raise problems[0]
    return next(iter(found.items()))


def arrivals(output: Value, dim: int, *, of_factor: bool = False) -> dict[Call, tuple[int, ...]]:
    """For each call that a value reaches, the channel of that value, along `dim`, at every index of the call's input.

    Raises:
        DataflowError: where these are several for one index, or cannot be told.
    """
    if output.shape is None:
        in_place = list(ends_of(output, torch.empty(0), of_factor=of_factor))  # what moves them raises
        return {end: tuple(range(in_channels(end.module))) for end, _ in in_place if isinstance(end, Call)}
    reached = ends_of(output, channel_positions(output.shape, dim), of_factor=of_factor)
    return {end: channels_along(where, in_dim(end.module)) for end, where in reached if isinstance(end, Call)}


def _layer(dataflow: Dataflow, call: Call, channels: tuple[int, ...]) -> SuccessorLayer:
    module, name = call.module, dataflow.names[call.module]
    kind = kind_of(module)
    assert kind is not None
    layer = SuccessorLayer(name, kind, channels, f"{name}.bias", module=module)
    if kind == "norm":
        return replace(layer, parameter=f"{name}.running_mean")
    if module.bias is not None:
        if module._parameters.get("bias") is not module.bias:
            raise DataflowError(f"{name}.bias is computed from other parameters")
        return layer
    norms = _norms_behind(dataflow, call)
    if norms:
        return replace(layer, parameter=", ".join(norm.parameter for norm in norms), norms=norms)
    return replace(layer, has_parameter=False)


def _norms_behind(dataflow: Dataflow, call: Call) -> tuple[SuccessorLayer, ...]:
    """The norms with a running mean that alone consume what a layer computes: a convolution without bias has them."""
    try:
        norms = list(only_calls(call.output))
        for norm in norms:
            refuse_shared(dataflow, norm.module)
        if any(kind_of(norm.module) != "norm" or why_no_shift(norm.module) for norm in norms):
            return ()
        reached = arrivals(call.output, out_dim(call.module))
    except DataflowError:
        return ()
    return tuple(_layer(dataflow, norm, channels) for norm, channels in reached.items())
