"""Which modules compute GELU, and how exactly: known classes, each checked by what it computes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TANH_ERROR = 4.7324e-4
"""max over x of |GELU by tanh - GELU|, at x = ±2.699, rounded up."""

# By name, since looking must not import the packages.
_KNOWN_NAMES = {
    f"{module}.{name}"
    for module, names in {
        "transformers.activations": (
            "AccurateGELUActivation",
            "ClippedGELUActivation",
            "FastGELUActivation",
            "GELUActivation",
            "GELUTanh",
            "NewGELUActivation",
            "PytorchGELUTanh",
            "QuickGELUActivation",
        ),
        "timm.layers.activations": ("GELU", "GELUTanh", "QuickGELU"),
    }.items()
    for name in names
}
# Constants that packages write with ten digits move the function by 1e-12, x by 1e5 at most.
_SAME = 1e-9


def is_candidate(module: nn.Module, gelu_classes: Iterable[type[nn.Module]] = ()) -> bool:
    """Whether it is of a class that is known, or said, to compute GELU."""
    kind = type(module)
    return isinstance(module, (nn.GELU, *gelu_classes)) or f"{kind.__module__}.{kind.__qualname__}" in _KNOWN_NAMES


def looks_like_gelu(module: nn.Module) -> bool:
    """Whether a class that is not known has GELU in its name, and nothing but the function in it."""
    return "gelu" in type(module).__name__.lower() and _is_plain(module)


def distance_from_gelu(module: nn.Module, gelu_classes: Iterable[type[nn.Module]] = ()) -> float | str:
    """How far a candidate is from GELU: a bound on the error for every x; or why it must be left alone, in words."""
    kind = type(module).__name__
    own_forward = type(module).forward is not nn.GELU.forward or "forward" in vars(module)
    if isinstance(module, nn.GELU) and not own_forward:
        return TANH_ERROR if module.approximate == "tanh" else 0.0
    if not _is_plain(module):
        return f"{kind} has parameters, buffers or modules of its own"
    if isinstance(module, nn.GELU) and not isinstance(module, tuple(gelu_classes)):
        return f"{kind} has a forward of its own; gelu_classes has it checked"
    return _measured_distance(module)


def _is_plain(module: nn.Module) -> bool:
    return not (module._parameters or module._buffers or module._modules)


@torch.no_grad()
def _measured_distance(module: nn.Module) -> float | str:
    kind = type(module).__name__
    # Where GELU and its approximations differ, and so far out that a clipped one shows.
    x = torch.cat((torch.linspace(-12, 12, 4801, dtype=torch.float64, device="cpu"), _tensor(-1e5, -100, 100, 1e5)))
    try:
        # The forward and not the call: hooks may record, or count.
        y = module.forward(x.clone())
    except Exception as error:
        return f"{kind} does not take a vector: {type(error).__name__}: {error}"
    if not isinstance(y, Tensor) or y.shape != x.shape:
        return f"{kind} does not give one number for each"
    if _largest(y - F.gelu(x)) < _SAME:
        return 0.0
    if _largest(y - F.gelu(x, approximate="tanh")) < _SAME:
        return TANH_ERROR
    difference = (y - F.gelu(x)).abs().nan_to_num(nan=torch.inf)
    worst = int(difference.argmax())
    return f"{kind} is not GELU: off by {difference[worst].item():.2g} at x = {x[worst].item():.4g}"


def _tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device="cpu")


def _largest(difference: Tensor) -> float:
    return difference.abs().nan_to_num(nan=torch.inf).max().item()
