"""λ-GELU by PyTorch's own GELU in double, and arguments to compare the operator with it."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def reference(x, hardness, channel_dim=1):
    """GELU(λx)/λ; differentiable to any order, and under every transform."""
    shape = [1] * x.dim()
    if hardness.numel() != 1:
        shape[channel_dim] = hardness.numel()
    hardness = hardness.double().reshape(shape)
    return F.gelu(x.double() * hardness) / hardness


def reference_softplus(x, raw, temperature, channel_dim=1):
    """The same with λ = 1 + softplus(s / τ)."""
    return reference(x, 1 + F.softplus(raw.double() / temperature), channel_dim)


def double(*shape, requires_grad=True):
    return torch.randn(shape, dtype=torch.float64).requires_grad_(requires_grad)


def hardness_of(count, requires_grad=True):
    return (torch.rand(count, dtype=torch.float64) + 0.5).requires_grad_(requires_grad)
