"""lambda-gelu on the command line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import lambda_gelu
from lambda_gelu import SubstitutionReport
from lambda_gelu.cli import main

# What a user has in a file of the current directory.
USERS_FILE = """
import torch
from torch import nn
from lambda_gelu import LambdaGELU

def net(first=None, second=None):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), first or nn.GELU(), nn.Linear(16, 16), second or nn.GELU(), nn.Linear(16, 3))

def gelu():
    return net()

def soft():
    return net(LambdaGELU(), LambdaGELU())

def hard():
    model = net(LambdaGELU(), LambdaGELU(16))
    for site in (model[1], model[3]):
        site.freeze_hardness()
        site.set_hardness(torch.linspace(16.0, 32.0, site.num_parameters))
    return model

def mixed():
    model = hard()
    model[1].set_hardness(0.1)
    return model

def relu():
    return net(nn.ReLU(), nn.ReLU())

def data():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(64, 4, generator=generator), torch.randint(3, (64,), generator=generator)) for _ in range(4)]

def tensors():
    for x, _ in data():
        yield x

def keywords():
    return [{"input": x} for x, _ in data()]

def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])

def metric(model):
    return sum(loss(model, batch) for batch in data()) / 4

def empty():
    return []

def nothing():
    return None

def leaves():
    raise SystemExit(0)

def leaves_midway():
    yield torch.ones(2, 4)
    raise SystemExit(0)

def broken():
    raise KeyError("weights.pt")

def nan_data():
    return [torch.full((2, 4), float("nan"))]

def wrong_size():
    return [torch.randn(2, 5)]

def distance_from_mixed(model):
    return sum((model(x) - mixed()(x)).square().mean() for x, _ in data())

def in_training(model):
    return float(model.training or torch.is_grad_enabled())

def nan_loss(model, batch):
    return loss(model, batch) * float("nan")

def detached_loss(model, batch):
    return loss(model, batch).detach()

def text_metric(model):
    return "good"

class Skips(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = LambdaGELU(), LambdaGELU()

    def forward(self, x):
        return self.used(x)

skips = Skips
constant = 3
"""


@pytest.fixture
def users(tmp_path, monkeypatch):
    """A folder with users_file.py, which is the current one; gives the module."""
    (tmp_path / "users_file.py").write_text(USERS_FILE)
    (tmp_path / "fails_to_import.py").write_text("import not_installed_anywhere\n")
    (tmp_path / "exits.py").write_text("raise SystemExit(0)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("users_file", "fails_to_import"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield tmp_path
    for name in ("users_file", "fails_to_import"):
        sys.modules.pop(name, None)


def users_module():
    return sys.modules["users_file"]


def run(*arguments):
    return main([str(argument) for argument in arguments])


def model_and_data(model="soft", data="data"):
    return f"users_file:{model}", "--data", f"users_file:{data}"


def measured_ser_db(x, hardness):
    gap = x.relu() - lambda_gelu.lambda_gelu(x, hardness)
    return 10 * torch.log10(x.relu().square().mean() / gap.square().mean()).item()


# --- inspect ---------------------------------------------------------------------------------------------------------


def test_inspect_prints_what_every_site_would_cost(users, capsys):
    assert run("inspect", *model_and_data(), "--json", "report.json", "--csv", "sites.csv", "--quiet") == 0
    out, err = capsys.readouterr()
    assert err == ""
    header = out.splitlines()[1]
    assert [title for title in ("λ", "σ", "κ", "SER dB", "λ for 30 dB") if title not in header] == []
    plain = json.loads((users / "report.json").read_text(encoding="utf-8"))
    assert [site["name"] for site in plain["sites"]] == ["1", "3"]
    assert (users / "sites.csv").read_text(encoding="utf-8").count("\n") == 3
    # against the tensors themselves
    model = users_module().soft()
    with torch.no_grad():
        z = model[0](torch.cat([x for x, _ in users_module().data()])).double()
        hardness = model[1].hardness.item()
    first = plain["sites"][0]
    assert first["count"] == z.numel()
    assert first["std"] == pytest.approx(z.std(correction=0).item(), rel=1e-6)
    assert first["effective_hardness"] == pytest.approx(hardness * first["std"], rel=1e-6)
    assert first["ser_db"] == pytest.approx(measured_ser_db(z, hardness), abs=0.1)
    gap = z.relu() - lambda_gelu.lambda_gelu(z, hardness)
    assert first["expected_gap"] == pytest.approx(gap.mean().item(), rel=0.01)
    assert first["zeros_after"] == pytest.approx((z <= 0).double().mean().item())
    assert measured_ser_db(z, first["target_mean"]) == pytest.approx(30, abs=0.1)
    assert not first["reached"]


def test_inspect_takes_every_kind_of_batch(users, capsys):
    shown = set()
    for data in ("data", "tensors", "keywords"):
        assert run("inspect", *model_and_data(data=data), "--quiet") == 0
        shown.add(capsys.readouterr().out)
    assert len(shown) == 1


def test_inspect_of_a_gelu_network_is_about_gelu_itself(users, capsys):
    assert run("inspect", *model_and_data("gelu"), "--quiet") == 2
    assert "--convert" in capsys.readouterr().err
    assert run("inspect", *model_and_data("gelu"), "--convert", "--json", "report.json", "--quiet") == 0
    sites = json.loads((users / "report.json").read_text(encoding="utf-8"))["sites"]
    assert [site["hardness_mean"] for site in sites] == [1.0, 1.0]


def test_inspect_takes_some_of_the_batches_only(users, capsys):
    assert run("inspect", *model_and_data(), "--batches", 1, "--json", "report.json", "--quiet") == 0
    assert json.loads((users / "report.json").read_text(encoding="utf-8"))["sites"][0]["count"] == 64 * 16


def test_inspect_shows_the_spread_of_hardness_per_channel(users, capsys):
    pytest.importorskip("matplotlib")
    assert run("inspect", *model_and_data("hard"), "--quiet", "--png", "report.png") == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0].startswith("2 of 2 sites at 30 dB")
    assert "16..32" in out
    assert (users / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_cap_is_named_in_the_report_without_a_warning(users, capsys):
    assert run("inspect", *model_and_data(), "--cap", 2, "--quiet") == 0
    out, err = capsys.readouterr()
    assert "1: its target is capped at λ = 2, where it reaches" in out and err == ""


# --- where models come from ------------------------------------------------------------------------------------------


def saved(users, model):
    """The state dict of a model with other weights than its function gives, and what inspect says of the model."""
    sys.path.insert(0, str(users))
    import users_file  # noqa: PLC0415 - the test's own

    other = getattr(users_file, model)()
    with torch.no_grad():
        other[0].weight.mul_(3)
    return other


def inspected(capsys, *arguments):
    assert run("inspect", *arguments, "--quiet") == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_a_state_dict_is_loaded_whichever_way_it_is_named(users, capsys):
    other = saved(users, "soft")
    torch.save(other.state_dict(), "weights.pt")
    torch.save({"model_state_dict": other.state_dict(), "epoch": 3}, "training.pt")
    torch.save(other, "whole.pt")
    data = ("--data", "users_file:data")
    fresh = inspected(capsys, "users_file:soft", *data)
    loaded = {
        inspected(capsys, "users_file:soft", "--checkpoint", "weights.pt", *data),
        inspected(capsys, "weights.pt", "--model", "users_file:soft", *data),
        inspected(capsys, "training.pt", "--model", "users_file:soft", *data),
        inspected(capsys, "whole.pt", "--trust", *data),
    }
    assert len(loaded) == 1 and loaded != {fresh}


def test_safetensors_are_read(users, capsys):
    safetensors = pytest.importorskip("safetensors.torch")
    other = saved(users, "soft")
    torch.save(other.state_dict(), "weights.pt")
    safetensors.save_model(other, "weights.safetensors")
    arguments = ("--model", "users_file:soft", "--data", "users_file:data")
    assert inspected(capsys, "weights.safetensors", *arguments) == inspected(capsys, "weights.pt", *arguments)


def test_with_convert_the_weights_may_be_those_of_gelu_or_of_lambda_gelu(users, capsys):
    torch.save(saved(users, "gelu").state_dict(), "gelu.pt")
    converted = saved(users, "gelu")
    lambda_gelu.convert_(converted, init_hardness=5.0)
    torch.save(converted.state_dict(), "lambda.pt")
    arguments = ("--model", "users_file:gelu", "--data", "users_file:data", "--convert")
    plain, hardened = (inspected(capsys, file, *arguments).splitlines()[3].split() for file in ("gelu.pt", "lambda.pt"))
    assert [plain[1], hardened[1]] == ["1", "5"]
    assert plain[2] == hardened[2]  # σ does not depend on λ at the first site


# --- substitute ------------------------------------------------------------------------------------------------------


def test_substitute_writes_a_relu_network_and_says_what_it_cost(users, capsys):
    pytest.importorskip("matplotlib")
    metric = ("--metric", "users_file:metric", "--metric-name", "cross-entropy (nats)")
    files = ("--report-json", "report.json", "--report-csv", "report.csv", "--report-png", "report.png")
    assert run("substitute", *model_and_data("hard"), *metric, "--output", "relu.pt", *files, "--quiet") == 0
    out, err = capsys.readouterr()
    assert err == "" and "2 sites are ReLU now" in out and "cross-entropy (nats), lower is better" in out
    relu = users_module().net(nn.ReLU(), nn.ReLU())
    relu.load_state_dict(torch.load("relu.pt", weights_only=True))
    report = SubstitutionReport.from_json("report.json")
    assert report.metrics["before"] == pytest.approx(users_module().metric(users_module().hard()).item())
    assert report.metrics["swapped"] == pytest.approx(users_module().metric(relu).item())
    assert (report.higher_is_better, report.metric_name) == (False, "cross-entropy (nats)")
    assert [site.name for site in report.sites] == ["1", "3"]
    assert min(site.ser_db for site in report.sites) > 30
    assert (users / "report.png").read_bytes().startswith(b"\x89PNG")
    assert (users / "report.csv").exists()


def test_substitute_warns_of_sites_that_were_too_soft(users, capsys):
    assert run("substitute", *model_and_data("soft"), "--output", "relu.pt", "--quiet") == 0
    assert capsys.readouterr().err == "lambda-gelu: warning: swapped below 22 dB, where it tends to cost: 1, 3\n"


def test_substitute_corrects_where_the_metric_agrees(users, capsys):
    arguments = ("--metric", "users_file:metric", "--correction", "bias", "--report-json", "report.json")
    assert run("substitute", *model_and_data("soft"), *arguments, "--output", "relu.pt", "--quiet") == 0
    report = SubstitutionReport.from_json("report.json")
    assert all(site.correction for site in report.sites)
    assert report.metrics["corrected"] <= report.metrics["swapped"]
    relu = users_module().net(nn.ReLU(), nn.ReLU())
    relu.load_state_dict(torch.load("relu.pt", weights_only=True))
    assert users_module().metric(relu).item() == pytest.approx(report.metrics["corrected"])


def test_substitute_predicts_what_each_site_costs_where_it_has_a_loss(users, capsys):
    arguments = ("--loss", "users_file:loss", "--report-json", "report.json", "--output", "relu.pt", "--quiet")
    assert run("substitute", *model_and_data("soft"), *arguments) == 0
    model, batch = users_module().soft(), users_module().data()[0]
    weights = lambda_gelu.site_weights(model, lambda asked: users_module().loss(asked, batch))
    for site in SubstitutionReport.from_json("report.json").sites:
        assert site.predicted_cost == pytest.approx(weights[site.name].cost)
        assert site.predicted_cost != 0


def test_substitute_recovers(users, capsys):
    recovery = ("--recover-steps", 30, "--loss", "users_file:loss", "--lr", 0.01)
    arguments = ("--metric", "users_file:metric", "--report-json", "report.json", "--output", "relu.pt", "--quiet")
    assert run("substitute", *model_and_data("soft"), *recovery, *arguments) == 0
    metrics = SubstitutionReport.from_json("report.json").metrics
    assert metrics["recovered"] < metrics["swapped"] - 0.01
    relu = users_module().net(nn.ReLU(), nn.ReLU())
    relu.load_state_dict(torch.load("relu.pt", weights_only=True))
    assert users_module().metric(relu).item() == pytest.approx(metrics["recovered"])


def test_substitute_leaves_what_would_cost_too_much(users, capsys):
    limit = ("--metric", "users_file:distance_from_mixed", "--max-loss", 1e-4, "--report-json", "report.json")
    assert run("substitute", *model_and_data("mixed"), *limit, "--output", "relu.pt", "--quiet") == 0
    assert "still λ-GELU: 1" in capsys.readouterr().out
    report = SubstitutionReport.from_json("report.json")
    assert (report.substituted, report.left) == (("3",), ("1",))
    assert 0 < report.cost("swapped") <= 1e-4
    assert [key for key in torch.load("relu.pt") if "hardness" in key] == ["1.raw_hardness", "1.hardness_override"]


def test_the_metric_is_asked_in_evaluation_mode_without_gradients(users, capsys):
    arguments = ("--metric", "users_file:in_training", "--report-json", "report.json", "--output", "relu.pt", "--quiet")
    assert run("substitute", *model_and_data("hard"), *arguments) == 0
    assert set(SubstitutionReport.from_json("report.json").metrics.values()) == {0.0}


def test_bars_show_the_progress_on_stderr(users, capsys):
    pytest.importorskip("tqdm")
    recovery = ("--recover-steps", 2, "--loss", "users_file:loss")
    assert (
        run("substitute", *model_and_data("hard"), *recovery, "--metric", "users_file:metric", "--output", "o.pt") == 0
    )
    out, err = capsys.readouterr()
    assert all(text in err for text in ("calibrating", "scoring", "recovering", "2/2"))
    assert "calibrating" not in out


def test_a_picture_that_cannot_be_drawn_is_refused_before_anything_runs(users, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "lambda_gelu.figures", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run("inspect", *model_and_data("broken"), "--png", "report.png", "--quiet") == 2
    assert "pip install 'lambda-gelu[report]'" in capsys.readouterr().err


def test_without_tqdm_everything_works_without_bars(users, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert run("inspect", *model_and_data()) == 0
    assert capsys.readouterr().err == ""


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nonsense", "--data", "users_file:data"), "MODEL must be module:function, got 'nonsense'"),
        (("missing.pt", "--data", "users_file:data"), "no such file: missing.pt"),
        (("no_module:soft", "--data", "users_file:data"), "MODEL: no module named 'no_module'"),
        (
            ("fails_to_import:soft", "--data", "users_file:data"),
            "MODEL: importing fails_to_import failed.*not_installed",
        ),
        (model_and_data("typo"), "MODEL: users_file has no 'typo'"),
        (model_and_data("constant"), "users_file:constant is no function"),
        (model_and_data("nothing"), "users_file:nothing must return a torch.nn.Module, got NoneType"),
        (model_and_data("broken"), "users_file:broken raised KeyError: 'weights.pt'"),
        (model_and_data("gelu"), "Sequential has no LambdaGELU module: --convert"),
        (model_and_data("relu"), "Sequential has no LambdaGELU module: it has 2 nn.ReLU, as after a substitution"),
        ((*model_and_data("soft"), "--convert"), "--convert: Sequential has no GELU module"),
        (model_and_data(data="typo"), "--data: users_file has no 'typo'"),
        (model_and_data(data="nothing"), "--data: users_file:nothing must return batches, got NoneType"),
        (model_and_data(data="empty"), "--data: users_file:empty gave no batch"),
        (model_and_data(data="nan_data"), r"activations that are NaN or infinite at 1 \(32\), 3 \(32\)"),
        (model_and_data(data="wrong_size"), "the model failed on a batch of users_file:wrong_size: RuntimeError"),
        (model_and_data("skips"), "unused"),
        # before any data is asked for
        ((*model_and_data(data="broken"), "--tolerance-db", "0"), "--tolerance-db must be finite and positive, got 0"),
        ((*model_and_data(data="broken"), "--cap", "nan"), "--cap must be finite and positive, got nan"),
        ((*model_and_data(), "--batches", "0"), "--batches: must be a whole number of at least 1, got 0"),
        ((*model_and_data(), "--batches", "few"), "--batches: must be a whole number of at least 1, got few"),
        (("exits:model", "--data", "users_file:data"), "MODEL: importing exits failed: SystemExit: 0"),
        (model_and_data("leaves"), "users_file:leaves raised SystemExit: 0"),
        (model_and_data(data="leaves_midway"), "SystemExit: 0"),
        ((*model_and_data(), "--json", "no/such/report.json"), "there is no folder no/such"),
        ((*model_and_data(), "--json", "."), "is a folder"),
        ((*model_and_data(), "--model", "users_file:soft"), "--model goes with a file"),
        (
            ("users_file.py", "--data", "users_file:data"),
            "users_file.py holds Python objects or is no file of torch.save",
        ),
    ],
)
def test_what_cannot_be_inspected_is_refused_in_one_line(users, capsys, arguments, message):
    assert run("inspect", *arguments, "--quiet") == 2
    out, err = capsys.readouterr()
    assert out == "" and "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("lambda-gelu")
    assert re.search(message, last), last


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--correction", "bias"), "--correction bias needs --metric"),
        (("--max-loss", "0.1"), "--max-loss needs --metric"),
        (("--recover-steps", "3"), "--recover-steps needs --loss"),
        (("--recover-steps", "3", "--loss", "users_file:nan_loss"), "loss must be finite, got nan"),
        (("--recover-steps", "3", "--loss", "users_file:detached_loss"), "must return a tensor of one element with a"),
        (("--recover-steps", "-1", "--loss", "users_file:loss"), "--recover-steps must not be negative, got -1"),
        (("--recover-steps", "9", "--loss", "users_file:loss", "--lr", "1e30"), "users_file:loss gave nan at step 2"),
        (("--lr", "0", "--loss", "users_file:loss"), "--lr must be finite and positive, got 0"),
        (("--loss", "users_file:loss", "--train-data", "users_file:empty"), "--train-data: users_file:empty gave no"),
        (("--train-data", "users_file:data"), "--train-data needs --loss"),
        (("--metric", "users_file:text_metric"), "users_file:text_metric must return a number, got str"),
        (("--metric", "users_file:typo"), "--metric: users_file has no 'typo'"),
        (("--report-json", "no/such/report.json"), "there is no folder no/such"),
    ],
)
def test_what_cannot_be_substituted_writes_nothing(users, capsys, arguments, message):
    before = sorted(users.iterdir())
    assert run("substitute", *model_and_data("hard"), "--output", "relu.pt", *arguments, "--quiet") == 2
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1
    assert [path for path in sorted(users.iterdir()) if path.name != "__pycache__"] == before


def test_data_that_is_also_trained_on_is_named_as_it_was_given(users, capsys):
    arguments = (*model_and_data("hard", "empty"), "--loss", "users_file:loss", "--output", "relu.pt", "--quiet")
    assert run("substitute", *arguments) == 2
    assert capsys.readouterr().err == "lambda-gelu: --data: users_file:empty gave no batch\n"


def test_files_of_a_checkpoint_are_told_apart(users, capsys):
    other = saved(users, "soft")
    torch.save(other, "whole.pt")
    torch.save(other.state_dict(), "weights.pt")
    torch.save({"epoch": 3}, "epoch.pt")
    torch.save(nn.Linear(2, 2).state_dict(), "linear.pt")
    data = ("--data", "users_file:data")
    for arguments, message in (
        (("whole.pt",), "--trust loads it"),
        (("weights.pt",), "weights.pt holds a state dict: --model module:function"),
        (("epoch.pt", "--model", "users_file:soft"), "epoch.pt holds no state dict, but dict with epoch"),
        (("linear.pt", "--model", "users_file:soft"), "the state dict does not fit the model"),
        (("whole.pt", "--trust", "--model", "users_file:soft"), "--model is for files with a state dict"),
        (("weights.pt", "--checkpoint", "weights.pt"), "--checkpoint goes with a module:function"),
    ):
        assert run("inspect", *arguments, *data, "--quiet") == 2
        err = capsys.readouterr().err
        assert message in err and len(err.splitlines()) == 1, err


def test_an_output_that_is_there_is_kept_where_the_run_fails(users, capsys, monkeypatch):
    (users / "relu.pt").write_text("kept")

    def fail(*_):
        raise RuntimeError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    assert run("substitute", *model_and_data("hard"), "--output", "relu.pt", "--quiet") == 2
    assert "disk full" in capsys.readouterr().err
    assert (users / "relu.pt").read_text() == "kept" and not list(users.glob(".lambda-gelu*"))


def test_a_traceback_is_shown_to_who_asks(users):
    with pytest.raises(Exception, match=r"weights\.pt"):
        run("inspect", *model_and_data("broken"), "--traceback")


# --- as a program ----------------------------------------------------------------------------------------------------


def test_the_program_runs_and_finds_what_is_in_the_current_directory(users):
    command = [sys.executable, "-m", "lambda_gelu.cli", "inspect", *model_and_data()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert "SER dB" in done.stdout
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    report = [*command, "--json", "report.json", "--quiet"]
    done = subprocess.run(report, capture_output=True, check=False, env=ascii_only)
    assert (done.returncode, done.stderr) == (0, b"") and b"\\u03bb" in done.stdout and Path("report.json").exists()
    failed = subprocess.run([*command, "--cap", "-1"], capture_output=True, text=True, check=False, encoding="utf-8")
    assert failed.returncode == 2 and "cap must be finite and positive, got -1" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_the_project_installs_it_as_lambda_gelu():
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"lambda-gelu": "lambda_gelu.cli:main"}
    assert {"matplotlib", "tqdm"} <= set(project["optional-dependencies"]["cli"])
    assert project["optional-dependencies"]["report"] == ["matplotlib"]


@pytest.mark.parametrize("command", [[], ["inspect"], ["substitute"]])
def test_help_says_what_a_model_is(command, capsys):
    assert main([*command, "--help"]) == 0
    assert "module:function" in capsys.readouterr().out
