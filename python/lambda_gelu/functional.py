"""The activation as functions of tensors: thin calls of ``torch.ops.lambda_gelu``."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .compiler import is_exporting
from .compiler import prepare as _prepare_compiler

# Looked up once: going through the packets of torch.ops costs as much as a small call.
_forward = torch.ops.lambda_gelu.lambda_gelu.default
_is_compiling = torch.compiler.is_compiling


def lambda_gelu(input: Tensor, hardness: Tensor | float, *, channel_dim: int = 1) -> Tensor:
    r"""Applies :math:`f(x; \lambda) = x \Phi(\lambda x)` element by element (arXiv 2603.21991).

    Φ is the cumulative distribution function of the standard normal. :math:`\lambda = 1` is GELU, and
    :math:`\lambda \to \infty` is ReLU. Computed in float32 (float64 for float64 input), accurately in the negative tail
    too. Differentiable twice, in forward mode, and under :mod:`torch.func`; the gradient of λ is the same bit for bit
    for any number of threads.

    Args:
        input: the tensor x, of any shape and strides; float32, float64, bfloat16 or float16.
        hardness: λ. A float, finite and positive in float32 (in float64 for float64 input), or a tensor of shape
            ``(1,)`` or ``(input.size(channel_dim),)`` on input's device, of any of these dtypes. The values of a
            tensor are not checked.
        channel_dim: the dimension of ``input`` along which λ varies; ignored where there is one λ. Default: 1.

    Shape:
        - Input: :math:`(*)`
        - Output: :math:`(*)`, same shape as the input, in the input's dtype

    Raises:
        ValueError: a hardness of the wrong length, or a float that is not finite and positive; a ``channel_dim`` out
            of range.
        TypeError: a dtype or layout other than those above.
        RuntimeError: a hardness on another device.

    Example::

        >>> x = torch.randn(2, 3, requires_grad=True)
        >>> hardness = torch.tensor([1.0, 2.0, 8.0], requires_grad=True)
        >>> lambda_gelu.lambda_gelu(x, hardness).sum().backward()
        >>> hardness.grad.shape
        torch.Size([3])
    """
    if _is_compiling():
        _prepare_compiler()
    if not isinstance(hardness, Tensor):
        hardness = _hardness_tensor(hardness, input)
    return _forward(input, hardness, channel_dim)


def softplus_lambda_gelu(input: Tensor, raw_hardness: Tensor, *, temperature: float, channel_dim: int = 1) -> Tensor:
    r"""Applies :func:`lambda_gelu` with :math:`\lambda = 1 + \mathrm{softplus}(s / \tau)` (arXiv 2603.21991).

    The reparameterization that keeps :math:`\lambda > 1` while s is trained without constraint, fused into the op,
    forward and backward. λ is computed in double precision and rounded to float32, unless s is float64.

    Args:
        input: as in :func:`lambda_gelu`.
        raw_hardness: s, of shape ``(1,)`` or ``(input.size(channel_dim),)`` on input's device, of dtype float32,
            float64, bfloat16 or float16.
        temperature: τ, finite and positive.
        channel_dim: as in :func:`lambda_gelu`.

    Shape:
        - Input: :math:`(*)`
        - Output: :math:`(*)`, same shape as the input, in the input's dtype

    Raises:
        ValueError, TypeError, RuntimeError: as :func:`lambda_gelu`; ValueError for a temperature that is not finite and
            positive.

    Example::

        >>> raw_hardness = torch.zeros(1, requires_grad=True)  # λ = 1 + ln 2
        >>> lambda_gelu.softplus_lambda_gelu(torch.randn(4), raw_hardness, temperature=0.1).sum().backward()
    """
    if _is_compiling():
        _prepare_compiler()
    return _forward(input, raw_hardness, channel_dim, temperature)


def set_gradient_reuse(enabled: bool) -> None:
    """Allows or forbids backward to write the gradient of the input into the memory of the incoming gradient.

    That happens only where the incoming gradient is the last reference to its memory and first order is all that is
    asked for, so that nobody can see it change. It saves a buffer of the activation's size. On by default; the
    setting holds for the whole process, and is meant for measurements and debugging.
    """
    torch.ops.lambda_gelu.set_gradient_reuse(enabled)


def gradient_reuse_enabled() -> bool:
    """Whether :func:`set_gradient_reuse` allows it."""
    return torch.ops.lambda_gelu.gradient_reuse_enabled()


def gradient_reuse_count() -> int:
    """How often a gradient has been reused in this process."""
    return torch.ops.lambda_gelu.gradient_reuse_count()


def _hardness_tensor(hardness: float, input: Tensor) -> Tensor:
    if not isinstance(input, Tensor):
        raise TypeError(f"input must be a Tensor, got {type(input).__name__}")
    if is_exporting():
        _refuse_unknown(hardness)
    if isinstance(hardness, bool) or not isinstance(hardness, (int, float)):
        raise TypeError(f"hardness must be a Tensor or a float, got {type(hardness).__name__}")
    if not 0 < hardness < math.inf:  # math.isfinite would break the graph of a compiler that takes it for a variable
        raise ValueError(f"hardness must be finite and positive, got {hardness}")
    dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
    if not torch.finfo(dtype).tiny <= hardness <= torch.finfo(dtype).max:
        raise ValueError(f"hardness must be finite and positive in {dtype}, got {hardness}")
    return torch.full((1,), hardness, dtype=dtype, device=input.device)


def _refuse_unknown(hardness: float) -> None:
    """Raises for a number that a program being exported reads from a tensor, which has no value while it is traced."""
    from torch.fx.experimental.symbolic_shapes import guard_or_false, guard_or_true  # noqa: PLC0415 - brings sympy

    if guard_or_true(hardness > 0) != guard_or_false(hardness > 0):
        raise ValueError(
            "hardness must be known while a program is exported, got a number read from a tensor (float(tensor) or "
            "tensor.item()): give the tensor itself, of shape (1,)"
        )
