"""In which precision λ is kept and computed."""

from __future__ import annotations

import torch

PRECISE = (torch.float32, torch.float64)


def precise_dtype(dtype: torch.dtype) -> torch.dtype:
    """In which λ can be kept and learned: float64, or float32 in place of any other."""
    return dtype if dtype in PRECISE else torch.float32


def widest_dtype(device: torch.device) -> torch.dtype:
    """float64; float32 on devices that have no other."""
    return torch.float32 if device.type in ("mps", "xpu") else torch.float64
