"""Where a model has λ-GELU: its *sites*."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

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


def replaceable_sites(model: nn.Module, instead: str, advice: str) -> dict[str, list[Slot[LambdaGELU]]]:
    """The sites of a model by name, each with every place that holds it and in which another module may be put.

    Args:
        instead: what to write where `model` itself is a site, as ``nn.ReLU()``.
        advice: what to do where the model is in DistributedDataParallel.

    Raises:
        ValueError: for a model without a site, where `model` itself is one, where torch.compile wraps a site by itself,
            and for a model inside DistributedDataParallel.
    """
    sites = find_sites(model)
    if isinstance(unwrapped(model), LambdaGELU):
        raise ValueError(f"the model itself is a LambdaGELU and cannot be replaced in place: write {instead} instead")
    slots = find_slots(model, LambdaGELU)
    refuse_compiled(slots)
    refuse_synchronized(model, slots, advice)
    return {name: [slot for slot in slots if slot.module is site] for name, site in sites.items()}


def has_sites(model: nn.Module) -> bool:
    """Whether a site is left."""
    return any(isinstance(module, LambdaGELU) for module in model.modules())


def unwrapped(model: nn.Module) -> nn.Module:
    """What is inside DataParallel, DistributedDataParallel and torch.compile, nested in any order."""
    while True:
        if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            model = model.module
        elif _COMPILED in model._modules:
            model = model.get_submodule(_COMPILED)
        else:
            return model


def reshard(model: nn.Module) -> None:
    """Gives back the parameters that FSDP2 holds in full after a forward without backward.

    Those are copies, in the dtype of a MixedPrecisionPolicy, and what is written to them is lost.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")  # without it there is nothing to do
    if fsdp is not None:
        for module in model.modules():
            if isinstance(module, fsdp.FSDPModule):
                module.reshard()


def warn_of_separate_hardness(model: nn.Module, sites: Mapping[str, LambdaGELU]) -> None:
    """Warns of a λ that is spread over fewer ranks than other parameters of the model.

    Nobody sums its gradient over the other ranks then, which is wrong unless they all compute the same at its site.
    """
    most = max(map(_rank_count, model.parameters()), default=1)
    separate = [name for name, site in sites.items() if _rank_count(site.raw_hardness) < most]
    if separate:
        warnings.warn(
            f"λ of {', '.join(separate)} is not spread over the {most} ranks that share other parameters of the model: "
            "where their activations differ, each learns a λ of its own. With parallelize_module, give it "
            "lambda_gelu.integrations.tensor_parallel.HardnessParallel; with fully_shard, do not leave it out",
            stacklevel=3,
        )


def _rank_count(parameter: Tensor) -> int:
    """Of the mesh of a DTensor; 1 for any other."""
    mesh: Any = getattr(parameter, "device_mesh", None)
    return 1 if mesh is None else mesh.size()


def refuse_synchronized(model: nn.Module, slots: Iterable[Slot[M]], advice: str) -> None:
    """Raises ValueError for a place inside DistributedDataParallel, which has noted all parameters and buffers.

    It would wait for gradients that never come, fail to broadcast buffers that are gone, and leave new ones alone.
    """
    places = list(slots)
    for wrapper in model.modules():
        if isinstance(wrapper, nn.parallel.DistributedDataParallel):
            inside = set(wrapper.modules())
            for slot in places:
                if slot.parent in inside:
                    raise ValueError(f"{slot.name} is inside DistributedDataParallel, which cannot change: {advice}")


def refuse_sharded(model: nn.Module) -> None:
    """Raises ValueError for a model in which new parameters would be learned by each rank alone."""
    if _is_spread(model):
        raise ValueError(
            "the model is spread over ranks already (fully_shard, FullyShardedDataParallel or parallelize_module), and "
            "each rank would learn a new λ alone: convert first, then spread"
        )


def refuse_spread(model: nn.Module, advice: str) -> None:
    """Raises ValueError for a model whose weights no rank has in full."""
    if _is_spread(model):
        raise ValueError(
            "the model is spread over ranks (fully_shard, FullyShardedDataParallel or parallelize_module), and no rank "
            f"has its weights in full: {advice}"
        )


def _is_spread(model: nn.Module) -> bool:
    fsdp = sys.modules.get("torch.distributed.fsdp")
    flattened = fsdp is not None and any(isinstance(m, fsdp.FullyShardedDataParallel) for m in model.modules())
    return flattened or any(hasattr(parameter, "device_mesh") for parameter in model.parameters())


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
