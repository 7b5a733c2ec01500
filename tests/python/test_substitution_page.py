"""docs/substitution.md: its recipes run as they stand, its numbers are what the formulas give."""

import math
import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import lambda_gelu
from lambda_gelu import LambdaGELU, relu_gap
from lambda_gelu.cli import main

PAGE = Path(__file__).parents[2] / "docs" / "substitution.md"
TEXT = PAGE.read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", TEXT, re.DOTALL | re.MULTILINE))
RECIPES = {
    title: "\n".join(re.findall(r"^```python\n(.*?)^```", section, re.DOTALL | re.MULTILINE))
    for title, section in SECTIONS.items()
    if "```python" in section
}


def network():
    return nn.Sequential(nn.Linear(4, 8), LambdaGELU(), nn.Linear(8, 8), LambdaGELU(), nn.Linear(8, 3))


class Setting(dict):
    """What the recipes find: a small model and the parts of its training."""

    def __init__(self):
        torch.manual_seed(0)
        self.model = network()
        x = torch.randn(48, 4)
        self.data = torch.utils.data.TensorDataset(x, x[:, :3].argmax(1))
        self.optimizer = torch.optim.AdamW(lambda_gelu.param_groups(self.model, lr=1e-2))
        super().__init__(
            torch=torch,
            lambda_gelu=lambda_gelu,
            model=self.model,
            loader=torch.utils.data.DataLoader(self.data, batch_size=8),
            x=x,
            epochs=6,
            optimizer=self.optimizer,
            train_one_epoch=self.train_one_epoch,
            validation_loss=lambda model: self.loss().item(),
            accuracy=self.accuracy,
            targets={"1": 8.0, "3": 6.0},
            scheduler=lambda_gelu.HardnessScheduler(self.model, 6, target=200.0, end=0.5),
        )

    def loss(self):
        x, y = self.data.tensors
        return nn.functional.cross_entropy(self.model(x), y)

    def train_one_epoch(self):
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()

    def accuracy(self, model):
        x, y = self.data.tensors
        with torch.no_grad():
            return 100 * (model(x).argmax(1) == y).double().mean().item()


def for_the_trainer():
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    config = transformers.GPT2Config(
        n_layer=1, n_embd=8, n_head=2, n_positions=8, vocab_size=16, bos_token_id=0, eos_token_id=0
    )
    args = transformers.TrainingArguments(
        "checkpoints", max_steps=12, use_cpu=True, report_to="none", disable_tqdm=True
    )
    data = [{"input_ids": torch.arange(6), "labels": torch.arange(6)}] * 8
    model = transformers.GPT2LMHeadModel(config)
    return {"model": model, "Trainer": transformers.Trainer, "args": args, "data": data}


def for_lightning():
    pytest.importorskip("lightning")
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return {"options": options}


SETTINGS = {"In the Trainer of transformers": for_the_trainer, "In Lightning": for_lightning}


@pytest.mark.parametrize("title", RECIPES)
@pytest.mark.filterwarnings("ignore::UserWarning")  # of packages, about settings that recipes leave out
def test_the_recipe_runs(title, tmp_path, monkeypatch):
    if ".plot(" in RECIPES[title]:
        pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    variables = Setting()
    variables.update(SETTINGS.get(title, dict)())
    exec(compile(RECIPES[title], f"{PAGE.name}, {title}", "exec"), variables)
    CHECKS.get(title, lambda variables: None)(variables)


def is_relu_network(variables):
    kinds = {type(module) for module in variables["model"].modules()}
    assert LambdaGELU not in kinds and nn.ReLU in kinds


def the_callback_swapped(variables):
    is_relu_network(variables)
    assert variables["callback"].substitution.stage == "done"


def shadow_kept_a_relu_checkpoint(variables):
    assert variables["best"].best is not None and variables["best"].best.step > 0


def targets_are_for_every_site(variables):
    assert list(variables["targets"]) == list(variables["by_budget"]) == ["1", "3"]
    assert variables["by_gate"] == pytest.approx(math.sqrt(2 / math.pi) / 0.1)


def gelu_is_left(variables):
    assert [site.name for site in variables["report"].sites] == ["1", "3"]
    assert isinstance(variables["model"][1], nn.GELU)


CHECKS = {
    "Choose targets": targets_are_for_every_site,
    "Harden": lambda variables: variables["scheduler"].phase == "done" or pytest.fail("it was told another number"),
    "Score it as a ReLU network": shadow_kept_a_relu_checkpoint,
    "Swap": lambda variables: "before" in variables["report"].metrics or pytest.fail("no metric"),
    "Recover": is_relu_network,
    "All of it in one object": is_relu_network,
    "In the Trainer of transformers": the_callback_swapped,
    "In Lightning": the_callback_swapped,
    "Stay with GELU": gelu_is_left,
}


def test_every_checked_recipe_is_on_the_page():
    assert set(CHECKS) < set(RECIPES)


PROJECT = """
import torch
from torch import nn

def model():
    return nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 3))

def batches():
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        x = torch.randn(32, 4, generator=generator)
        yield x, x[:, :3].argmax(1)

def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])

def accuracy(model):
    return 100 * sum((model(x).argmax(1) == y).double().mean().item() for x, y in batches()) / 4
"""


def test_the_commands_of_the_page_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    (tmp_path / "project.py").write_text(PROJECT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "project", raising=False)
    torch.manual_seed(0)
    torch.save(nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Linear(16, 3)).state_dict(), "gelu.pt")
    (block,) = re.findall(r"^```sh\n(.*?)^```", SECTIONS["The command line"], re.DOTALL | re.MULTILINE)
    commands = [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]
    assert [command[:2] for command in commands] == [["lambda-gelu", "inspect"], ["lambda-gelu", "substitute"]]
    try:
        for command in commands:
            assert main([*command[1:], "--quiet"]) == 0, capsys.readouterr().err
    finally:
        sys.modules.pop("project", None)
    assert {"inspection.png", "relu.pt", "report.json", "report.png"} <= {path.name for path in tmp_path.iterdir()}


# --- the numbers -----------------------------------------------------------------------------------------------------


def test_the_table_of_ser_is_what_quadrature_gives():
    mp = pytest.importorskip("mpmath")
    rows = re.findall(
        r"^\| ([^|\n]+) \| ([^\n]+) \|$", TEXT[TEXT.index("<!-- ser -->") : TEXT.index("<!-- /ser -->")], re.M
    )
    (_, kappas), _, *levels = rows

    def ser_db(kappa, mean):
        density = lambda x: mp.npdf(x, mean)  # noqa: E731
        edges = [-mp.inf, -1, 0, 1, mp.inf]
        error = mp.quad(lambda x: (abs(x) * mp.ncdf(-kappa * abs(x))) ** 2 * density(x), edges)
        signal = mp.quad(lambda x: x**2 * density(x), [0, 1, mp.inf])
        return float(10 * mp.log10(signal / error))

    for (label, cells), mean in zip(levels, (0, -1, -2), strict=True):
        assert label.startswith("SER, μ = ")
        for kappa, cell in zip(kappas.split(" | "), cells.split(" | "), strict=True):
            assert float(cell.replace("−", "-")) == pytest.approx(ser_db(int(kappa), mean), abs=0.051)


def test_the_share_of_the_mean_in_the_error_is_what_the_page_says():
    said = re.search(
        r"(\d+) % of the error's power at κ = 1, (\d+) % at κ = 4 and (\d+) % at κ = 8", TEXT.replace("\n", " ")
    )
    shares = [relu_gap.expected_gap(kappa) ** 2 / relu_gap.expected_sq_gap(kappa) for kappa in (1, 4, 8)]
    assert [int(share) for share in said.groups()] == [round(100 * share) for share in shares]


def test_the_formula_for_large_hardness_is_as_near_as_the_page_says():
    c2 = 4 / (3 * math.sqrt(math.pi)) * (1 / math.sqrt(2) - 5 / 8)
    assert f"c₂ = (4 / (3√π)) (1/√2 − 5/8) = {c2:.6f}" in TEXT
    assert "within 7 % from 20 dB on and 1.5 % from 30 dB on" in TEXT

    def error(decibels, mean):
        density = math.exp(-(mean**2) / 2) / math.sqrt(2 * math.pi)
        near = (c2 * density * 10 ** (decibels / 10) / relu_gap.expected_sq_relu(mean)) ** (1 / 3)
        return abs(near / relu_gap.target_from_ser(decibels, mean) - 1)

    density = 1 / math.sqrt(2 * math.pi)
    assert relu_gap.expected_gap(300.0) == pytest.approx(density / (2 * 300.0**2), rel=1e-3)
    assert relu_gap.expected_sq_gap(300.0) == pytest.approx(c2 * density / 300.0**3, rel=1e-3)
    means = (0.0, -0.5, -1.0, -2.0)
    assert max(error(decibels, mean) for decibels in (20, 25, 30, 40, 60) for mean in means) < 0.07
    assert max(error(decibels, mean) for decibels in (30, 40, 60) for mean in means) < 0.015


def test_every_class_that_the_page_names_exists():
    of_others = {"ReLU", "ValueError", "TypeError", "Trainer", "SubstitutionCallback", "ReluSubstituted"}
    names = set(re.findall(r"`([A-Z][a-z]+[A-Z]\w*)", TEXT)) - of_others
    assert {"BestSubstituted", "HardnessCapWarning"} <= names <= set(lambda_gelu.__all__)


def test_every_name_of_the_cpp_recipe_is_in_a_public_header():
    (block,) = re.findall(r"^```cpp\n(.*?)^```", SECTIONS["In C++"], re.DOTALL | re.MULTILINE)
    headers = "".join(path.read_text() for path in sorted((PAGE.parents[1] / "include").rglob("*.h")))
    names = set(re.findall(r"(?:lambda_gelu::|\.)([A-Za-z_]\w+)", block)) - {"step"}
    assert {"ObserveActivations", "expected_gaps", "rollback"} <= names
    assert [name for name in sorted(names) if not re.search(rf"\b{name}\b", headers)] == []
