"""Inductor: the operators as formulas that it can fuse with their neighbours.

In float32 one exponential and one division serve forward, dx and dλ:

    Φ(−|z|) = 2^(−z² / (2 ln 2)) R(|z|),    y = relu(x) − |x| Φ(−|z|),    z = λx

R is half the scaled complementary error function, as P/Q of degrees 3 and 4 (scripts/fit_decomposition.py): nothing
cancels in the negative tail, where x/2 (1 + erf) loses every digit. What remains there is the rounding of z², which the
exponential multiplies by z²/2: 3e-5 relative at z = −13, below which y is no normal number any more.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._dtypes import widest_dtype

FORWARD = torch.ops.lambda_gelu.lambda_gelu.default
BACKWARD = torch.ops.lambda_gelu.lambda_gelu_backward.default

VERSION = 1
"""Goes into the key of the compiler's caches: raise it with every change of what the functions below compute."""

_P = (0.5, 0.34376093, 0.1091486, 0.01460928)
_Q = (1.0, 1.48540305, 0.9035166, 0.27322241, 0.03663116)

_INV_SQRT_2PI = 1 / math.sqrt(2 * math.pi)
_HALF_LOG2_E = 0.5 / math.log(2)
# φ(z) underflows beyond them (src/ops/formulas.cpp). |x| is clamped there: no power of it overflows.
_END = {torch.float32: 15.0, torch.float64: 39.0}
_RANGE = {torch.float32: (1e-37, 1e37), torch.float64: (1e-300, 1e300)}


def forward(input: Tensor, hardness: Tensor, channel_dim: int = 1, temperature: float | None = None) -> Tensor:
    """What ``lambda_gelu`` computes, in ATen operations."""
    gate = _Gate(input, hardness, channel_dim, temperature)
    return (torch.relu(gate.x) - gate.a * gate.tail).to(input.dtype)


def backward(
    grad_output: Tensor, input: Tensor, hardness: Tensor, channel_dim: int = 1, temperature: float | None = None
) -> tuple[Tensor, Tensor]:
    """What ``lambda_gelu_backward`` computes, in ATen operations."""
    gate = _Gate(input, hardness, channel_dim, temperature)
    grad = grad_output.to(gate.x.dtype)
    scaled = gate.z * gate.bell  # sqrt(2π) |z| φ(z)
    low = gate.tail - scaled * _INV_SQRT_2PI
    grad_input = torch.where(gate.x > 0, 1 - low, low) * grad
    # Not z²: that leaves the range of float32 for λ far from 1.
    total = _sum_to(gate.a * scaled * grad, gate.shape).reshape(hardness.shape)
    grad_hardness = total * (_INV_SQRT_2PI / gate.hardness)
    if temperature is not None:
        grad_hardness = grad_hardness * (torch.sigmoid(_scaled(hardness, temperature)) / temperature)
    return grad_input.to(input.dtype), grad_hardness.to(hardness.dtype)


class _Gate:
    """The terms that forward and backward share, in the compute type."""

    def __init__(self, input: Tensor, hardness: Tensor, channel_dim: int, temperature: float | None) -> None:
        dtype = torch.float64 if input.dtype == torch.float64 else torch.float32
        self.shape = [1] * input.dim()
        if not _is_one(hardness.shape[0]):
            self.shape[channel_dim % input.dim()] = hardness.shape[0]
        exact = hardness if temperature is None else _hardness_from_raw(hardness, temperature)
        # Stored, or Inductor would compute λ and a quotient again for every element.
        self.hardness = _stored(exact.to(dtype).clamp(*_RANGE[dtype]))
        end = _stored(_END[dtype] / self.hardness)
        self.x = input.to(dtype)
        self.a = torch.minimum(self.x.abs(), end.reshape(self.shape))
        self.z = self.a * self.hardness.reshape(self.shape)
        if dtype == torch.float64:
            self.bell = torch.exp(self.z * self.z * -0.5)
            self.tail = torch.erfc(self.z * math.sqrt(0.5)) * 0.5
        else:
            self.bell = torch.exp2(self.z * self.z * -_HALF_LOG2_E)
            self.tail = self.bell * (_horner(_P, self.z) / _horner(_Q, self.z))


def _horner(coefficients: tuple[float, ...], z: Tensor) -> Tensor:
    result = z * coefficients[-1] + coefficients[-2]
    for coefficient in coefficients[-3::-1]:
        result = result * z + coefficient
    return result


def _stored(per_hardness: Tensor) -> Tensor:
    return per_hardness.as_strided(per_hardness.shape, (1,))


def _is_one(count: Any) -> bool:
    if isinstance(count, int):
        return count == 1
    from torch.fx.experimental.symbolic_shapes import guard_or_false  # noqa: PLC0415 - loaded with the compiler

    return guard_or_false(count == 1)


def _sum_to(elementwise: Tensor, shape: list[Any]) -> Tensor:
    dims = [dim for dim, size in enumerate(shape) if isinstance(size, int) and size == 1]
    return elementwise.sum(dims) if dims else elementwise


def _scaled(raw_hardness: Tensor, temperature: float) -> Tensor:
    double = widest_dtype(raw_hardness.device)
    return raw_hardness.to(double) / temperature


def _hardness_from_raw(raw_hardness: Tensor, temperature: float) -> Tensor:
    t = _scaled(raw_hardness, temperature)
    hardness = torch.relu(t) + torch.log1p(torch.exp(-t.abs())) + 1
    return hardness if raw_hardness.dtype == torch.float64 else hardness.to(torch.float32)
