"""Linear layers, convolutions and norms: what they do to a constant or a factor per channel."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ._dtypes import widest_dtype

_CONVOLUTIONS = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}
_TRANSPOSED = {nn.ConvTranspose1d: 1, nn.ConvTranspose2d: 2, nn.ConvTranspose3d: 3}
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_INSTANCE_NORMS = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
_LAST_DIM_NORMS = (nn.LayerNorm, nn.RMSNorm)
_NORMS = (*_BATCH_NORMS, *_INSTANCE_NORMS, *_LAST_DIM_NORMS, nn.GroupNorm)
_WEIGHTED = (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)


def kind_of(module: nn.Module) -> str | None:
    """``"linear"``, ``"conv"``, ``"conv_transpose"`` or ``"norm"``; None for what is not known here.

    A subclass counts where it computes what its base does: it has the same forward. transformers' ``Conv1D`` is linear.
    """
    for classes, kind in (
        ((nn.Linear,), "linear"),
        (tuple(_CONVOLUTIONS), "conv"),
        (tuple(_TRANSPOSED), "conv_transpose"),
        (_NORMS, "norm"),
    ):
        base = _base(module, classes)
        # A convolution computes in a second method, which a subclass may also change.
        inner = "_conv_forward"
        if base is not None and getattr(type(module), inner, None) is getattr(base, inner, None):
            return kind
    return "linear" if _is_transformers_conv1d(module) else None


def _base(module: nn.Module, classes: tuple[type[nn.Module], ...]) -> type[nn.Module] | None:
    for base in classes:
        if isinstance(module, base) and type(module).forward is base.forward:
            return base
    return None


def _is_transformers_conv1d(module: nn.Module) -> bool:
    """A linear layer whose weight lies the other way round, as in GPT-2."""
    return type(module).__name__ == "Conv1D" and type(module).__module__.startswith("transformers.")


def in_dim(module: nn.Module) -> int:
    """The dimension of a layer's input that holds its input channels."""
    kind = kind_of(module)
    if kind == "norm":
        return -1 if isinstance(module, _LAST_DIM_NORMS) else 1
    for classes in (_CONVOLUTIONS, _TRANSPOSED):
        for base, spatial in classes.items():
            if kind != "linear" and isinstance(module, base):
                return -1 - spatial
    return -1


out_dim = in_dim
"""The dimension of a layer's output that holds its output channels."""


def in_channels(module: nn.Module) -> int:
    """How many channels a layer takes."""
    if kind_of(module) == "norm":
        return out_channels(module)
    weight = weight_of(module)
    if _is_transformers_conv1d(module) or isinstance(module, tuple(_TRANSPOSED)):
        return weight.shape[0]
    return weight.shape[1] * getattr(module, "groups", 1)


def out_channels(module: nn.Module) -> int:
    """How many channels a layer gives."""
    if isinstance(module, _BATCH_NORMS + _INSTANCE_NORMS):
        return module.num_features
    if isinstance(module, nn.GroupNorm):
        return module.num_channels
    if isinstance(module, _LAST_DIM_NORMS):
        return module.normalized_shape[-1]
    weight = weight_of(module)
    if _is_transformers_conv1d(module):
        return weight.shape[1]
    return weight.shape[1] * module.groups if isinstance(module, tuple(_TRANSPOSED)) else weight.shape[0]


def weight_of(module: nn.Module) -> Tensor:
    """The weight as the forward uses it, a parametrized one too."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight


# --- a constant per channel ------------------------------------------------------------------------------------------


def why_no_shift(module: nn.Module) -> str:
    """Why a constant that is added to each input channel cannot be taken back in this layer; empty where it can."""
    kind = kind_of(module)
    name = type(module).__name__
    if kind is None:
        return f"{name} is no linear, convolution or norm layer that is known"
    if kind == "norm":
        if isinstance(module, _BATCH_NORMS + _INSTANCE_NORMS):
            if module.running_mean is None:
                return f"{name} subtracts the mean of each channel, so that no constant passes it: nothing to correct"
            return ""
        return f"{name} mixes the channels before any bias: a constant per channel changes more than a mean"
    if kind == "conv_transpose" and any(stride != 1 for stride in module.stride):
        return f"{name} with stride {tuple(module.stride)} makes a constant differ between output pixels"
    return ""


def shift_of(module: nn.Module, constants: Tensor) -> Tensor:
    """What a constant added to each input channel adds to each output channel of a linear layer or convolution.

    In the interior: where a convolution reads padding zeros, those are not shifted, and less is added.

    Args:
        constants: shape ``(in_channels,)``.

    Returns:
        Tensor: shape ``(out_channels,)``, float64 where the device has it.
    """
    weight = weight_of(module).detach()
    weight = weight.to(widest_dtype(weight.device))
    constants = constants.to(weight)
    if _is_transformers_conv1d(module):
        return constants @ weight
    if kind_of(module) == "linear":
        return weight @ constants
    kernel = weight.flatten(2).sum(2)
    groups = module.groups
    each = constants.unflatten(0, (groups, -1))
    if kind_of(module) == "conv":
        return torch.einsum("goi,gi->go", kernel.unflatten(0, (groups, -1)), each).flatten()
    return torch.einsum("gio,gi->go", kernel.unflatten(0, (groups, -1)), each).flatten()


# --- a factor per channel --------------------------------------------------------------------------------------------


def why_no_factor_in(module: nn.Module) -> str:
    """Why a factor of each input channel cannot be put into this layer; empty where it can."""
    kind = kind_of(module)
    if kind in (None, "norm"):
        return f"{type(module).__name__} is no linear layer or convolution"
    return _why_not_plain(module, ("weight",))


def why_no_factor_out(module: nn.Module) -> str:
    """Why a factor of each output channel cannot be put into this layer; empty where it can."""
    name = type(module).__name__
    if kind_of(module) is None:
        return f"{name} is no linear, convolution or norm layer that is known"
    if kind_of(module) == "norm":
        if getattr(module, "weight", None) is None:
            return f"{name} has no weight"
        if isinstance(module, _LAST_DIM_NORMS) and len(module.normalized_shape) != 1:
            return f"{name} has channels in {len(module.normalized_shape)} dimensions"
    return _why_not_plain(module, ("weight", "bias"))


def _why_not_plain(module: nn.Module, names: tuple[str, ...]) -> str:
    for name in names:
        tensor = getattr(module, name, None)
        if tensor is not None and module._parameters.get(name) is not tensor:
            return f"its {name} is computed from other parameters"
    return ""


def factors_in(module: nn.Module, factors: Tensor) -> Mapping[str, Tensor]:
    """The parameters after each input channel of a linear layer or convolution was multiplied by a factor.

    Args:
        factors: shape ``(in_channels,)``.

    Returns:
        Mapping: new values by name, in the parameters' dtype; rounded once.
    """
    weight = weight_of(module).detach()
    factors = factors.to(weight.device, widest_dtype(weight.device))
    if kind_of(module) == "conv":
        groups = module.groups
        spatial = (1,) * (weight.dim() - 2)
        by_group = weight.unflatten(0, (groups, -1)) * factors.view(groups, 1, -1, *spatial)
        return {"weight": by_group.flatten(0, 1).to(weight.dtype)}
    first = _is_transformers_conv1d(module) or kind_of(module) == "conv_transpose"
    shape = (-1, *(1,) * (weight.dim() - 1)) if first else (-1,)
    return {"weight": (weight * factors.view(shape)).to(weight.dtype)}


def factors_out(module: nn.Module, factors: Tensor) -> Mapping[str, Tensor]:
    """The parameters after each output channel of a layer was multiplied by a factor; as :func:`factors_in`."""
    weight = weight_of(module).detach()
    factors = factors.to(weight.device, widest_dtype(weight.device))
    if kind_of(module) == "conv_transpose":
        groups = module.groups
        spatial = (1,) * (weight.dim() - 2)
        by_group = weight.unflatten(0, (groups, -1)) * factors.view(groups, 1, -1, *spatial)
        scaled = by_group.flatten(0, 1)
    elif _is_transformers_conv1d(module) or kind_of(module) == "norm":
        scaled = weight * factors
    else:
        scaled = weight * factors.view(-1, *(1,) * (weight.dim() - 1))
    values = {"weight": scaled.to(weight.dtype)}
    bias = getattr(module, "bias", None)
    if bias is not None:
        values["bias"] = (bias.detach() * factors).to(bias.dtype)
    return values
