"""examples/python/train_distributed.py: unchanged in one process and under torchrun, with the same λ."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import distributed

SCRIPT = Path(__file__).parents[2] / "examples" / "python" / "train_distributed.py"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
EPOCHS = 4

pytest.importorskip("sklearn", reason="the example's data")


def run(*launcher: str, engine: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher, str(SCRIPT), f"--engine={engine}", f"--epochs={EPOCHS}"]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert process.returncode == 0, process.stderr[-5000:]
    return process.stdout


def hardness(output: str) -> torch.Tensor:
    """λ after every epoch, shape (EPOCHS, 4)."""
    rows = re.findall(r"^ +\d+ (?:learn|harden) +[\d.]+ +[\d.]+  ([\d. ]+)$", output, re.MULTILINE)
    assert len(rows) == EPOCHS, output
    return torch.tensor([[float(value) for value in row.split()] for row in rows])


@pytest.fixture(scope="module")
def alone() -> str:
    return run(engine="ddp")


def test_it_learns_hardens_and_swaps(alone):
    trace = hardness(alone)
    assert "1 process(es)" in alone and "4 sites are ReLU now" in alone
    assert (trace.diff(dim=0) != 0).all() and torch.allclose(trace[-1], torch.tensor(7.978846))
    assert re.search(r"accuracy [\d.]+ % before the swap, [\d.]+ % after it: cost [+-][\d.]+ points", alone)


@pytest.mark.skipif(not distributed.is_available() or not distributed.is_gloo_available(), reason="needs gloo")
@pytest.mark.parametrize("engine", ["ddp", "fsdp2"])
def test_two_processes_print_the_hardness_of_one(alone, engine):
    output = run(*TORCHRUN, engine=engine)
    assert f"2 process(es), {engine}" in output
    # float32: two partial sums in place of one, some 15 steps long, and 6 digits printed.
    torch.testing.assert_close(hardness(output), hardness(alone), rtol=1e-5, atol=0)
