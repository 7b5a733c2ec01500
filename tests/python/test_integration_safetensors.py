"""Converted models through safetensors: learned and frozen λ, τ, shared sites."""

import pytest
import torch
from torch import nn

from lambda_gelu import LambdaGELU, convert_, find_sites

safetensors = pytest.importorskip("safetensors.torch")


def make_model(**options):
    model = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 3), nn.GELU())
    convert_(model, per="channel", example_inputs=torch.randn(2, 4), **options)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_learned_and_frozen_lambda_and_the_temperature_come_back(tmp_path, dtype):
    model = make_model(temperature=0.3).to(dtype)
    model[1].set_hardness(torch.tensor([1.1, 1.2, 1.3, 1.4, 1.5, 1.6]))
    model[3].freeze_hardness()
    model[3].set_hardness(torch.tensor([0.3, 5.3, 7.1]))
    safetensors.save_model(model, tmp_path / "model.safetensors")

    loaded = make_model().to(dtype)
    loaded[1].freeze_hardness()  # the file says otherwise
    safetensors.load_model(loaded, tmp_path / "model.safetensors")
    for ours, theirs in zip(find_sites(loaded).values(), find_sites(model).values(), strict=True):
        assert torch.equal(ours.hardness, theirs.hardness)
        assert (ours.is_frozen, ours.temperature) == (theirs.is_frozen, 0.3)
    x = torch.randn(5, 4, dtype=dtype)
    assert torch.equal(loaded(x), model(x))


def test_the_state_dict_itself_comes_back(tmp_path):
    model = make_model()
    safetensors.save_file(model.state_dict(), tmp_path / "model.safetensors")
    loaded = make_model(init_hardness=2.0)
    loaded.load_state_dict(safetensors.load_file(tmp_path / "model.safetensors"))
    assert torch.equal(loaded[1].hardness, model[1].hardness)


def test_a_file_with_another_number_of_lambda_is_refused(tmp_path):
    model = make_model()
    safetensors.save_model(model, tmp_path / "model.safetensors")
    other = nn.Sequential(nn.Linear(4, 6), LambdaGELU(), nn.Linear(6, 3), LambdaGELU(3))
    with pytest.raises(RuntimeError, match=r"size mismatch for 1\.raw_hardness"):
        safetensors.load_model(other, tmp_path / "model.safetensors")


def test_a_site_at_two_places_comes_back(tmp_path):
    def make():
        site = LambdaGELU()
        return nn.Sequential(nn.Linear(3, 3), site, nn.Linear(3, 3), site)

    model, loaded = make(), make()
    model[1].set_hardness(3.0)
    safetensors.save_model(model, tmp_path / "model.safetensors")  # writes a shared tensor once
    safetensors.load_model(loaded, tmp_path / "model.safetensors")
    assert loaded[1] is loaded[3] and torch.equal(loaded[1].hardness, model[1].hardness)


def test_a_file_with_nothing_but_the_temperature_loads_nothing(tmp_path):
    safetensors.save_file({"1._extra_state": torch.tensor(0.3, dtype=torch.float64)}, tmp_path / "model.safetensors")
    model = nn.Sequential(nn.Linear(3, 3), LambdaGELU())
    before = model[1].hardness
    missing, _ = safetensors.load_model(model, tmp_path / "model.safetensors", strict=False)
    assert {"1.raw_hardness", "1.hardness_override"} < missing
    assert model[1].temperature == 0.1 and torch.equal(model[1].hardness, before)
    with pytest.raises(RuntimeError, match=r"1\.raw_hardness"):
        safetensors.load_model(model, tmp_path / "model.safetensors")
