"""examples/paper: a run goes on from every point to the same bits, bad input is refused, and every experiment runs."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import itertools
import re
import sys
from dataclasses import replace
from pathlib import Path

import paper_standin
import pytest
import torch
from paper_standin import ARMS, STANDIN, without_seconds

import lambda_gelu
from examples.datasets import MissingDataError, data_dir
from examples.paper import plan, records, run, workers
from examples.paper.experiments import EXPERIMENTS
from examples.paper.system import Data, System
from examples.paper.systems import SYSTEMS
from examples.paper.training import InterruptedRunError, Run, Trainer

ARM = {arm.name: arm for arm in ARMS}
DATA = STANDIN.load(Path(), False)
STEPS = STANDIN.epochs * len(DATA.train[1]) // STANDIN.batch_size  # 30, 5 in each epoch


@pytest.fixture(autouse=True, scope="module")
def standin():
    with paper_standin.registered():
        yield


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(folder: Path, arm: str, system: System = STANDIN, seed: int = 0) -> Run:
    return Run(system, ARM[arm], seed, folder / "results", folder / "cache")


def trained(of: Run, stop=lambda: False) -> records.Record:
    return Trainer(of, DATA, stop=stop).train()


def refused(*arguments: object) -> str:
    """What the command says when it ends."""
    with pytest.raises(SystemExit) as caught:
        run.main([str(word) for word in arguments])
    assert isinstance(caught.value.code, str), caught.value.code
    return caught.value.code


def ended(folder: Path, *more: object) -> int:
    """The exit status of the command on the stand-in."""
    with pytest.raises(SystemExit) as caught:
        run.main(paper_standin.arguments(folder, *more))
    assert isinstance(caught.value.code, int), caught.value.code
    return caught.value.code


# --- resumed ----------------------------------------------------------------------------------------------------------

POINTS = {
    "at the first step": 1,
    "within an epoch while λ is learned": 4,
    "exactly at an epoch's end": 10,
    "while it hardens": 17,
    "one step before the last": STEPS - 1,
    "at the last step, before the outcome": STEPS,
}
INTERRUPTED = ["uniform", "uniform-neurons", "uniform-40db", "uniform-settled", "uniform-allowed", "relu"]


@pytest.mark.parametrize("arm", [*INTERRUPTED, "gelu-recovered", "uniform-recovered"])
def test_a_run_interrupted_at_every_kind_of_point_leaves_the_record_of_one_that_was_not(arm, tmp_path):
    expected = without_seconds(trained(make(tmp_path / "whole", arm)))
    of = make(tmp_path / "parts", arm)
    for point in POINTS.values():
        torch.manual_seed(point)  # another process starts in another state
        trainer = Trainer(of, DATA)
        trainer.stop = lambda trainer=trainer, point=point: trainer.progress.step == point
        with pytest.raises(InterruptedRunError, match=f"standin, {arm}, seed 0: stopped after step {point} of {STEPS}"):
            trainer.train()
        record = of.record()
        assert record is not None and record.end is None
        assert len(record.epochs) == 1 + (point - 1) // 5  # the line of an epoch comes after its last step
        assert of.checkpoint.exists()
    torch.manual_seed(1)
    assert without_seconds(trained(of)) == expected
    assert paper_standin.read(tmp_path / "parts") == paper_standin.read(tmp_path / "whole")
    assert not of.checkpoint.exists() and not records.path(of.results, "standin", arm, 0).exists()


def test_a_run_interrupted_while_it_recovers_leaves_the_record_of_one_that_was_not(tmp_path):
    expected = without_seconds(trained(make(tmp_path / "whole", "gelu-recovered")))
    of = make(tmp_path / "parts", "gelu-recovered")
    asked = itertools.count()
    with pytest.raises(InterruptedRunError, match="while it recovered"):
        trained(of, stop=lambda: next(asked) == STEPS + 1)
    assert of.record().end is None
    assert without_seconds(trained(of)) == expected


def test_what_a_process_wrote_after_its_last_checkpoint_is_made_again(tmp_path):
    """Killed without a warning: the record is ahead of the checkpoint, and its last line is incomplete."""
    expected = without_seconds(trained(make(tmp_path / "whole", "uniform")))
    of = make(tmp_path / "parts", "uniform")
    for point in (7, 23):
        trainer = Trainer(of, DATA)
        trainer.stop = lambda trainer=trainer, point=point: trainer.progress.step == point
        with pytest.raises(InterruptedRunError):
            trainer.train()
        if point == 7:
            old = of.checkpoint.read_bytes()
    of.checkpoint.write_bytes(old)
    with records.path(of.results, "standin", "uniform", 0).open("a") as file:
        file.write('{"kind":"epoch","epoch":5,"st')
    assert len(of.record().epochs) == 5
    assert without_seconds(trained(of)) == expected


def test_without_its_checkpoint_a_run_begins_anew(tmp_path):
    expected = without_seconds(trained(make(tmp_path / "whole", "uniform")))
    of = make(tmp_path / "parts", "uniform")
    asked = itertools.count()
    with pytest.raises(InterruptedRunError):
        trained(of, stop=lambda: next(asked) == 12)
    of.checkpoint.unlink()
    assert without_seconds(trained(of)) == expected


def test_a_run_that_is_over_is_not_made_again(tmp_path):
    of = make(tmp_path, "uniform")
    trained(of)
    file = records.compressed(records.path(of.results, "standin", "uniform", 0))
    before = file.read_bytes(), file.stat().st_mtime_ns
    assert not plan.is_pending(of)
    assert trained(of, stop=lambda: True).is_finished
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before


def test_of_a_run_that_is_over_there_is_one_record(tmp_path):
    """Killed after the compressed file was written and before the other was deleted."""
    of = make(tmp_path, "relu")
    with pytest.raises(InterruptedRunError):
        trained(of, stop=lambda: True)
    file = records.path(of.results, "standin", "relu", 0)
    unfinished = file.read_bytes()
    trained(of)
    file.write_bytes(unfinished)
    (record,) = records.read(of.results)
    assert record.is_finished and of.record().is_finished


# --- what a record says -----------------------------------------------------------------------------------------------


def test_the_best_checkpoint_is_the_epoch_with_the_best_score_on_held_out_data(tmp_path):
    for arm in ("gelu", "uniform", "relu"):
        record = trained(make(tmp_path, arm))
        scores = [line["validation"]["metric"] for line in record.epochs]
        best = record.end["best"]
        assert best["epoch"] == 1 + scores[1:].index(max(scores[1:])), "the first of equals, and never the untrained"
        # What is loaded again is what was scored then, in the state that its λ had then.
        assert best["validation"] == record.epochs[best["epoch"]]["validation"]
        assert record.end["last"]["validation"] == record.epochs[-1]["validation"]
        if arm == "relu":
            assert best["swapped"] is None and "sites" not in best and "best_as_relu" not in record.end
            continue
        as_relu = [line["as_relu"]["metric"] for line in record.epochs]
        chosen = record.end["best_as_relu"]
        assert chosen["epoch"] == 1 + as_relu[1:].index(max(as_relu[1:]))
        for end in (best, chosen, record.end["last"]):
            line = record.epochs[end["epoch"]]
            assert end["swapped"]["validation"] == line["as_relu"]
            for key in ("hardness", "kappa", "ser_db"):
                assert [site[key] for site in end["sites"]] == line[key]


def test_drift_is_the_mean_distance_of_hardness_from_the_epoch_before(tmp_path):
    of = make(tmp_path, "uniform-neurons")
    seen = []

    class Watched(Trainer):
        def _note(self, record):
            super()._note(record)
            seen.append([site.hardness.clone().double() for site in lambda_gelu.find_sites(self.network).values()])

    record = Watched(of, DATA).train()
    for epoch in range(1, STANDIN.epochs + 1):
        moved = [(now - before).abs() for now, before in zip(seen[epoch], seen[epoch - 1], strict=True)]
        assert record.epochs[epoch]["drift"] == pytest.approx([by.mean().item() for by in moved], rel=1e-12)
        assert record.epochs[epoch]["hardness"] == pytest.approx([now.mean().item() for now in seen[epoch]], rel=1e-12)
    assert record.epochs[0]["drift"] == [0.0, 0.0]


def test_arms_start_from_the_same_weights_and_see_the_same_batches(tmp_path, monkeypatch):
    found, batches = {}, []
    batch = System.batch

    def noted(self, split, chosen, *rest):
        batches.append(chosen)
        return batch(self, split, chosen, *rest)

    monkeypatch.setattr(System, "batch", noted)
    for arm in ("gelu", "relu", "uniform", "decreasing", "uniform-neurons"):
        trainer = Trainer(make(tmp_path, arm), DATA)
        state = trainer.network.state_dict().items()
        weights = [value.clone() for name, value in state if name.endswith(("weight", "bias"))]
        batches.clear()
        trainer._train_epoch(1)
        found[arm] = torch.cat([value.flatten() for value in weights]), torch.stack(batches)
    first_weights, first_batches = found.pop("gelu")
    assert torch.equal(first_batches.flatten().sort().values, torch.arange(100)), "everything once"
    for weights, its_batches in found.values():
        assert torch.equal(weights, first_weights) and torch.equal(its_batches, first_batches)
    other = Trainer(make(tmp_path, "gelu", seed=1), DATA)
    batches.clear()
    other._train_epoch(1)
    assert not torch.equal(torch.stack(batches), first_batches)
    assert not torch.equal(other.network[0].weight.detach().flatten(), first_weights[:48])


def test_a_finished_run_says_how_long_everything_took(tmp_path):
    record = trained(make(tmp_path, "uniform"))
    parts = {"train", "validation", "as_relu", "statistics", "log"}
    assert all(set(line["seconds"]) == parts for line in record.epochs)
    assert record.epochs[0]["seconds"]["train"] == 0 < record.epochs[1]["seconds"]["train"]
    assert record.end["seconds"] >= sum(sum(line["seconds"].values()) for line in record.epochs)


# --- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["adlt"], ["experiment: unknown 'adlt'", "adult", "schedules", "gpt2-words"]),
        (["adult", "--systems", "cifar"], ["--systems: unknown 'cifar'", "resnet8-cifar10"]),
        (["adult", "--arms", "uniform-30db"], ["--arms: unknown 'uniform-30db'", "gelu, relu, uniform"]),
        (["adult", "--set", "rate=1"], ["--set: unknown 'rate'", "lr", "temperature"]),
        (["adult", "--set", "lr"], ["--set: expected KEY=VALUE", "'lr'"]),
        (["adult", "--set", "lr=0.1,"], ["--set: expected KEY=VALUE", "'lr=0.1,'"]),
        (["adult", "--set", "lr=fast"], ["--set: lr must be float", "'fast'"]),
        (["adult", "--set", "batch_size=0"], ["--set: batch_size must be int", "'0'"]),
        (["adult", "--set", "optimizer=Adam"], ["--set: optimizer must be str, of SGD, AdamW", "'Adam'"]),
        (["adult", "--set", "per=neuron"], ["--set: per must be", "layer, channel", "'neuron'"]),
        (["adult", "--set", "start=soon"], ["--set: start must be", "settled", "'soon'"]),
        (["adult", "--set", "hardens=no"], ["--set: hardens must be bool", "'no'"]),
        (["adult", "--seeds", "0"], ["--seeds must be at least 1, got 0"]),
        (["adult", "--epochs", "0"], ["--epochs must be at least 1, got 0"]),
        (["adult", "--steps-per-epoch", "-1"], ["--steps-per-epoch must be at least 1, got -1"]),
        (["adult", "--examples", "0"], ["--examples must be at least 1, got 0"]),
        (["standin", "--workers", "0"], ["--workers must be at least 1, got 0"]),
        (["standin", "--threads", "0"], ["--threads must be at least 1, got 0"]),
    ],
)
def test_a_name_or_a_value_that_is_none_is_refused_with_those_there_are(arguments, told, tmp_path):
    message = refused(*arguments, "--results", tmp_path / "results", "--cache", tmp_path / "cache")
    assert all(part in message for part in told), message
    assert not list(tmp_path.iterdir())


def test_data_that_are_missing_or_damaged_are_told_by_file_and_checksum(tmp_path):
    folders = ["--data-dir", tmp_path, "--results", tmp_path / "results", "--cache", tmp_path / "cache"]
    message = refused("adult", *folders)
    assert message.startswith("MissingDataError") and str(tmp_path / "adult") in message
    assert "--data-dir" in message and "LAMBDA_GELU_DATA" in message and "--download" in message
    (tmp_path / "fashion-mnist").mkdir()
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (tmp_path / "fashion-mnist" / f"{name}-ubyte.gz").write_bytes(gzip.compress(b"nothing"))
    message = refused("fashion-mnist", *folders)
    assert re.match(r"CorruptDataError: \S*fashion-mnist/\S+-ubyte is not the published file", message)
    algorithm, found = re.search(r"its (\w+) is (\w+), expected \w{32,}$", message).groups()
    assert found == hashlib.new(algorithm, b"nothing").hexdigest()
    assert not (tmp_path / "results").exists()


def test_a_record_of_other_settings_is_refused_by_what_differs(tmp_path):
    assert ended(tmp_path, "--arms", "uniform", "--epochs", "1", "--workers", "1") == 0
    kept = paper_standin.read(tmp_path)
    message = refused(*paper_standin.arguments(tmp_path, "--arms", "uniform", "--epochs", "2"))
    assert message.startswith("RecordMismatchError") and "uniform-0.jsonl.gz" in message
    assert "epochs = 1, now 2" in message and "lr =" not in message
    changed = replace(ARM["uniform"], temperature=0.7)
    with pytest.raises(records.RecordMismatchError, match=r"arm\.temperature = None, now 0\.7"):
        Run(replace(STANDIN, epochs=1), changed, 0, tmp_path / "results", tmp_path / "cache").record()
    assert paper_standin.read(tmp_path) == kept


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    of = make(tmp_path, "uniform")
    with pytest.raises(InterruptedRunError):
        trained(of, stop=lambda: True)
    records.path(of.results, "standin", "uniform", 0).unlink()
    with pytest.raises(records.RecordMismatchError, match=r"uniform-0\.pt.*lr = 0\.05, now 0\.1"):
        trained(make(tmp_path, "uniform", replace(STANDIN, lr=0.1)))


def test_a_damaged_checkpoint_is_refused(tmp_path):
    of = make(tmp_path, "uniform")
    with pytest.raises(InterruptedRunError):
        trained(of, stop=lambda: True)
    content = of.checkpoint.read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"no checkpoint"):
        of.checkpoint.write_bytes(damaged)
        with pytest.raises(records.RecordMismatchError, match=r"uniform-0\.pt is no checkpoint: delete it"):
            trained(of)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00\xff\xfe\n",
        b"not json\n",
        b'["a list"]\n',
        b'{"kind":"epoch"}\n',
        b'{"kind":"run"}\n{"kind":"epoch"}\n{"kind":"what"}\n',
        b'{"kind":"run"}\n{"kind":"end"}\n{"kind":"epoch"}\n',
        b'{"kind":"run"}\n7\n',
    ],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_what_is_no_record_is_refused_and_left_alone(content, suffix, tmp_path):
    file = tmp_path / "results" / "standin" / f"uniform-0{suffix}"
    file.parent.mkdir(parents=True)
    content = gzip.compress(content) if suffix.endswith(".gz") else content
    file.write_bytes(content)
    message = refused(*paper_standin.arguments(tmp_path, "--arms", "uniform"))
    assert message.startswith("RecordMismatchError") and f"{file} is no record" in message
    assert file.read_bytes() == content


@pytest.mark.parametrize("damage", ["cut", "changed"])
def test_a_damaged_compressed_record_is_refused(damage, tmp_path):
    trained(make(tmp_path, "uniform"))
    file = tmp_path / "results" / "standin" / "uniform-0.jsonl.gz"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content if damage == "changed" else content[: len(content) // 2])
    assert "is no record" in refused(*paper_standin.arguments(tmp_path, "--arms", "uniform"))


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_its_run_and_no_other(tmp_path, capsys):
    sweep = ["--set", "lr=1e30,0.05", "clip=None", "--arms", "uniform", "gelu-recovered", "--workers", "1"]
    assert ended(tmp_path, *sweep) == 1
    told = capsys.readouterr().err
    found = paper_standin.read(tmp_path)
    assert len(found) == 4
    for (_, arm, _), lines in found.items():
        end = lines[-1]
        if "1e30" not in arm:
            assert end["status"] == "finished"
            continue
        assert end["status"] == "non-finite loss" and "best" not in end
        where = end["where"]
        assert 1 <= where["step"] <= 5 * where["epoch"] and where["epoch"] == len(lines) - 2
        assert f"{arm}, seed 0: non-finite loss at step {where['step']}, in epoch {where['epoch']}" in told
    assert ended(tmp_path, *sweep) == 0  # nothing is left to do


def test_a_run_that_fails_says_why_and_keeps_the_others(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(
        EXPERIMENTS,
        "standin",
        replace(EXPERIMENTS["standin"], arms=(replace(ARM["uniform"], name="broken", schedule="none"), ARM["gelu"])),
    )
    assert ended(tmp_path, "--epochs", "1", "--workers", "1") == 1
    assert "standin, broken, seed 0: ValueError: schedule" in capsys.readouterr().err
    assert [arm for _, arm, _ in paper_standin.read(tmp_path)] == ["gelu"]


def test_a_run_that_another_process_trains_is_left_to_it(tmp_path):
    of = make(tmp_path, "uniform")
    of.checkpoint.parent.mkdir(parents=True)
    with of.checkpoint.with_suffix(".claim").open("w") as claim:
        fcntl.flock(claim, fcntl.LOCK_EX)
        outcome = workers.attempt(of, DATA, stop=lambda: False, on_step=lambda step: None)
    assert outcome.kind == "error" and "another process is training this run" in outcome.message
    assert of.record() is None
    assert workers.attempt(of, DATA, stop=lambda: False, on_step=lambda step: None) == workers.Outcome("finished")


def test_without_ray_the_runs_are_done_one_after_the_other(tmp_path, monkeypatch, capsys):
    find = workers.importlib.util.find_spec
    monkeypatch.setattr(workers.importlib.util, "find_spec", lambda name: None if name == "ray" else find(name))
    assert ended(tmp_path, "--arms", "gelu", "relu", "--epochs", "1", "--workers", "2") == 0
    assert 'No Ray (pip install "ray[tune]"): the runs are done one after the other.' in capsys.readouterr().err
    assert len(paper_standin.read(tmp_path)) == 2 and "ray" not in sys.modules


# --- the command ------------------------------------------------------------------------------------------------------


def test_a_sweep_makes_a_record_of_every_combination(tmp_path):
    sweep = ["--arms", "uniform", "--set", "lr=0.01,0.05", "temperature=0.1,0.5", "--epochs", "1", "--workers", "1"]
    assert ended(tmp_path, *sweep) == 0
    found = {arm: lines[0]["settings"] for (_, arm, _), lines in paper_standin.read(tmp_path).items()}
    values = itertools.product(("0.01", "0.05"), ("0.1", "0.5"))
    expected = {f"uniform+lr={lr}+temperature={tau}": (float(lr), float(tau)) for lr, tau in values}
    assert {name: (settings["lr"], settings["arm"]["temperature"]) for name, settings in found.items()} == expected


def test_what_is_asked_for_twice_is_one_run(tmp_path):
    arguments = ["--arms", "gelu", "gelu", "--systems", "standin", "standin", "--set", "lr=0.1,0.1"]
    asked = run.parse_arguments(paper_standin.arguments(tmp_path, *arguments))
    assert len(plan.runs(asked)) == 1


def test_the_first_seed_of_every_arm_comes_before_the_second(tmp_path):
    asked = run.parse_arguments(paper_standin.arguments(tmp_path, "--arms", "gelu", "relu", "--seeds", "2"))
    assert [(of.arm.name, of.seed) for of in plan.runs(asked)] == [("gelu", 0), ("relu", 0), ("gelu", 1), ("relu", 1)]


def test_list_names_every_experiment_and_what_has_been_run(tmp_path, capsys):
    assert ended(tmp_path, "--arms", "gelu", "--seeds", "2", "--epochs", "1", "--workers", "1") == 0
    run.main(["list", "--results", str(tmp_path / "results")])
    told = capsys.readouterr().out
    for experiment in EXPERIMENTS.values():
        assert f"{experiment.name}: {experiment.title}" in told
    assert "standin: gelu (2), relu (0)" in told


def test_interrupted_by_steps_the_command_says_130_and_goes_on(tmp_path, capsys):
    assert ended(tmp_path / "whole", "--arms", "gelu", "uniform", "--workers", "1") == 0
    arguments = ["--arms", "gelu", "uniform", "--workers", "1", "--stop-after", 38]
    assert ended(tmp_path / "parts", *arguments) == 130
    assert "standin, uniform, seed 0: stopped after step 8 of 30" in capsys.readouterr().err
    assert ended(tmp_path / "parts", *arguments[:-2]) == 0
    assert paper_standin.read(tmp_path / "parts") == paper_standin.read(tmp_path / "whole")


# --- every experiment -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arm", ARM)
def test_every_arm_runs_from_end_to_end(arm, tmp_path):
    record = trained(make(tmp_path, arm, replace(STANDIN, epochs=3)))
    assert record.is_finished and len(record.epochs) == 4
    assert len(record.epochs[-1]["hardness"]) == (0 if arm == "relu" else 2)
    assert ("recovered" in record.end["best"]) == arm.endswith("recovered")
    phase = None if not ARM[arm].has_hardness else "done" if ARM[arm].hardens else "learn"
    assert record.epochs[-1]["phase"] == phase


SLOW = {"gpt2-bytes", "gpt2-words", "deit-tiny-tinyimagenet"}  # minutes for a step on a CPU
CASES = {name: experiment.systems[0] for name, experiment in EXPERIMENTS.items()}


@pytest.fixture(scope="module")
def slice_of():
    """The first 64 examples of every part of a system's data, which are read once."""
    found: dict[str, Data] = {}

    def read(system: System) -> Data:
        if system.name not in found:
            try:
                data = system.load(data_dir(), False)
            except MissingDataError as error:
                pytest.skip(str(error))
            found[system.name] = Data(**{name: (x[:64].clone(), y[:64].clone()) for name, (x, y) in vars(data).items()})
        return found[system.name]

    return read


@pytest.mark.parametrize(("experiment", "system"), CASES.items(), ids=CASES)
def test_every_experiment_runs_on_a_slice_of_its_data(experiment, system, slice_of, tmp_path, monkeypatch):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if system in SLOW and device == "cpu":
        pytest.skip(f"{system} needs a GPU for more than a check of its size (test_paper_systems.py)")
    data = slice_of(SYSTEMS[system])
    monkeypatch.setitem(SYSTEMS, system, replace(SYSTEMS[system], load=lambda folder, download: data))
    size = 8 if SYSTEMS[system].row.startswith(("CIFAR", "Tiny")) else 64
    cut = ["--seeds", 1, "--epochs", 3, "--steps-per-epoch", 2, "--examples", size, "--device", device]
    folders = ["--results", tmp_path / "results", "--cache", tmp_path / "cache"]
    arm = EXPERIMENTS[experiment].arms[-1].name
    with pytest.raises(SystemExit) as caught:
        run.main([str(word) for word in (experiment, "--systems", system, "--arms", arm, *cut, *folders)])
    assert caught.value.code == 0
    (record,) = records.read(tmp_path / "results")
    assert record.is_finished and record.arm == arm and record.epochs[-1]["train"]["loss"] > 0
    assert len(record.epochs[-1]["hardness"]) == len(record.head["sites"]) > 0
    assert record.end["best"]["swapped"]["test"]["loss"] > 0
    assert [path.suffix for path in (tmp_path / "cache" / system).iterdir()] == [".claim"], "no checkpoint is left"
