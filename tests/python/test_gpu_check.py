"""scripts/gpu_check.py and benchmarks/bench_cuda.py without a GPU: what they refuse, and that their code works."""

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "gpu_check.py"
BENCHMARK = ROOT / "benchmarks" / "bench_cuda.py"


def run(script, *arguments):
    return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, check=False)


def test_without_a_gpu_the_check_says_so_in_one_sentence_and_builds_nothing():
    if not runpy.run_path(str(SCRIPT))["gpu_lacks"]():
        pytest.skip("there is a GPU")
    result = run(SCRIPT)
    assert result.returncode == 2 and not result.stdout
    assert result.stderr.startswith("gpu-check: needs an NVIDIA GPU, but ")
    assert result.stderr.count("\n") == 1


def test_an_unknown_step_is_refused():
    result = run(SCRIPT, "biuld")
    assert result.returncode == 2 and "step must be one of build, python, cpp" in result.stderr


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_the_scan_of_the_approximations_finds_correct_rounding_correct():
    result = run(SCRIPT, "--rehearse", "approximations")
    assert result.returncode == 0, result.stderr
    assert "approximations  passed" in result.stdout


def test_the_benchmark_runs_dry_and_refuses_to_call_that_a_measurement():
    pytest.importorskip("tqdm")
    refused = run(BENCHMARK, "--device", "cpu")
    assert refused.returncode == 2 and "add --quick" in refused.stderr
    dry = run(BENCHMARK, "--device", "cpu", "--quick", "--only", "latency 1024")
    assert dry.returncode == 0, dry.stderr
    assert "graph of 20 calls, backward" in dry.stderr + dry.stdout
    assert "wrote" not in dry.stdout
