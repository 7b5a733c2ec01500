"""Runs the accuracy tests of the kernels and writes their worst cases to benchmarks/results/accuracy.json."""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
import xml.etree.ElementTree as ET
from pathlib import Path

from machine import write

_PROPERTY = re.compile(r"(?P<measure>.+)_lambda_(?P<hardness>[\d.]+)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("executable", type=Path, help="kernels_tests, as CMake built it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.xml"
        command = [options.executable, "--gtest_filter=*Accuracy*", f"--gtest_output=xml:{out}"]
        subprocess.run(command, check=True, capture_output=True)
        cases = list(ET.parse(out).iter("testcase"))
    rows = []
    for case in cases:
        test, target = case.get("name", "").split("/")
        target = target.replace("cuda", "cuda-host")  # the CUDA kernels, but not on a GPU
        for recorded in case.iter("property"):
            if match := _PROPERTY.fullmatch(recorded.get("name", "")):
                row = {"test": test, "target": target, "measure": match["measure"]}
                rows.append(row | {"hardness": float(match["hardness"]), "worst": float(recorded.get("value", ""))})
    print("wrote", write("accuracy", "make bench", rows))


if __name__ == "__main__":
    main()
