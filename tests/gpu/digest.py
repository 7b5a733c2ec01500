"""Digests of dλ over fixed inputs, as JSON: what the kernels promise to be the same on every GPU model.

The inputs are integers scaled by powers of two, so that no library's random numbers come into it. `digest.py cpu` does
the same with the CPU's kernels, whose bits are others.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys

import torch

import lambda_gelu  # noqa: F401 - registers the operators

CASES = {  # shape, channel_dim, number of λ
    "one": ((3_000_017,), 0, 1),
    "last dimension": ((3_001, 770), -1, 770),
    "planes": ((33, 65, 28, 28), 1, 65),
    "planes of 49": ((130, 65, 7, 7), 1, 65),
}
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def numbers(count: int, factor: int, scale: float) -> torch.Tensor:
    """In [-scale, scale), scattered by a multiplicative hash; exact in float64."""
    scattered = (torch.arange(count, dtype=torch.int64) * factor) % 2**32
    return (scattered - 2**31).double() * (scale * 2.0**-31)


def main() -> None:
    device = sys.argv[1] if len(sys.argv) > 1 else "cuda"
    digests = {}
    for name, (shape, channel_dim, count) in CASES.items():
        size = torch.Size(shape).numel()
        x, g = numbers(size, 2_654_435_761, 4.0).reshape(shape), numbers(size, 2_246_822_519, 1.0).reshape(shape)
        raw = numbers(count, 3_266_489_917, 0.5).float().to(device)
        for dtype in DTYPES:
            arguments = g.to(dtype).to(device), x.to(dtype).to(device), raw, channel_dim, 0.5
            _, gradient = torch.ops.lambda_gelu.lambda_gelu_backward(*arguments)
            bits = struct.pack(f"<{gradient.numel()}i", *gradient.cpu().view(torch.int32).tolist())
            digests[f"{name}, {str(dtype).removeprefix('torch.')}"] = hashlib.sha256(bits).hexdigest()[:16]
    print(json.dumps(digests, indent=1))


if __name__ == "__main__":
    main()
