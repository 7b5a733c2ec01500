"""Where a model has λ-GELU: its *sites*."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import nn

from .modules import LambdaGELU

_COMPILED = "_orig_mod"  # where torch.compile keeps what it wraps
# What torch.compile, FSDP1 and activation checkpointing put into a module's path.
_WRAPPER_COMPONENTS = {_COMPILED, "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Slot(Generic[M]):
    """A place in a model: `parent` holds `module` under `key`."""

    parent: nn.Module
    key: str
    name: str
    module: M

    def put(self, module: nn.Module) -> None:
        """Puts another module into this place."""
        self.parent._modules[self.key] = module
        if isinstance(self.parent, nn.TransformerEncoderLayer):
            # It notes at construction what its fused inference path computes, and would go on computing that.
            self.parent.activation_relu_or_gelu = _fused_activation(module)


def _fused_activation(module: nn.Module) -> int:
    """The code of torch.nn.TransformerEncoderLayer for what it can fuse."""
    if isinstance(module, nn.ReLU):
        return 1
    return 2 if isinstance(module, nn.GELU) else 0


def find_slots(model: nn.Module, kind: type[M]) -> list[Slot[M]]:
    """Every place that holds a module of this kind; a module that is registered twice has two."""
    return [
        Slot(parent, key, _site_name(f"{prefix}.{key}"), child)
        for prefix, parent in unwrapped(model).named_modules()
        for key, child in parent._modules.items()
        if isinstance(child, kind)
    ]


def find_sites(model: nn.Module) -> dict[str, LambdaGELU]:
    """The :class:`LambdaGELU` modules of a model by name, in the order of registration.

    A module that is registered at several places is one site, under its first name. Wrappers (DataParallel,
    DistributedDataParallel, FSDP1, torch.compile, activation checkpointing) leave no trace in the names, so that a
    scheduler's state moves between wrapped and plain models.

    Raises:
        ValueError: where the model has none.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    named_modules = unwrapped(model).named_modules()
    sites = {_site_name(name): module for name, module in named_modules if isinstance(module, LambdaGELU)}
    if not sites:
        raise ValueError(f"{type(model).__name__} has no LambdaGELU module; lambda_gelu.convert_ puts them in")
    return sites


def unwrapped(model: nn.Module) -> nn.Module:
    """What is inside DataParallel, DistributedDataParallel and torch.compile, nested in any order."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif _COMPILED in model._modules:
            model = model.get_submodule(_COMPILED)
        else:
            return model


def refuse_compiled(slots: Iterable[Slot[M]]) -> None:
    """Raises ValueError for a module that torch.compile wraps by itself.

    The wrapper captured the module's forward and would go on calling it, whatever is put into its place.
    """
    for slot in slots:
        if slot.key == _COMPILED:
            raise ValueError(
                f"{slot.name} is a {type(slot.module).__name__} inside its own torch.compile, which would go on "
                "calling it; replace first, then compile"
            )


def _site_name(path: str) -> str:
    return ".".join(part for part in path.split(".") if part and part not in _WRAPPER_COMPONENTS)
