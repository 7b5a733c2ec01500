"""TorchScript: what is traced computes and trains as the module does; scripting says what to do instead."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import lambda_gelu
from lambda_gelu import LambdaGELU

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")


def sites():
    frozen = LambdaGELU(3)
    frozen.freeze_hardness()
    frozen.set_hardness(torch.tensor([0.5, 2, 9]))
    return {"learned": LambdaGELU(3), "frozen": frozen}


@pytest.mark.parametrize("kind", ["learned", "frozen"])
def test_a_traced_module_is_saved_loaded_and_trains(kind, tmp_path):
    site = sites()[kind]
    torch.jit.trace(site, (torch.randn(5, 3),)).save(tmp_path / "site.pt")
    loaded = torch.jit.load(tmp_path / "site.pt")
    x = torch.randn(7, 3)
    torch.testing.assert_close(loaded(x), site(x), rtol=0, atol=0)
    loaded(x).sum().backward()
    site(x).sum().backward()
    torch.testing.assert_close(loaded.raw_hardness.grad, site.raw_hardness.grad, rtol=0, atol=0)


def test_a_traced_function_takes_lambda_as_an_argument():
    traced = torch.jit.trace(lambda_gelu.lambda_gelu, (torch.randn(5, 3), torch.ones(3)))
    x, hardness = torch.randn(2, 3), torch.tensor([0.5, 2, 9])
    torch.testing.assert_close(traced(x, hardness), lambda_gelu.lambda_gelu(x, hardness), rtol=0, atol=0)


def per_last_channel(x: torch.Tensor, hardness: torch.Tensor) -> torch.Tensor:
    return torch.ops.lambda_gelu.lambda_gelu(x, hardness, -1)


def test_the_operator_is_known_to_script():
    x, hardness = torch.randn(2, 4, 3), torch.tensor([0.5, 2, 9])
    expected = lambda_gelu.lambda_gelu(x, hardness, channel_dim=-1)
    torch.testing.assert_close(torch.jit.script(per_last_channel)(x, hardness), expected, rtol=0, atol=0)


def test_a_traced_site_may_be_part_of_a_scripted_model():
    site = LambdaGELU(3)
    model = torch.jit.script(nn.Sequential(nn.Linear(3, 3), torch.jit.trace(site, (torch.randn(5, 3),))))
    x = torch.randn(7, 3)
    torch.testing.assert_close(model(x), site(model[0](x)), rtol=0, atol=0)


def test_scripting_a_site_says_what_to_do_and_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(3, 3), LambdaGELU(3))
    with pytest.raises(NotImplementedError, match=r"trace the module or the model \(torch\.jit\.trace\)"):
        torch.jit.script(model)
    assert list(lambda_gelu.find_sites(model)) == ["1"]


def test_a_process_without_lambda_gelu_is_told_which_operator_it_lacks(tmp_path):
    path = str(tmp_path / "site.pt")
    torch.jit.trace(LambdaGELU(), (torch.randn(5),)).save(path)
    code = f"import torch; torch.jit.load({path!r})"
    without = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert without.returncode != 0
    assert "lambda_gelu" in without.stderr
