"""λ-GELU in a plan of ``torch.distributed.tensor.parallel.parallelize_module``. Needs nothing but torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ParallelStyle
from torch.distributed.tensor.placement_types import Placement

from ..modules import LambdaGELU
from ..rules import sharding


class HardnessParallel(ParallelStyle):
    """For a :class:`LambdaGELU` between parallelized layers, tensor-parallel or sequence-parallel.

    ``ColwiseParallel`` hands its rank's part of the activations on as a plain tensor. A plain λ behind it would get the
    gradient of that part only, so that every rank would learn a λ of its own, silently. With this style λ is a
    ``DTensor``: a single λ is replicated, and the ranks' gradients are summed; λ per channel are sharded along with the
    channels where `input_layouts` shards `channel_dim`, as written, and replicated otherwise.

    ``hardness_override`` stays a plain buffer that every rank has in full: schedule, freezing and checkpoints are as in
    one process. ``hardness`` and what needs it has to be asked for on every rank. Make the optimizer afterwards, since
    ``raw_hardness`` becomes another parameter.

    Args:
        input_layouts: how a plain input is sharded, as the layer before leaves it. Default ``Shard(-1)``, as behind
            ``ColwiseParallel``; ``Shard(1)`` for a sequence in dimension 1. A ``DTensor`` brings its own.
        use_local_output: whether the output is the rank's part as a plain tensor. Default True, as in
            ``ColwiseParallel``. For channels that the mesh does not divide evenly set both to False.

    Raises:
        TypeError: where the plan gives it to another module, or to a site that has one already; nothing is changed.

    Example::

        >>> plan = {"up": ColwiseParallel(), "activation": HardnessParallel(), "down": RowwiseParallel()}
        >>> parallelize_module(mlp, init_device_mesh("cuda", (world_size,)), plan)
    """

    def __init__(self, *, input_layouts: Placement | None = None, use_local_output: bool = True) -> None:
        super().__init__()
        self.input_layouts = Shard(-1) if input_layouts is None else input_layouts
        self.use_local_output = use_local_output

    @torch.no_grad()
    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        if not isinstance(module, LambdaGELU):
            raise TypeError(f"HardnessParallel is for LambdaGELU, got {type(module).__name__}")
        raw = module.raw_hardness
        if isinstance(raw, DTensor):
            raise TypeError("raw_hardness is a DTensor already: parallelize a LambdaGELU once, and before fully_shard")
        sharding.register()
        split = module.num_parameters > 1 and self.input_layouts == Shard(module.channel_dim)

        def from_source(tensor: Tensor, placement: Placement) -> DTensor:
            return distribute_tensor(tensor.detach(), device_mesh, [placement], src_data_rank=self.src_data_rank)

        distributed = from_source(raw, Shard(0) if split else Replicate())
        module._write_override(from_source(module.hardness_override, Replicate()).to_local(), frozen=module.is_frozen)
        module.raw_hardness = nn.Parameter(distributed, requires_grad=raw.requires_grad)
        layout = self.input_layouts
        # Closures, as torch's own styles have them: copy.deepcopy leaves the mesh in them alone.
        module.register_forward_pre_hook(
            lambda module, args, kwargs: _to_distributed(device_mesh, layout, module, args, kwargs), with_kwargs=True
        )
        if self.use_local_output:
            module.register_forward_hook(_to_local)
        return module

    def __repr__(self) -> str:
        return f"{type(self).__name__}(input_layouts={self.input_layouts}, use_local_output={self.use_local_output})"


def _to_distributed(
    mesh: DeviceMesh, layout: Placement, module: LambdaGELU, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    input = args[0] if args else kwargs["input"]
    if not isinstance(input, DTensor):
        input = DTensor.from_local(input, mesh, [layout], run_check=False, **_uneven_shape(mesh, layout, module, input))
    return (input,), {}


def _uneven_shape(mesh: DeviceMesh, layout: Placement, module: LambdaGELU, input: Tensor) -> dict[str, Any]:
    """The whole shape where the channels are not divided evenly, which from_local would get wrong."""
    if module.num_parameters == 1 or not isinstance(layout, Shard):
        return {}
    dim = module.channel_dim % input.ndim
    if layout.dim % input.ndim != dim or input.size(dim) * mesh.size() == module.num_parameters:
        return {}
    whole = torch.empty([*input.shape[:dim], module.num_parameters, *input.shape[dim + 1 :]], device="meta")
    return {"shape": whole.shape, "stride": whole.stride()}


def _to_local(module: LambdaGELU, args: tuple[Any, ...], output: Any) -> Tensor:
    return output.to_local() if isinstance(output, DTensor) else output
