"""What a GPU result was measured on. `python benchmarks/gpu.py` prints it as JSON."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import torch

from machine import describe

ROOT = Path(__file__).parents[1]


def _first_line(*command: str) -> str:
    try:
        lines = subprocess.run(command, capture_output=True, check=True, text=True, cwd=ROOT).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return ""
    return lines[0].strip() if lines else ""


def commit() -> str:
    """Of the sources, with a mark where they differ from it."""
    name = _first_line("git", "rev-parse", "--short=12", "HEAD")
    return name and name + (" with changes" if _first_line("git", "status", "--porcelain", "-uno") else "")


def describe_gpu() -> dict:
    """The machine, the versions and the current GPU, where there is one."""
    description = describe() | {"commit": commit(), "torch_cuda": torch.version.cuda}
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
        query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        description |= {
            "gpu": gpu.name,
            "compute_capability": f"{gpu.major}.{gpu.minor}",
            "multiprocessors": gpu.multi_processor_count,
            "gpu_memory_bytes": gpu.total_memory,
            "l2_bytes": gpu.L2_cache_size,
            "gpus": torch.cuda.device_count(),
            "driver": _first_line(*query),
        }
    return description


def peak_bytes(call: Callable[[], object]) -> int:
    """Bytes of the current GPU that a call takes above what was there before. The first call is to warm up."""
    torch.cuda.empty_cache()  # a block that others left counts in full, however little of it is asked for
    call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


if __name__ == "__main__":
    print(json.dumps(describe_gpu()))
