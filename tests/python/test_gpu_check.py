"""scripts/gpu_check.py and benchmarks/bench_cuda.py without a GPU: what they refuse, and that their code works."""

import importlib.util
import json
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


@pytest.fixture
def gpu_check():
    spec = importlib.util.spec_from_file_location("gpu_check", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_without_a_gpu_the_check_says_so_in_one_sentence_and_builds_nothing(gpu_check):
    if not gpu_check.gpu_lacks():
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


def test_special_values_that_surprise_fail_the_step(gpu_check, monkeypatch):
    rows = [{"instruction": name, "max_error": 0.5, "surprises": 0} for name in ("ex2", "rcp", "rcp.f64")]
    monkeypatch.setattr(gpu_check, "run", lambda *arguments, **options: json.dumps(rows))
    check = gpu_check.Check(rehearse=True, jobs=1)
    assert list(check.approximations()) == ["ex2", "rcp", "rcp.f64"]
    rows[1]["surprises"] = 5
    with pytest.raises(gpu_check.StepError, match="rcp: special values are not what PTX promises, 5 of them"):
        check.approximations()


def test_a_failure_is_told_although_no_test_ran(gpu_check, monkeypatch, tmp_path):
    def run(name, *arguments, **options):
        if name == "xdist":
            return "False"
        (tmp_path / f"{name}.xml").write_text('<testsuites><testsuite tests="1" skipped="1"/></testsuites>')
        if name == "python":
            raise gpu_check.StepError("exit code 1")
        return ""

    monkeypatch.setattr(gpu_check, "run", run)
    monkeypatch.setattr(gpu_check, "LOGS", tmp_path)
    with pytest.raises(gpu_check.StepError, match=r"python: exit code 1; .*; python_cuda: no test ran"):
        gpu_check.Check(rehearse=False, jobs=1).python()


def test_a_result_is_found_among_warnings(gpu_check):
    assert gpu_check.json_in('a.py:3: UserWarning: {no}\n  x = [1]\n{\n "a": [1]\n}\nmore\n') == {"a": [1]}


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
