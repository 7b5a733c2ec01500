"""examples/cpp/paper beside examples/paper: one protocol in two languages."""

from __future__ import annotations

import functools
import json
import math
import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from examples.paper import arm as arms
from examples.paper import records
from examples.paper.system import Data
from examples.paper.systems import SYSTEMS
from examples.paper.training import Run, Trainer

ROOT = Path(__file__).parents[2]
PAPER = ROOT / "build" / "editable" / "examples" / "cpp" / "paper"
DATA = Path(os.environ.get("LAMBDA_GELU_DATA", ROOT / "data"))
FOLDERS = {"fashion-mnist": "fashion-mnist", "gpt4x128-bytes": "wikitext-2"}
ARMS = {arm.name: arm for arm in (arms.GELU, arms.RELU, arms.UNIFORM, arms.INCREASING, arms.DECREASING)}

pytestmark = pytest.mark.skipif(not PAPER.exists(), reason=f"{PAPER.relative_to(ROOT)} is not built: make build")


def paper(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [str(PAPER), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def needs_data(system: str) -> None:
    if not (DATA / FOLDERS[system]).exists():
        pytest.skip(f"no {FOLDERS[system]}: LAMBDA_GELU_DATA names the folder")


@functools.cache
def data_of(system: str) -> Data:
    return SYSTEMS[system].load(DATA, False)


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("system", FOLDERS)
def test_the_settings_are_those_of_python(tmp_path, system, arm):
    shown = paper("--show-settings", "--system", system, "--arm", arm)
    run = Run(SYSTEMS[system], ARMS[arm], 0, tmp_path, tmp_path)
    records.check_settings(run.head | {"settings": json.loads(shown.stdout)}, run.head, PAPER)


@pytest.mark.parametrize(
    ("system", "arm", "tolerance"),
    [
        ("fashion-mnist", "uniform", 1e-5),
        ("fashion-mnist", "gelu", 1e-5),
        ("fashion-mnist", "relu", 1e-5),
        ("gpt4x128-bytes", "uniform", 1e-3),  # LibTorch's AdamW rounds otherwise than Python's
    ],
)
def test_a_run_is_that_of_python(tmp_path, system, arm, tolerance):
    """Same random numbers, so the same weights, the same batches, and the same λ as long as roundings do not grow."""
    needs_data(system)
    python = tmp_path / "python"
    run = Run(replace(SYSTEMS[system], epochs=4), ARMS[arm], 3, python, tmp_path, examples=32)
    expected = Trainer(run, data_of(system)).train()
    file = tmp_path / "cpp" / system / f"{arm}-3.jsonl"
    options = ("--arm", arm, "--seed", 3, "--epochs", 4, "--examples", 32, "--data-dir", DATA)
    finished = paper("--system", system, *options, "--output", file)
    assert finished.returncode == 0, finished.stderr

    found, again = records.find(tmp_path / "cpp", run.head), records.find(python, run.head)
    assert found.is_finished
    assert found.head["machine"]["threads"] == 1
    for key in ("sites", "parameters", "steps_per_epoch"):
        assert found.head[key] == expected.head[key]
    assert len(found.epochs) == 5
    for ours, theirs in zip(found.epochs, again.epochs, strict=True):
        assert_close(ours, theirs, 1e-5 if ours["epoch"] == 0 else tolerance)
    again.end["best"].pop("corrected", None)  # not in C++
    assert_close(found.end, again.end, tolerance)


def assert_close(found: object, expected: object, tolerance: float, where: str = "") -> None:
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for key in expected.keys() - {"seconds"}:
            assert_close(found[key], expected[key], tolerance, f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for index, pair in enumerate(zip(found, expected, strict=True)):
            assert_close(*pair, tolerance, f"{where}[{index}]")
    elif isinstance(expected, float):
        assert math.isclose(found, expected, rel_tol=tolerance, abs_tol=tolerance), (where, found, expected)
    else:
        assert found == expected, where


def test_the_report_of_the_swap_is_shown(tmp_path):
    needs_data("fashion-mnist")
    file = tmp_path / "record.jsonl"
    finished = paper("--epochs", 2, "--examples", 64, "--data-dir", DATA, "--output", file)
    assert "4 sites are ReLU now" in finished.stdout
    assert "2/2 steps" in finished.stderr


def test_a_run_that_is_stopped_leaves_whole_lines(tmp_path):
    needs_data("fashion-mnist")
    file = tmp_path / "record.jsonl"
    command = [str(PAPER), "--data-dir", str(DATA), "--epochs", "100000", "--examples", "256", "--output", str(file)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        while not (file.exists() and '"epoch":1,' in file.read_text()):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert "stopped after step" in said
    text = file.read_text()
    assert text.endswith("\n")
    record = records.read_file(file)
    assert record.end is None
    assert [epoch["epoch"] for epoch in record.epochs] == list(range(len(record.epochs)))


def test_a_loss_that_is_not_finite_ends_the_run_and_says_where(tmp_path):
    needs_data("fashion-mnist")
    file = tmp_path / "record.jsonl"
    failed = paper("--data-dir", DATA, "--epochs", 3, "--examples", 512, "--lr", "1e30", "--output", file)
    assert failed.returncode == 1
    record = records.read_file(file)
    assert record.end["status"] == "non-finite loss"
    assert record.end["where"] == {"epoch": 1, "step": 2}
    assert "stopped being finite in epoch 1, step 2" in failed.stderr


def test_a_record_is_never_mixed_with_another(tmp_path):
    needs_data("fashion-mnist")
    file = tmp_path / "record.jsonl"
    file.write_text("{}\n")
    refused = paper("--data-dir", DATA, "--output", file)
    assert refused.returncode == 2
    assert "record.jsonl is there already" in refused.stderr
    assert file.read_text() == "{}\n"


@pytest.mark.parametrize(
    ("system", "missing"),
    [("fashion-mnist", "train-images-idx3-ubyte.gz"), ("gpt4x128-bytes", "train.txt.xz")],
)
def test_missing_data_name_the_file_and_the_option(tmp_path, system, missing):
    refused = paper("--system", system, "--data-dir", tmp_path, "--output", tmp_path / "record.jsonl")
    assert refused.returncode == 2
    assert str(tmp_path / FOLDERS[system] / missing) in refused.stderr
    assert "say --data-dir or set LAMBDA_GELU_DATA" in refused.stderr
    assert not (tmp_path / "record.jsonl").exists()


def test_texts_of_another_size_are_refused(tmp_path):
    (tmp_path / "wikitext-2").mkdir()
    (tmp_path / "wikitext-2" / "train.txt").write_text(" = Valkyria = \n")
    refused = paper("--system", "gpt4x128-bytes", "--data-dir", tmp_path, "--output", tmp_path / "record.jsonl")
    assert "train.txt: expected 10797148 bytes, got 15" in refused.stderr
