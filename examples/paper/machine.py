"""What a run was made on, for its record."""

from __future__ import annotations

import datetime
import os
import platform
from pathlib import Path
from typing import Any

import torch

import lambda_gelu


def describe(device: str, processes: int) -> dict[str, Any]:
    """Processor or GPU, threads, processes, versions and date."""
    found = {
        "device": _processor() if device == "cpu" else torch.cuda.get_device_name(device),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lambda_gelu": lambda_gelu.__version__,
        "instructions": lambda_gelu.build_info()["cpu_target"],
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    known = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in known.items()}
    family = f"family {facts['cpu family']}, model {facts['model']}" if "cpu family" in facts else ""
    return " ".join(filter(None, [facts.get("model name", platform.processor()), family and f"({family})"]))
