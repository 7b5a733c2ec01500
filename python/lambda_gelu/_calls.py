"""What a model calls when it runs: which modules, in which order and with what; and GELU that no module holds."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode


class ModuleCall(NamedTuple):
    """A call of a module.

    Attributes:
        module: the module.
        argument: its input, on the meta device.
        location: the line that calls it, ``file.py:12``.
    """

    module: nn.Module
    argument: Tensor
    location: str


@dataclass(frozen=True)
class FunctionalCall:
    """GELU in a forward that no module of the model holds, so that nothing can be put into its place.

    Attributes:
        name: the innermost module whose forward calls it; empty for the model itself.
        module: the class of that module.
        function: what is called: ``gelu``, or the class of a module that is not registered in the model.
        location: the line, ``file.py:12``.
        calls: how often it ran.
    """

    name: str
    module: str
    function: str
    location: str
    calls: int

    def __str__(self) -> str:
        return f"{self.name or 'the model'} ({self.module}) calls {self.function} at {self.location}"


def record_calls(model: nn.Module, modules: Iterable[nn.Module], example_inputs: Any) -> list[ModuleCall]:
    """Runs the model once and returns the calls of `modules` in order.

    The run is in eval mode and without gradients, compiles nothing, and leaves the model as it was.

    Args:
        example_inputs: a tensor, a tuple or list of positional arguments, or a mapping of keyword arguments.
    """
    calls: list[ModuleCall] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        argument = first_argument(args, kwargs)
        calls.append(ModuleCall(module, argument.to("meta"), _location(_caller(sys._getframe(1)))))

    handles = [module.register_forward_pre_hook(record, with_kwargs=True) for module in modules]
    try:
        run_once(model, example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def run_once(model: nn.Module, example_inputs: Any) -> Any:
    """What the model returns, called in eval mode and without gradients; compiles nothing and leaves the modes alone.

    Args:
        example_inputs: a tensor, a tuple or list of positional arguments, or a mapping of keyword arguments.
    """
    with evaluating(model), uncompiled(), torch.no_grad():
        return called(model, example_inputs)


def called(model: nn.Module, inputs: Any) -> Any:
    """What the model returns of a tensor, a tuple or list of positional or a mapping of keyword arguments."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    if isinstance(inputs, (tuple, list)):
        return model(*inputs)
    return model(inputs)


def first_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What a module of one argument is given, by whatever name: hooks see calls that its forward refuses."""
    return next(iter((*args, *kwargs.values())))


class FunctionalGELU(TorchFunctionMode):
    """Notes GELU that a forward computes without a module of the model.

    That is ``F.gelu`` and ``torch.ops.aten.gelu`` under any name, and modules that `is_gelu` knows but the model does
    not hold. A formula written out, as with ``torch.erf``, cannot be told from any other.

    Args:
        names: the modules of the model and their names.
        known: modules whose own calls are no news.
        is_gelu: whether a module is to be noted where the model does not hold it.
    """

    def __init__(
        self, names: Mapping[nn.Module, str], known: Collection[nn.Module], is_gelu: Callable[[nn.Module], bool]
    ) -> None:
        super().__init__()
        self._names = names
        self._known = known
        self._is_gelu = is_gelu
        self._found: Counter[tuple[nn.Module | None, str, str]] = Counter()
        self._strangers: dict[nn.Module, bool] = {}  # modules that the model does not hold: whether they are GELU
        self._looking = False

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Notes what is called inside the context."""
        hook = register_module_forward_pre_hook(self._on_module)
        try:
            with self, warnings.catch_warnings():
                # Of a compiled model, where such hooks are called twice.
                warnings.filterwarnings("ignore", message=".*global hooks on modules")
                yield
        finally:
            hook.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._looking and _is_gelu_function(func):
            frame = _caller(sys._getframe(1))
            if not self._is_strange_gelu(_innermost_module(frame)):  # which was noted when it was called
                self._note(frame, "gelu")
        return func(*args, **(kwargs or {}))

    def _on_module(self, module: nn.Module, args: Any) -> None:
        if not self._looking and self._is_strange_gelu(module):
            self._note(_caller(sys._getframe(1)), type(module).__name__)

    def _is_strange_gelu(self, module: nn.Module | None) -> bool:
        if module is None or module in self._names:
            return False
        if module not in self._strangers:
            self._looking = True  # what is computed to find out is none of the model's
            try:
                self._strangers[module] = self._is_gelu(module)
            finally:
                self._looking = False
        return self._strangers[module]

    def _note(self, frame: FrameType | None, function: str) -> None:
        location = _location(frame)
        owner = _innermost_module(frame, self._names)
        if owner not in self._known:
            self._found[owner, function, location] += 1

    def calls(self, model: nn.Module) -> tuple[FunctionalCall, ...]:
        """What was found, in the order of the first call."""
        return tuple(
            FunctionalCall(
                name="" if owner is None else self._names[owner],
                module=type(model if owner is None else owner).__name__,
                function=function,
                location=location,
                calls=calls,
            )
            for (owner, function, location), calls in self._found.items()
        )


def _is_gelu_function(func: Any) -> bool:
    if func is F.gelu or func is getattr(getattr(torch._C, "_nn", None), "gelu_", None):
        return True
    packet = getattr(func, "overloadpacket", func)
    return packet is torch.ops.aten.gelu or packet is torch.ops.aten.gelu_


# Frames between a call and the line that makes it.
_PLUMBING = {
    nn.Module.__call__.__code__.co_filename,
    torch.overrides.__file__,
    type(torch.ops).__getattr__.__code__.co_filename,
    torch.no_grad()(lambda: None).__code__.co_filename,  # of what it decorates
    __file__,
}


def _caller(frame: FrameType | None) -> FrameType | None:
    while frame is not None and frame.f_code.co_filename in _PLUMBING:
        frame = frame.f_back
    return frame


def _location(frame: FrameType | None) -> str:
    return "?" if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def _innermost_module(frame: FrameType | None, among: Collection[nn.Module] | None = None) -> nn.Module | None:
    """The module of the innermost method that is running."""
    while frame is not None:
        code = frame.f_code
        if code.co_argcount:
            first = frame.f_locals.get(code.co_varnames[0])
            if isinstance(first, nn.Module) and (among is None or first in among):
                return first
        frame = frame.f_back
    return None


@contextmanager
def same_modes(model: nn.Module) -> Iterator[None]:
    """Each module is in training or eval mode afterwards as it was before."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model is in eval mode within the context; each module is back in its own afterwards."""
    with same_modes(model):
        model.eval()
        yield


@contextmanager
def uncompiled() -> Iterator[None]:
    """What is in torch.compile runs eagerly within the context."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled then, and the import takes seconds
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield
