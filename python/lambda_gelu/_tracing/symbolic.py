"""A dataflow without inputs, by torch.fx."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from .._calls import evaluating, uncompiled
from ..modules import LambdaGELU
from .graph import Call, Dataflow, DataflowError, Moved, Unknown, Value, is_layer, module_names, note_product, titled
from .operations import MOVES, POOLS, PRODUCTS, VIEWS

_SAME_MODULES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_POOL_MODULES = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
_MOVING_MODULES = (nn.Flatten, nn.Unflatten, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.PixelShuffle)
_SAME_METHODS = {"contiguous", "clone", "detach", "float", "double", "half", "bfloat16"}
_SHAPE_METHODS = {"size", "dim", "numel", "ndimension", "is_floating_point"}
_SHAPE_ATTRIBUTES = {"shape", "dtype", "device", "ndim", "is_cuda", "requires_grad"}


def trace_symbolically(model: nn.Module) -> Dataflow:
    """As :func:`lambda_gelu._tracing.trace` without inputs."""
    import torch.fx  # noqa: PLC0415 - only a trace needs it

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
            if is_layer(module) or isinstance(module, _SAME_MODULES + _POOL_MODULES):
                return True
            holds_layers = any(is_layer(child) for child in module.modules())
            return not holds_layers and super().is_leaf_module(module, qualified_name)

    # A forward may keep what it computes: stand-ins of tensors must not stay in the model.
    attributes = [(module, dict(vars(module)), dict(module._buffers)) for module in model.modules()]
    try:
        with evaluating(model), uncompiled(), torch.no_grad():
            graph = Tracer().trace(model, concrete_args=_defaults(model))
    except Exception as error:  # whatever a forward makes of a stand-in
        first = str(error).strip().partition("\n")[0].partition(". ")[0]
        raise DataflowError(f"torch.fx cannot trace the model ({type(error).__name__}: {first})") from error
    finally:
        for module, before, buffers in attributes:
            _restore(module._buffers, buffers)
            _restore(vars(module), before)
    return _from_graph(model, graph)


def _restore(now: dict[str, Any], before: Mapping[str, Any]) -> None:
    for key in now.keys() - before.keys():
        del now[key]
    now.update({key: value for key, value in before.items() if now.get(key) is not value})


def _defaults(model: nn.Module) -> dict[str, Any]:
    """What a call without optional arguments passes: as a stand-in, None would be taken for a tensor."""
    parameters = inspect.signature(model.forward).parameters.values()
    plain = (type(None), bool, int, float, str)
    return {
        parameter.name: parameter.default
        for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and isinstance(parameter.default, plain)
    }


def _from_graph(model: nn.Module, graph: Any) -> Dataflow:
    names = module_names(model)
    calls: dict[nn.Module, list[Call]] = {}
    loose: set[int] = set()
    values: dict[Any, Value] = {}
    for node in graph.nodes:
        inputs = node.all_input_nodes
        value = values.get(inputs[0]) if len(inputs) == 1 else None
        module = model.get_submodule(node.target) if node.op == "call_module" else None
        if node.op == "get_attr":
            loose.add(id(_attribute(model, node.target)))
        elif module is not None and is_layer(module) and not _is_hooked(module):
            call = Call(module, value, Value(None))
            call.output.sources = (call,)
            calls.setdefault(module, []).append(call)
            if value is not None:
                value.uses.append(call)
            else:
                _lose(values, inputs, f"{titled(module, names)} takes it beside another input")
            values[node] = call.output
        elif value is not None and _keeps_channels(node, module):
            values[node] = Value(None, sources=(value,))
            value.uses.append(Moved(values[node]))
        elif value is not None and _moves(node, module):
            values[node] = Value(None, sources=(value,))
            value.uses.append(Moved(values[node], _hidden(_described(node, module, names))))
        elif module is None and len(inputs) == 2 and _named(node) in PRODUCTS:
            product = note_product([values.get(each) for each in inputs], None, _named(node))
            if product is None:
                _lose(values, inputs, _named(node))
            else:
                values[node] = product
        elif not _reads_shape(node):
            _lose(values, inputs, _described(node, module, names))
            if module is not None and isinstance(module, LambdaGELU):
                call = Call(module, None, Value(None))
                call.output.uses.append(Unknown("its own hooks: example_inputs tell what they do"))
                calls.setdefault(module, []).append(call)
    return Dataflow(names, calls, loose)


def _lose(values: Mapping[Any, Value], nodes: list[Any], what: str) -> None:
    for node in nodes:
        if node in values:
            values[node].uses.append(Unknown(what))


def _hidden(what: str) -> Callable[[Any], Any]:
    def move(positions: Any) -> None:
        if positions is not None:
            raise DataflowError(f"it passes {what}, and without example_inputs its channels cannot be told behind that")

    return move


def _attribute(model: nn.Module, target: str) -> Any:
    *path, name = target.split(".")
    thing: Any = model
    for part in path:
        thing = getattr(thing, part)
    return getattr(thing, name)


def _is_hooked(module: nn.Module) -> bool:
    """A trace takes a layer as a whole and does not see what its hooks do."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _keeps_channels(node: Any, module: nn.Module | None) -> bool:
    """In eval mode, whatever the shape."""
    if module is not None:
        pool_of_maxima = not getattr(module, "return_indices", False)
        return not _is_hooked(module) and (
            type(module) in _SAME_MODULES or (type(module) in _POOL_MODULES and pool_of_maxima)
        )
    if node.op == "call_method":
        return node.target in _SAME_METHODS
    dropouts = (nn.functional.dropout, torch.dropout)
    if node.op == "call_function" and node.target in dropouts:
        training = node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True)
        return training is False
    return False


def _moves(node: Any, module: nn.Module | None) -> bool:
    """As far as can be told without shapes."""
    if module is not None:
        return type(module) in _MOVING_MODULES and not _is_hooked(module)
    return node.op in ("call_method", "call_function") and _named(node) in VIEWS | MOVES | POOLS


def _reads_shape(node: Any) -> bool:
    if node.op == "call_method":
        return node.target in _SHAPE_METHODS
    return node.op == "call_function" and node.target is getattr and node.args[1] in _SHAPE_ATTRIBUTES


def _described(node: Any, module: nn.Module | None, names: Mapping[nn.Module, str]) -> str:
    if node.op == "output":
        return "what the model returns"
    if module is not None:
        hooks = " with hooks: example_inputs tell what they do" if _is_hooked(module) else ""
        return titled(module, names) + hooks
    return _named(node)


def _named(node: Any) -> str:
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
