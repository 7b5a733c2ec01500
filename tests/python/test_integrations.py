"""What all modules of lambda_gelu.integrations have in common."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import lambda_gelu.integrations

PACKAGES = {
    "lightning": ["lightning", "pytorch_lightning"],
    "onnx": ["onnx", "onnxscript"],
    "tensorboard": ["tensorboard"],
    "transformers": ["transformers"],
}
MODULES = sorted(
    path.stem for path in Path(lambda_gelu.integrations.__file__).parent.glob("*.py") if not path.stem.startswith("_")
)
NEED_ONLY_TORCH = {"tensor_parallel"}


def test_every_integration_is_in_these_tests():
    assert set(MODULES) <= set(PACKAGES) | NEED_ONLY_TORCH


@pytest.mark.parametrize("module", [module for module in MODULES if module in PACKAGES])
def test_without_its_package_an_integration_names_the_extra_to_install(module, monkeypatch):
    name = f"lambda_gelu.integrations.{module}"
    for loaded in list(sys.modules):
        if loaded == name or loaded.partition(".")[0] in PACKAGES[module]:
            monkeypatch.delitem(sys.modules, loaded)
    for package in PACKAGES[module]:
        monkeypatch.setitem(sys.modules, package, None)  # importing it raises ModuleNotFoundError
    with pytest.raises(ImportError, match=rf"pip install 'lambda-gelu\[{module}\]'"):
        imported = importlib.import_module(name)
        imported.translation_table()  # that of onnx asks when it is called


@pytest.mark.parametrize("module", [module for module in MODULES if module in PACKAGES])
def test_every_extra_that_an_error_names_exists(module):
    tomllib = pytest.importorskip("tomllib")
    project = Path(__file__).parents[2] / "pyproject.toml"
    extras = tomllib.loads(project.read_text())["project"]["optional-dependencies"]
    assert PACKAGES[module][0] in extras[module]


def test_importing_and_converting_imports_no_other_package():
    code = """
import sys, torch
from torch import nn
before = set(sys.modules)
import lambda_gelu, lambda_gelu.integrations
lambda_gelu.convert_(nn.Sequential(nn.GELU()), example_inputs=torch.randn(2))
new = {name.partition('.')[0] for name in set(sys.modules) - before}
assert not new & {'transformers', 'timm', 'lightning', 'accelerate', 'tensorboard', 'onnx', 'safetensors'}, new
assert 'torch._dynamo' not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
