"""examples/paper: many runs at a time, interrupted and killed as people and machines do it, and several processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import paper_standin
import paper_torchrun
import pytest
import torch
from paper_standin import PLAIN
from torch import distributed

from examples.paper import records, run
from examples.paper.training import Run, Trainer

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
COMMAND = [sys.executable, "-m", "paper_standin"]
TIMEOUT = 400  # s, on a machine with much else to do


@pytest.fixture(autouse=True, scope="module")
def standin():
    with paper_standin.registered():
        yield


def started(folder: Path, *more: object, **environment: str) -> subprocess.Popen[str]:
    """The command in a group of processes of its own, as a shell starts it."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = os.pathsep.join([str(HERE), str(ROOT)])
    with (folder / "told").open("a") as told:
        return subprocess.Popen(
            [*COMMAND, *paper_standin.arguments(folder, *more)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths, **environment},
            stdout=told,
            stderr=told,
            text=True,
            start_new_session=True,
        )


def wait_for(process: subprocess.Popen[str], folder: Path, condition) -> None:
    limit = time.monotonic() + TIMEOUT
    while not condition():
        assert process.poll() is None, (folder / "told").read_text()
        assert time.monotonic() < limit, (folder / "told").read_text()
        time.sleep(0.05)


def epochs(folder: Path) -> list[int]:
    """How many lines the records have that are under way."""
    return [len(record.epochs) for record in records.read(folder / "results") if record.end is None]


def here(folder: Path, *more: object) -> int:
    """The exit status of the same command in this process, one run after the other."""
    before = torch.get_num_threads()
    try:
        with pytest.raises(SystemExit) as caught:
            run.main(paper_standin.arguments(folder, "--workers", "1", *more))
    finally:
        torch.set_num_threads(before)
    return caught.value.code


ONE = ["--arms", "uniform-recovered"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict:
    """The records of what is interrupted below, where nothing interrupts it."""
    folder = tmp_path_factory.mktemp("whole")
    assert here(folder, *MANY) == 1
    assert here(folder, *ONE) == 0
    return paper_standin.read(folder)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=["Ctrl-C", "end", "kill -9"])
def test_a_command_that_is_ended_leaves_a_record_and_goes_on_to_the_same(end, whole, tmp_path):
    process = started(tmp_path, *ONE, STANDIN_STEP_SECONDS="0.1", STANDIN_SAVE_SECONDS="0.3")
    checkpoint = tmp_path / "cache" / "standin" / "uniform-recovered-0.pt"
    wait_for(process, tmp_path, lambda: epochs(tmp_path) > [2] and checkpoint.exists())
    process.send_signal(end)
    status = process.wait(TIMEOUT)
    told = (tmp_path / "told").read_text()
    assert status == (-signal.SIGKILL if end == signal.SIGKILL else 130), told
    assert ("stopped after step" in told) == (end != signal.SIGKILL) and "Traceback" not in told
    assert checkpoint.exists() and epochs(tmp_path) > [2]
    assert here(tmp_path, *ONE) == 0
    key = ("standin", "uniform-recovered", 0)
    assert paper_standin.read(tmp_path) == {key: whole[key]}


# --- Ray --------------------------------------------------------------------------------------------------------------

MANY = ["--arms", "gelu", "uniform-neurons", "--set", "lr=0.05,1e30", "clip=None", "--seeds", "1"]


def test_ray_trains_many_runs_at_a_time_to_the_same_records_and_ctrl_c_ends_them_well(whole, tmp_path):
    pytest.importorskip("ray", reason='the runs are done one after the other without "ray[tune]"')
    home = tmp_path / "home"
    home.mkdir()
    process = started(tmp_path, *MANY, "--workers", "2", STANDIN_STEP_SECONDS="1", HOME=str(home))
    wait_for(process, tmp_path, lambda: len(epochs(tmp_path)) == 2 and min(epochs(tmp_path)) > 1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the processes of Ray, too
    status = process.wait(TIMEOUT)
    told = (tmp_path / "told").read_text()
    assert status == 130 and told.count("stopped after step") == 2 and "Traceback" not in told, told
    assert len(epochs(tmp_path)) == 2 and min(epochs(tmp_path)) > 1
    assert len(list((tmp_path / "cache").rglob("*.pt"))) == 2
    status = started(tmp_path, *MANY, "--workers", "2", HOME=str(home)).wait(TIMEOUT)
    told = (tmp_path / "told").read_text()
    assert status == 1, told
    assert told.count("non-finite loss at step") == 2 and "(pid=" not in told and "Traceback" not in told
    found = paper_standin.read(tmp_path)
    assert len(found) == 4 and found == {key: whole[key] for key in found}
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["standin"] and not (home / "ray_results").exists()


# --- torchrun ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def of_two(tmp_path_factory) -> tuple[Path, list[dict]]:
    """What two processes found, by their rank."""
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("this torch has no gloo")
    folder = tmp_path_factory.mktemp("torchrun")
    paths = os.pathsep.join([str(HERE), str(ROOT)])
    process = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        + [str(HERE / "paper_torchrun.py"), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-8000:]
    (folder / "told").write_text(process.stderr)
    return folder, [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


def assert_close(found, expected) -> None:
    """The same but for the order of sums in float32, over 33 steps of training."""
    assert type(found) is type(expected)
    if isinstance(found, dict):
        assert found.keys() == expected.keys()
        for key in found.keys() - {"machine", "kept"}:
            assert_close(found[key], expected[key])
    elif isinstance(found, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_close(one, other)
    elif isinstance(found, float):
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    else:
        assert found == expected


@pytest.mark.parametrize("arm", paper_torchrun.TRAINED)
def test_two_processes_leave_the_record_of_one(arm, of_two, tmp_path):
    _, (first, second) = of_two
    assert first[arm] == second[arm], "every process has the same"
    assert first[arm][0]["machine"]["processes"] == 2
    of = Run(PLAIN, paper_torchrun.ARM[arm], 0, tmp_path / "results", tmp_path / "cache")
    assert_close(first[arm], paper_standin.without_seconds(Trainer(of, PLAIN.load(tmp_path, False)).train()))


@pytest.mark.parametrize("arm", paper_torchrun.TRAINED)
def test_two_processes_stop_together_where_one_is_told_to_and_go_on_to_the_same_bits(arm, of_two):
    """With noise and dropout: the random states of both are in the checkpoint."""
    _, found = of_two
    for of_rank in found:
        resumed = of_rank[f"{arm}, resumed"]
        assert "stopped after step 15 of 30" in resumed["stopped"]
        assert resumed["record"] == of_rank[f"{arm}, noisy"] == found[0][f"{arm}, noisy"]


def test_the_command_runs_under_torchrun_and_one_process_alone_writes_and_prints(of_two, tmp_path):
    folder, found = of_two
    assert [of_rank["statuses"] for of_rank in found] == [[130, 0]] * 2
    told = (folder / "told").read_text()
    assert told.count("standin: 1 runs, 0 of them done") == 2 and told.count("stopped after step 5 of 10") == 1
    (lines,) = paper_standin.read(folder / "command").values()
    cut = ["--systems", PLAIN.name, "--arms", "uniform", "--epochs", "2"]
    assert here(tmp_path, *cut) == 0
    assert_close(lines, *paper_standin.read(tmp_path).values())


def test_a_batch_that_cannot_be_shared_is_refused(of_two):
    _, found = of_two
    for of_rank in found:
        assert "batch_size 19 must be a multiple of the number of processes, 2" in of_rank["refused"]
