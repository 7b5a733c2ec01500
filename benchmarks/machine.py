"""What a benchmark ran on: processor, caches, clock, memory, versions."""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
from pathlib import Path

import torch

import lambda_gelu

RESULTS = Path(__file__).parent / "results"


def _lscpu() -> dict[str, str]:
    try:
        text = subprocess.run(["lscpu", "--json"], capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return {}

    def flatten(entries: list[dict]) -> dict[str, str]:
        flat: dict[str, str] = {}
        for entry in entries:
            flat[entry["field"].rstrip(":")] = entry["data"]
            flat |= flatten(entry.get("children", []))
        return flat

    return flatten(json.loads(text)["lscpu"])


def describe() -> dict:
    """The machine and the versions as a JSON-able dictionary. The clock is in kernels.json: bench_kernels measures it
    with a chain of dependent multiplications."""
    cpu = _lscpu()
    return {
        "cpu": cpu.get("Model name", platform.processor()),
        "family_model": f"{cpu.get('CPU family', '?')}/{cpu.get('Model', '?')}",
        "caches": {name: cpu[name] for name in ("L1d cache", "L1d", "L2 cache", "L2", "L3 cache", "L3") if name in cpu},
        "cores": os.cpu_count(),
        "platform": " ".join([platform.system(), platform.machine(), *filter(None, platform.libc_ver())]),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lambda_gelu": lambda_gelu.build_info(),
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"),
    }


def write(name: str, command: str, rows: list[dict], measured: dict | None = None) -> Path:
    """Writes benchmarks/results/<name>.json, one row a line; `measured` joins the description of the machine."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    head = json.dumps({"command": command, "machine": describe() | (measured or {})}, indent=1)
    body = ",\n  ".join(json.dumps(row) for row in rows)
    path.write_text(f'{head[:-2]},\n "rows": [\n  {body}\n ]\n}}\n')
    return path
