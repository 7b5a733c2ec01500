"""examples/python/substitution: its training, its tables, and every experiment in small."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from lambda_gelu import LambdaGELU, relu_gap

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "python"
RUN = EXAMPLES / "substitution" / "run.py"
DATA = Path(os.environ.get("LAMBDA_GELU_DATA", ROOT / "data"))
TEXT_IS_THERE = any((DATA / "wikitext-2" / name).exists() for name in ("train.txt", "train.txt.xz"))
IMAGES_ARE_THERE = any((DATA / "fashion-mnist" / f"train-images-idx3-ubyte{suffix}").exists() for suffix in ("", ".gz"))

sys.path.insert(0, str(EXAMPLES))
try:
    from substitution import records, tables, tasks, training
finally:
    sys.path.remove(str(EXAMPLES))


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(RUN), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


# --- training ---------------------------------------------------------------------------------------------------------


def small_text(steps: int = 4) -> tasks.Task:
    """The GPT's task on random bytes."""
    text = torch.randint(256, (4096,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    names = ("train", "calibration", "held_out", "validation", "test")
    return tasks.Task(
        name="gpt",
        title="",
        metric_name="perplexity",
        higher_is_better=False,
        steps=steps,
        score_every=1,
        curve_examples=1,
        optimizer="AdamW",
        lr=1e-3,
        weight_decay=0.1,
        warmup_steps=2,
        final_rate=0.1,
        lr_multiplier=10.0,
        batch_size=2,
        make_network=tasks.GPT,
        splits=dict.fromkeys(names, text),
    )


def test_a_text_is_scored_byte_by_byte_with_no_byte_left_out():
    text = torch.arange(5 * tasks.CONTEXT + 7).to(torch.uint8)
    seen = [(x.flatten(), target.flatten()) for x, target in tasks.in_order(text, 64)]
    assert torch.equal(torch.cat([x for x, _ in seen]), text[: 5 * tasks.CONTEXT].long())
    assert torch.equal(torch.cat([target for _, target in seen]), text[1 : 5 * tasks.CONTEXT + 1].long())


def test_the_learning_rate_rises_falls_as_a_cosine_and_stays():
    task = small_text(steps=22)
    rates = [task.rate(step) for step in range(30)]
    assert rates[:3] == [0.5, 1.0, 1.0] and rates[12] == pytest.approx(0.55)
    assert rates[22:] == [pytest.approx(0.1)] * 8
    assert all(a >= b for a, b in itertools.pairwise(rates[1:]))


def test_the_gpt_has_the_size_it_is_said_to_have_and_sees_no_later_byte():
    torch.manual_seed(0)
    network = tasks.GPT(nn.GELU).eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(0.84e6, rel=0.01)
    x = torch.randint(256, (1, 32))
    changed = x.clone()
    changed[0, 20] = (x[0, 20] + 1) % 256
    before, after = network(x)[0], network(changed)[0]
    assert torch.equal(before[:20], after[:20]) and not torch.equal(before[20], after[20])


def test_the_direct_measurement_of_a_site_is_the_closed_form_on_a_normal_sample():
    class Identity(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.activation = LambdaGELU(init_hardness=3.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.activation(x)

    # Quantiles instead of a sample: no noise but that of the grid.
    x = torch.special.ndtri((torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000).float().reshape(-1, 100)
    task = small_text()
    task.splits["calibration"] = (1.5 * x, torch.zeros(len(x)))
    (site,) = training.measured(task, Identity()).values()
    assert site["sigma"] == pytest.approx(1.5, rel=1e-3)
    assert site["ser_db"] == pytest.approx(relu_gap.ser_db(4.5), abs=0.01)
    assert site["gap"] == pytest.approx(1.5 * relu_gap.expected_gap(4.5), rel=1e-3)
    assert site["zeros_after"] == pytest.approx(0.5)


# --- records and tables -----------------------------------------------------------------------------------------------


def test_a_record_is_read_as_it_was_written_to_seven_digits(tmp_path):
    record = {"task": "gpt", "arm": "gelu", "seed": 3, "figures": {"test": {"loss": 1 / 3}, "curve": [{"step": 1}]}}
    written = records.write(tmp_path, record)
    assert written == records.path(tmp_path, "gpt", "gelu", 3)
    (found,) = records.read(tmp_path)
    assert found["figures"] == {"test": {"loss": 0.3333333}, "curve": [{"step": 1}]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        records.write(tmp_path, {**record, "figures": float("nan")})


def test_a_cost_is_above_0_where_it_is_worse():
    assert tables.cost("digits", 96.0, 95.0) == 1.0
    assert tables.cost("gpt", 6.0, 6.03) == pytest.approx(0.5)


# --- the experiments --------------------------------------------------------------------------------------------------


def test_experiments_run_once_repeat_bit_for_bit_and_become_a_page(tmp_path):
    pytest.importorskip("sklearn", reason="the digits")
    pytest.importorskip("matplotlib", reason="the picture")
    chosen = ["--tasks", "digits", "--seeds", 0, "--steps", 24]
    outputs = []
    for name, only in (("first", []), ("second", ["--arms", "gelu", "protocol", "recovered"])):
        folders = ["--results", tmp_path / name, "--cache", tmp_path / f"{name}-cache"]
        process = run("run", *chosen, *only, *folders)
        assert process.returncode == 0, process.stderr[-3000:]
        outputs.append({record["arm"]: record["figures"] for record in records.read(tmp_path / name)})
    first, second = outputs
    assert set(first) >= {"gelu", "relu", "paper", "protocol", "recovered", "gelu-continued", "relu-continued"}
    assert second == {arm: first[arm] for arm in ("gelu", "protocol", "recovered")}

    hardened = first["protocol"]
    assert hardened["curve"][-1]["phase"] == "done" and hardened["swap_step"] == 20
    for site in hardened["sites"].values():
        assert site["predicted_ser_db"] == pytest.approx(site["ser_db"], abs=0.1)
    assert first["recovered"]["before"] == first["gelu"]["test"] == first["gelu-continued"]["before"]

    untouched = {file: file.stat().st_mtime_ns for file in (tmp_path / "first").rglob("*.json")}
    assert run("run", *chosen, "--results", tmp_path / "first", "--cache", tmp_path / "none").returncode == 0
    assert untouched == {file: file.stat().st_mtime_ns for file in (tmp_path / "first").rglob("*.json")}

    page, picture = tmp_path / "page.md", tmp_path / "page" / "picture.png"
    page.write_text(f"<!-- {tables.BLOCK} --><!-- /{tables.BLOCK} -->\n")
    process = run("report", "--results", tmp_path / "first", "--page", page, "--figure", picture)
    assert process.returncode == 0, process.stderr[-3000:]
    assert picture.read_bytes().startswith(b"\x89PNG") and "](page/picture.png)" in page.read_text()
    cost = f"{first['recovered']['before']['metric']:.2f}"
    assert any(row.startswith("| GELU checkpoint → ReLU") and cost in row for row in page.read_text().splitlines())


@pytest.mark.parametrize(("task", "present"), [("fashion-mnist", IMAGES_ARE_THERE), ("gpt", TEXT_IS_THERE)])
def test_the_larger_experiments_run_on_a_slice(tmp_path, task, present):
    if not present:
        pytest.skip(f"no data for {task}: LAMBDA_GELU_DATA names the folder")
    folders = ["--results", tmp_path, "--cache", tmp_path / "cache"]
    process = run(
        "run", "--tasks", task, "--arms", "gelu", "recovered", "protocol", "--seeds", 1, "--steps", 12, *folders
    )
    assert process.returncode == 0, process.stderr[-3000:]
    arms = {record["arm"]: record["figures"] for record in records.read(tmp_path)}
    assert set(arms) == {"gelu", "recovered", "protocol"}
    assert all(0 < stage["loss"] < 10 for stage in (arms["recovered"]["recovered"], arms["protocol"]["recovered"]))


def test_an_arm_without_its_checkpoint_and_a_task_without_its_data_are_refused_by_name(tmp_path):
    pytest.importorskip("sklearn", reason="the digits")
    folders = ["--results", tmp_path / "results", "--cache", tmp_path / "cache", "--data-dir", tmp_path]
    process = run("run", "--tasks", "digits", "--arms", "recovered", "--steps", 4, *folders)
    assert process.returncode == 1 and "digits-gelu-0.pt is missing: run the arm gelu first" in process.stderr
    process = run("run", "--tasks", "gpt", *folders)
    assert process.returncode == 1 and "gpt: " in process.stderr and "train.txt is missing" in process.stderr
    process = run("report", "--results", tmp_path / "results")
    assert process.returncode == 1 and "holds no records" in process.stderr


def test_the_page_shows_what_the_records_hold():
    page = (ROOT / "docs" / "substitution.md").read_text(encoding="utf-8")
    found = tables.Records(records.read(ROOT / "benchmarks" / "results" / "substitution"))
    written = tables.page(found, "substitution/experiments.png")
    assert f"<!-- {tables.BLOCK} -->\n\n{written}\n\n<!-- /{tables.BLOCK} -->" in page
