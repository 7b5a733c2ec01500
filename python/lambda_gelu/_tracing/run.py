"""A dataflow by one run, in which every operation is seen."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from .._calls import run_once
from .graph import Call, Dataflow, DataflowError, Moved, Unknown, Value, is_layer, module_names, note_product, titled
from .operations import LEAVING, MOVES, POOLS, PRODUCTS, SAME, SHAPES, VIEWS


def trace_run(model: nn.Module, example_inputs: Any) -> Dataflow:
    """As :func:`lambda_gelu._tracing.trace` with inputs."""
    names = module_names(model)
    recorder = _Recorder(names)
    with recorder.watching(), _Leaving(recorder), recorder:
        result = run_once(model, example_inputs)
        recorder.finish(result)
    return Dataflow(names, recorder.calls, recorder.loose)


class _Recorder(TorchDispatchMode):
    """Sees every operation outside of layers and sites, and every call of these."""

    supports_higher_order_operators = True

    def __init__(self, names: Mapping[nn.Module, str]) -> None:
        super().__init__()
        self.calls: dict[nn.Module, list[Call]] = {}
        self.loose: set[int] = set()
        self._names = names
        self._values: dict[int, Value] = {}  # by id of the tensor
        self._kept: list[Tensor] = []  # so that no other tensor gets the same id or memory
        self._memory: dict[int, list[Value]] = {}
        self._inside = 0  # depth of layers
        self._held = {id(t) for m in names for t in (*m._parameters.values(), *m._buffers.values()) if t is not None}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks on layers and sites within the context; those that were there before keep their effect."""
        handles = []
        try:
            for module in self._names:
                if is_layer(module):
                    handles += [
                        module.register_forward_pre_hook(self._enter, with_kwargs=True),
                        module.register_forward_hook(self._leave, with_kwargs=True, prepend=True),
                    ]
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._inside += 1

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        self._inside -= 1
        if self._inside:
            return
        given = list(_tensors((args, kwargs)))
        value = self._values.get(id(given[0])) if given else None
        for other in given[1:]:
            self._lose(other, f"{titled(module, self._names)} takes it beside another input")
        call = Call(module, value, Value(tuple(output.shape)))
        call.output.sources = (call,)
        self.calls.setdefault(module, []).append(call)
        if value is not None:
            value.uses.append(call)
        elif given:
            self._lose(given[0], f"{titled(module, self._names)} reads its memory")
        self._track(output, call.output)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not self._inside:
            self._note(func, args, kwargs or {}, result)
        return result

    def _note(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        schema = getattr(func, "_schema", None)
        name = schema.name.rpartition("::")[2] if schema is not None else str(func)
        given = list(_tensors((args, kwargs)))
        self.loose |= {id(tensor) for tensor in given} & self._held
        if name in SHAPES:
            return
        location = f"{name} at {_location(sys._getframe(1))}"
        if name in PRODUCTS and len(given) == 2 and isinstance(result, Tensor):
            values = [self._values.get(id(tensor)) for tensor in given]
            product = note_product(values, tuple(result.shape), location)
            if product is not None:
                for tensor, factor in zip(given, values, strict=True):
                    if factor is None:
                        self._lose(tensor, location)  # where it came by the memory of a value
                self._track(result, product)
                return
        value = self._values.get(id(given[0])) if len(given) == 1 and args and given[0] is args[0] else None
        builtin = schema is not None and schema.name.startswith("aten::") and not schema.is_mutable
        if value is None or not builtin or name not in SAME | VIEWS | MOVES | POOLS:
            for tensor in given:
                self._lose(tensor, location)
            return
        for index, output in enumerate(result if isinstance(result, (tuple, list)) else (result,)):
            # The positions of maxima are no numbers of the tensor, and a constant does not move them.
            if isinstance(output, Tensor) and (output.is_floating_point() or name not in POOLS):
                if not output.is_floating_point():
                    value.uses.append(Unknown(f"{name} to {output.dtype}"))
                    continue
                move = None if name in SAME else _Move(func, name, args[1:], kwargs, index)
                moved = Value(tuple(output.shape), sources=(value,))
                value.uses.append(Moved(moved, move))
                self._track(output, moved)

    def _track(self, tensor: Tensor, value: Value) -> None:
        self._values[id(tensor)] = value
        self._kept.append(tensor)
        memory = _memory(tensor)
        if memory:
            self._memory.setdefault(memory, []).append(value)

    def _lose(self, tensor: Tensor, what: str) -> None:
        """Notes a use that cannot be followed, also of a tensor that came by its memory unseen."""
        value = self._values.get(id(tensor))
        values = self._memory.get(_memory(tensor), []) if value is None else [value]
        for each in values:
            each.uses.append(Unknown(what))

    def finish(self, result: Any) -> None:
        """Notes what the model returns."""
        if self._inside:
            raise DataflowError("a layer raised an exception in this run, and the model went on")
        for tensor in _tensors(result):
            self._lose(tensor, "what the model returns")

    def leaves_torch(self, tensors: Any, how: str) -> None:
        """Notes numbers that are read by other means than operations."""
        if not self._inside:
            for tensor in _tensors(tensors):
                self._lose(tensor, f"{how} at {_location(sys._getframe(1))}")


class _Leaving(TorchFunctionMode):
    """Sees what reads numbers without an operation."""

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder
        self._looking = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name in LEAVING and not self._looking:
            self._looking = True
            try:
                self._recorder.leaves_torch(args, name)
            finally:
                self._looking = False
        return func(*args, **(kwargs or {}))


class _Move:
    """An operation done to positions, and checked to do no more than move them or pool equal ones."""

    def __init__(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], index: int) -> None:
        self._func = func
        self._name = name
        self._args = args
        self._kwargs = {key: value for key, value in kwargs.items() if key not in ("dtype", "memory_format")}
        self._index = index

    def __call__(self, positions: Any) -> Any:
        if positions is None:
            return None
        moved = self._do(positions)
        if self._name in POOLS:
            # The mean or the maximum of one channel is again that channel; of several it is none, and padding is none.
            same = torch.equal(self._do(-positions), -moved)
            rounded = moved.round()
            near = torch.allclose(moved, rounded, rtol=1e-9, atol=0)
            squares = torch.allclose(self._do(positions.square()), moved.square(), rtol=1e-9, atol=0)
            ones = torch.allclose(self._do(torch.ones_like(positions)), torch.ones_like(moved), rtol=1e-9, atol=0)
            if not (same and near and squares and ones):
                raise DataflowError(f"{self._name} pools several channels, or padding with them")
            return rounded
        return moved

    def _do(self, positions: Tensor) -> Tensor:
        if self._name in VIEWS:
            return positions.reshape(self._args[0])
        result = self._func(positions, *self._args, **self._kwargs)
        moved = result[self._index] if isinstance(result, (tuple, list)) else result
        assert isinstance(moved, Tensor)
        return moved


def _memory(tensor: Tensor) -> int:
    """Where its storage lies; 0 where it has none."""
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError, AttributeError):  # sparse, fake, or another subclass
        return 0


def _tensors(thing: Any, depth: int = 6) -> Iterator[Tensor]:
    """The tensors in nested containers, dataclasses and other objects with attributes."""
    if isinstance(thing, Tensor):
        yield thing
    elif depth and isinstance(thing, Mapping):
        for value in thing.values():
            yield from _tensors(value, depth - 1)
    elif depth and isinstance(thing, (tuple, list, set, frozenset)):
        for value in thing:
            yield from _tensors(value, depth - 1)
    elif depth and hasattr(thing, "__dict__") and not isinstance(thing, (type, nn.Module)) and not callable(thing):
        for value in list(vars(thing).values()):
            yield from _tensors(value, depth - 1)


_TORCH = str(Path(torch.__file__).parent)


def _location(frame: FrameType | None) -> str:
    """The innermost line outside of torch and of this file, ``file.py:12``."""
    while frame is not None and frame.f_code.co_filename.startswith((_TORCH, __file__)):
        frame = frame.f_back
    return "?" if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
