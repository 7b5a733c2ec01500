"""The recipes of docs/export.md, run as they stand."""

import re
from pathlib import Path

import pytest
import torch
import torch._inductor
from torch import nn

import lambda_gelu

PAGE = Path(__file__).parents[2] / "docs" / "export.md"
RECIPES = re.findall(r"^## (.+?)\n.*?^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
NEEDS = {"ONNX": ("onnx", "onnxscript")}


@pytest.mark.parametrize(("title", "code"), RECIPES, ids=[title for title, _ in RECIPES])
def test_the_recipe_runs(title, code, tmp_path, monkeypatch):
    for package in NEEDS.get(title, ()):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    mode = lambda_gelu.compile_mode()
    model, x = nn.Sequential(nn.Linear(4, 6), lambda_gelu.LambdaGELU(6)), torch.randn(5, 4)
    variables = {"torch": torch, "lambda_gelu": lambda_gelu, "model": model, "x": x}
    try:
        with torch._inductor.config.patch(
            {"aot_inductor.compile_wrapper_opt_level": "O0"}
        ):  # which takes half a minute
            exec(compile(code, f"{PAGE.name}, {title}", "exec"), variables)
    finally:
        lambda_gelu.set_compile_mode(mode)
    if "y" in variables:
        torch.testing.assert_close(variables["y"], model(x), rtol=1e-6, atol=1e-6)


def test_every_section_has_a_recipe():
    sections = re.findall(r"^## (.+)$", PAGE.read_text(), re.MULTILINE)
    assert [title for title, _ in RECIPES] == sections
