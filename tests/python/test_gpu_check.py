"""scripts/gpu_check.py and benchmarks/bench_cuda.py without a GPU: what they refuse, and that their code works."""

import json
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


def test_a_result_is_found_among_warnings():
    json_in = runpy.run_path(str(SCRIPT))["json_in"]
    assert json_in('a.py:3: UserWarning: {no}\n  x = [1]\n{\n "a": [1]\n}\nmore\n') == {"a": [1]}


def test_the_digest_of_every_dtype_and_cut_is_another():
    digest = run(ROOT / "tests" / "gpu" / "digest.py", "cpu")
    assert digest.returncode == 0, digest.stderr
    found = json.loads(digest.stdout)
    assert "planes of 49, bfloat16" in found and len(set(found.values())) == len(found) == 16


def test_the_benchmark_runs_dry_and_refuses_to_call_that_a_measurement():
    refused = run(BENCHMARK, "--device", "cpu")
    assert refused.returncode == 2 and "add --quick" in refused.stderr
    dry = run(BENCHMARK, "--device", "cpu", "--quick", "--only", "latency 1024")
    assert dry.returncode == 0, dry.stderr
    assert "graph of 20 calls, backward" in dry.stderr + dry.stdout
    assert "wrote" not in dry.stdout
