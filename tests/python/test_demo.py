"""examples/python/digits.py, in small."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

EXAMPLES = Path(__file__).parents[2] / "examples" / "python"


def run_demo(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / "digits.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_demo_prints_its_table_and_writes_picture_figures_and_data(tmp_path):
    data = tmp_path / "digits.csv"
    options = ["--seed", "7", "--seeds", "2", "--epochs", "3", "--init", "decreasing", "--target", "9"]
    result = run_demo(*options, "--output-dir", str(tmp_path / "out"), "--export-digits", str(data))
    assert result.returncode == 0, result.stderr
    assert "before the swap" in result.stdout and "ReLU from scratch" in result.stdout
    assert "seed 8" in result.stderr  # the progress bar

    record = json.loads((tmp_path / "out" / "digits.json").read_text())
    assert record["settings"]["seeds"] == [7, 8]
    runs = record["runs"]["λ-GELU"]
    assert [run["seed"] for run in runs] == [7, 8]
    for run in runs:
        first, *_, last = run["hardness_by_epoch"]
        assert first == pytest.approx([2.0, 1.7, 1.4, 1.1]) and last == [9.0] * 4
        assert run["after"] == run["accuracy_as_relu_by_epoch"][-1]
        assert run["before"] == run["accuracy_by_epoch"][-1]
        assert run["phase_by_epoch"] == ["learn", "harden", "harden", "done"]

    picture = (tmp_path / "out" / "digits.png").read_bytes()
    assert picture.startswith(b"\x89PNG") and len(picture) > 20_000

    with data.open(newline="") as file:
        rows = [list(map(int, row)) for row in csv.reader(file)]
    assert len(rows) == 1797 and {len(row) for row in rows} == {65}
    assert max(max(row[:64]) for row in rows) == 16 and {row[64] for row in rows} == set(range(10))


def test_bad_options_are_refused_before_any_training(tmp_path):
    result = run_demo("--target", "-1", "--output-dir", str(tmp_path))
    assert result.returncode == 2 and "must be finite and positive" in result.stderr
    assert not list(tmp_path.iterdir())
