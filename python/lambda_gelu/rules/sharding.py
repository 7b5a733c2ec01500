"""DTensor: which placements of input and hardness the operators can keep, and how their results are placed.

torch.distributed.tensor takes half a second to import, and its tensors come from nowhere else. So the rules are
registered right after somebody imports it: no call pays for asking, and direct calls of ``torch.ops``, C++ and compiled
code find them like modules do.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch

_forward = torch.ops.lambda_gelu.lambda_gelu.default
_backward = torch.ops.lambda_gelu.lambda_gelu_backward.default

_DTENSOR = "torch.distributed.tensor"

_registered = False


def register() -> None:
    """Tells DTensor about the operators, now. Imports torch.distributed.tensor.

    Happens by itself when that is imported; doing it again changes nothing.

    Raises:
        RuntimeError: where this torch does not take the rules any more.
    """
    global _registered  # noqa: PLW0603 - DTensor keeps its rules for the whole process
    if _registered:
        return
    try:
        module = importlib.import_module(_DTENSOR)
        register_sharding = importlib.import_module(f"{_DTENSOR}.experimental").register_sharding
        placements = (module.Replicate(), module.Partial(), module.Shard)
        register_sharding(_forward)(lambda *args, **kwargs: _forward_rules(placements, *args, **kwargs))
        register_sharding(_backward)(lambda *args, **kwargs: _backward_rules(placements, *args, **kwargs))
    except Exception as error:  # it is experimental: its name, place and arguments may change
        raise RuntimeError(
            f"torch {torch.__version__} does not take lambda_gelu's sharding rules ({type(error).__name__}: {error}); "
            "DTensors have to be converted by to_local() before lambda_gelu and by from_local() after it"
        ) from error
    _registered = True


def register_with_dtensor() -> None:
    """Registers the rules now where torch.distributed.tensor is there, else as soon as it is."""
    if _DTENSOR in sys.modules:
        _register_or_warn()
    else:
        sys.meta_path.insert(0, _AfterImport())


def _register_or_warn() -> None:
    try:
        register()
    except RuntimeError as error:
        warnings.warn(str(error), stacklevel=2)


class _AfterImport:
    """Finds nothing itself: the module is found and loaded as without it, then the rules are registered.

    Stays where it is: another thread that was walking through ``sys.meta_path`` would skip a finder if one went away.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != _DTENSOR or _registered:
            return None
        # Only those behind this one: another package may have one like it, and each would ask the other for ever.
        behind = sys.meta_path[sys.meta_path.index(self) + 1 :]
        found = (finder.find_spec(fullname, path, target) for finder in behind if hasattr(finder, "find_spec"))
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _ThenRegister(spec.loader)  # type: ignore[assignment]
        return spec


class _ThenRegister:
    """The loader it is given, for one import: the module names that one as its loader."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        if name == "_loader":  # while it is copied
            raise AttributeError(name)
        return getattr(self._loader, name)

    def exec_module(self, module: Any) -> None:
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _register_or_warn()


# --- the rules -------------------------------------------------------------------------------------------------------
# One entry per way in which one dimension of a mesh may be used: (placements of the outputs, of the arguments).

Rules = list[tuple[list[Any], list[Any]]]


def _hardness_placement(placements: tuple[Any, Any, Any], dim: int, input: Any, hardness: Any, channel_dim: int) -> Any:
    """λ beside an input that is sharded along `dim`: the λ of its channels, or all there are."""
    replicate, _, shard = placements
    per_channel = hardness.shape[0] != 1 and dim == channel_dim % input.ndim
    return shard(0) if per_channel else replicate


def _forward_rules(
    placements: tuple[Any, Any, Any],
    input: Any,
    hardness: Any,
    channel_dim: int = 1,
    temperature: float | None = None,
) -> Rules:
    # Not linear: a Partial input has to be summed up first.
    replicate, _, shard = placements
    rules: Rules = [([replicate], [replicate, replicate, None, None])]
    for dim in range(input.ndim):
        its_hardness = _hardness_placement(placements, dim, input, hardness, channel_dim)
        rules.append(([shard(dim)], [shard(dim), its_hardness, None, None]))
    return rules


def _backward_rules(  # noqa: PLR0917
    placements: tuple[Any, Any, Any],
    grad_output: Any,
    input: Any,
    hardness: Any,
    channel_dim: int = 1,
    temperature: float | None = None,
) -> Rules:
    replicate, partial, shard = placements
    rules: Rules = [
        ([replicate, replicate], [replicate, replicate, replicate, None, None]),
        ([partial, partial], [partial, replicate, replicate, None, None]),  # linear in grad_output
    ]
    for dim in range(input.ndim):
        its_hardness = _hardness_placement(placements, dim, input, hardness, channel_dim)
        # A shared λ gets from every rank the part of its gradient that comes from that rank's elements.
        its_gradient = partial if its_hardness == replicate else its_hardness
        rules.append(([shard(dim), its_gradient], [shard(dim), shard(dim), its_hardness, None, None]))
    return rules
