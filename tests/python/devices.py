"""Which devices a test runs on; conftest.py says how a test asks for them."""

from __future__ import annotations

import functools

import torch

import lambda_gelu

DEVICES = ("cpu", "cuda")


@functools.cache
def cuda_lacks() -> str:
    """Why the CUDA kernels cannot be tested here; empty where they can."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device"
    if not lambda_gelu.build_info()["cuda_archs"]:
        return "lambda_gelu was built without CUDA kernels"
    return ""


def devices_of(node, config) -> list[str]:
    """What the test `node` runs on, as parameters."""
    only = node.get_closest_marker("only")
    asked = config.getoption("device")
    chosen = [name for name in only.args if name in DEVICES] if only else DEVICES
    if asked:
        chosen = [name for name in chosen if name == asked]
    if only is None and cuda_lacks():  # silence: the CPU's run is the whole run of a machine without a GPU
        chosen = [name for name in chosen if name == "cpu"]
    return chosen
