"""Runs the C++ kernel benchmark and writes benchmarks/results/kernels.json, without what names the machine's owner."""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path

from machine import write

_COUNTERS = (
    "cycles_per_element",
    "ns_per_element",
    "GB_per_s",
    "copy_GB_per_s",
    "in_cache_GB_per_s",
    "of_limit",
    "of_one_lambda",
)
_MEASURED = ("clock_GHz", "L1d_bytes", "L2_bytes", "last_level_cache_bytes", "targets")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("executable", type=Path, help="bench_kernels, as CMake built it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        # Its table goes to the terminal as it comes.
        subprocess.run(
            [options.executable, f"--benchmark_out={out}", "--benchmark_out_format=json"], check=True, text=True
        )
        measured = json.loads(out.read_text())
    rows = []
    for benchmark in measured["benchmarks"]:
        case, target, dtype, direction, *rest = benchmark["run_name"].split("/")
        threads = next((int(part.split(":")[1]) for part in rest if part.startswith("threads:")), 1)
        row = {"case": case, "target": target, "dtype": dtype, "pass": direction, "threads": threads}
        rows.append(row | {name: round(benchmark[name], 4) for name in _COUNTERS if name in benchmark})
    context = {name: measured["context"][name] for name in _MEASURED if name in measured["context"]}
    print("wrote", write("kernels", "make bench", rows, measured=context))


if __name__ == "__main__":
    main()
