"""The recipes of docs/ecosystem.md, run as they stand."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import lambda_gelu

PAGE = Path(__file__).parents[2] / "docs" / "ecosystem.md"
RECIPES = re.findall(r"^## ([^\n]+)\n\s*^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def network():
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 3))


def loader():
    data = torch.utils.data.TensorDataset(torch.randn(8, 4), torch.randint(3, (8,)))
    return torch.utils.data.DataLoader(data, batch_size=2)


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        return nn.functional.gelu(self.net(x))


def gpt2(transformers):
    config = transformers.GPT2Config(
        n_layer=1, n_embd=8, n_head=2, n_positions=8, vocab_size=16, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def for_the_trainer(folder):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    args = transformers.TrainingArguments(
        str(folder), max_steps=4, use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no"
    )
    data = [{"input_ids": torch.arange(6), "labels": torch.arange(6)}] * 8
    return {"model": gpt2(transformers), "Trainer": transformers.Trainer, "args": args, "data": data}


def for_checkpoints(folder):
    transformers = pytest.importorskip("transformers")
    gpt2(transformers).save_pretrained(folder / "plain")
    return {"plain": folder / "plain"}


def for_lightning(folder):
    pytest.importorskip("lightning")
    options = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return {"net": network(), "loader": loader(), "options": options}


def for_timm(folder):
    pytest.importorskip("timm", exc_type=ImportError)  # it imports torchvision, which may be missing
    return {"model": network()}


# What a recipe finds: variables by the title of its section.
SETTINGS = {
    "A GELU network": lambda folder: {"model": MLP(), "x": torch.randn(2, 4)},
    "transformers: Trainer": for_the_trainer,
    "transformers: checkpoints": for_checkpoints,
    "Lightning": for_lightning,
    "accelerate": lambda folder: {
        "accelerate": pytest.importorskip("accelerate"),
        "model": network(),
        "loader": loader(),
    },
    "timm": for_timm,
    "safetensors": lambda folder: {
        "safetensors": pytest.importorskip("safetensors"),
        "_": pytest.importorskip("safetensors.torch"),
        "model": network(),
    },
    "TensorBoard": lambda folder: {
        "_": pytest.importorskip("tensorboard"),
        "model": network(),
        "loader": loader(),
    },
}


@pytest.mark.parametrize(("title", "code"), RECIPES, ids=[title for title, _ in RECIPES])
@pytest.mark.filterwarnings("ignore::UserWarning")  # of packages, about settings that recipes leave out
def test_the_recipe_runs(title, code, tmp_path, monkeypatch):
    torch.manual_seed(0)
    variables = {"torch": torch, "lambda_gelu": lambda_gelu, **SETTINGS[title](tmp_path)}
    monkeypatch.chdir(tmp_path)
    exec(compile(code, f"{PAGE.name}, {title}", "exec"), variables)
    if "schedule" in variables:
        assert variables["schedule"].phase == "done"  # it was told as many steps as there were


def test_every_section_has_a_recipe():
    sections = re.findall(r"^## (.+)$", PAGE.read_text(), re.MULTILINE)
    assert [title for title, _ in RECIPES] == sections == list(SETTINGS)
