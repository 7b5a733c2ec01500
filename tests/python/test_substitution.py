"""to_relu_ and relu_substituted."""

import copy
import json
import pickle

import pytest
import torch
from torch import nn

from lambda_gelu import LambdaGELU, convert_, relu_substituted, to_relu_

pytestmark = pytest.mark.usefixtures("device")


def types(model):
    return [type(module) for module in model.modules()]


# --- to_relu_ --------------------------------------------------------------------------------------------------------


@pytest.fixture
def hardened():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), LambdaGELU(), nn.Linear(8, 8), LambdaGELU(8), nn.Linear(8, 2))
    model[1].freeze_hardness()
    model[1].set_hardness(8.0)
    model[3].set_hardness(torch.tensor([2.0] * 4 + [4.0] * 4))
    return model


def test_every_site_becomes_relu_and_nothing_else_changes(hardened):
    weights = {name: p.detach().clone() for name, p in hardened.named_parameters() if "raw_hardness" not in name}
    report = to_relu_(hardened)
    assert types(hardened) == [nn.Sequential, nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert {name for name, _ in hardened.named_parameters()} == set(weights)
    assert all(torch.equal(p, weights[name]) for name, p in hardened.named_parameters())
    x = torch.randn(16, 4)
    expected = hardened[4](hardened[2](hardened[0](x).clamp(min=0)).clamp(min=0))
    torch.testing.assert_close(hardened(x), expected)
    first, second = report.sites
    assert (first.name, first.hardness_min, first.hardness_max) == ("1", 8.0, 8.0)
    assert first.gate_gap == pytest.approx(0.0997355701)  # sqrt(2/π)/8
    assert second.hardness_min == pytest.approx(2.0) and second.hardness_max == pytest.approx(4.0)
    assert second.hardness_mean == pytest.approx(3.0)
    assert second.gate_gap == pytest.approx(0.398942280)  # of the softest channel


def test_the_substitution_report_prints_as_a_table(hardened):
    lines = str(to_relu_(hardened)).splitlines()
    assert lines[0] == "2 sites are ReLU now"
    assert lines[3].split() == ["1", "8", "8", "8", "0.09974"]
    assert lines[4].split() == ["3", "2", "3", "4", "0.3989"]


def test_reports_as_plain_data_are_what_json_gives_back():
    gelu = nn.GELU()
    model = nn.Sequential(gelu, nn.Linear(2, 2), gelu)
    for report in (convert_(model), to_relu_(model)):
        plain = report.to_dict()
        assert plain["sites"] and json.loads(json.dumps(plain)) == plain


def test_a_shared_site_is_replaced_at_all_its_places():
    site = LambdaGELU()
    model = nn.Sequential(site, nn.Linear(2, 2), site)
    report = to_relu_(model)
    assert types(model) == [nn.Sequential, nn.ReLU, nn.Linear] and model[0] is model[2]
    assert (report.sites[0].name, report.sites[0].also_at, len(report.sites)) == ("0", ("2",), 1)


def test_to_relu_keeps_the_mode(hardened):
    hardened[1].eval()
    to_relu_(hardened)
    assert [hardened[1].training, hardened[3].training] == [False, True]


def test_there_must_be_something_to_substitute(hardened):
    to_relu_(hardened)
    with pytest.raises(ValueError, match="Sequential has no LambdaGELU"):
        to_relu_(hardened)
    with pytest.raises(ValueError, match="the model itself is a LambdaGELU"):
        to_relu_(LambdaGELU())


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        torch.compile,
        lambda module: nn.DataParallel(torch.compile(module)),
        lambda module: torch.compile(nn.DataParallel(module)),
    ],
)
@pytest.mark.parametrize(("site", "replace"), [(LambdaGELU, to_relu_), (nn.GELU, convert_)])
def test_a_bare_module_is_refused_inside_wrappers_too(site, replace, wrap):
    model = wrap(site())
    before = types(model)
    with pytest.raises(ValueError, match=f"the model itself is a {site.__name__}"):
        replace(model)
    assert types(model) == before


@pytest.mark.parametrize(("site", "replace"), [(LambdaGELU, to_relu_), (nn.GELU, convert_)])
def test_a_module_that_is_compiled_by_itself_is_refused(site, replace):
    # torch.compile captured its forward: a replacement would never be called
    model = nn.Sequential(site(), nn.Sequential(torch.compile(site())))
    before = types(model)
    with pytest.raises(ValueError, match=rf"1\.0 is a {site.__name__} inside its own torch.compile"):
        replace(model)
    assert types(model) == before


def test_a_compiled_model_computes_relu_after_the_swap(hardened):
    x = torch.randn(16, 4)
    compiled = torch.compile(hardened, backend="eager")
    before = compiled(x)
    to_relu_(compiled)
    expected = hardened[4](hardened[2](hardened[0](x).clamp(min=0)).clamp(min=0))
    torch.testing.assert_close(compiled(x), expected)
    assert not torch.equal(compiled(x), before)


def test_the_cost_of_the_swap_is_within_the_known_bound():
    # sup |f - ReLU| = 0.169971 / λ
    x = torch.linspace(-2, 2, 40001, dtype=torch.float64)
    model = nn.Sequential(LambdaGELU(init_hardness=5.0, dtype=torch.float64))
    before = model(x)
    to_relu_(model)
    assert (model(x) - before).abs().max().item() == pytest.approx(0.169971 / 5.0, rel=1e-5)


# --- relu_substituted ------------------------------------------------------------------------------------------------


def test_evaluating_as_if_substituted_equals_substituting(hardened):
    x = torch.randn(16, 4)
    plain = hardened(x)
    swapped = copy.deepcopy(hardened)
    to_relu_(swapped)
    with relu_substituted(hardened) as model:
        assert model is hardened
        assert torch.equal(hardened(x), swapped(x))
    assert torch.equal(hardened(x), plain) and not torch.equal(plain, swapped(x))


@pytest.mark.parametrize("wrap", [lambda model: torch.compile(model, backend="eager"), nn.DataParallel])
def test_a_wrapped_model_is_substituted_within_the_context_only(hardened, wrap):
    x = torch.randn(16, 4)
    wrapped = wrap(hardened)
    plain = wrapped(x)
    with relu_substituted(wrapped):
        inside = wrapped(x)
    assert torch.equal(wrapped(x), plain) and not torch.equal(inside, plain)
    to_relu_(hardened)
    assert torch.equal(inside, hardened(x))


def test_contexts_nest(hardened):
    x = torch.randn(16, 4)
    with relu_substituted(hardened):
        outer = hardened(x)
        with relu_substituted(hardened):
            assert torch.equal(hardened(x), outer)
        assert torch.equal(hardened(x), outer)
    assert not torch.equal(hardened(x), outer)


def test_an_exception_restores_the_model(hardened):
    x = torch.randn(16, 4)
    plain = hardened(x)
    with pytest.raises(KeyError), relu_substituted(hardened):
        raise KeyError
    assert torch.equal(hardened(x), plain)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_made_inside_are_not_substituted(hardened, copied):
    x = torch.randn(16, 4)
    plain = hardened(x)
    with relu_substituted(hardened):
        twin = copied(hardened)
    assert torch.equal(twin(x), plain)


def test_the_state_dict_does_not_change_inside(hardened):
    before = copy.deepcopy(hardened.state_dict())
    with relu_substituted(hardened):
        inside = hardened.state_dict()
    assert inside.keys() == before.keys()
    for key, value in before.items():
        torch.testing.assert_close(inside[key], value, rtol=0, atol=0, equal_nan=True)


def test_a_model_without_a_site_is_refused():
    with pytest.raises(ValueError, match="Linear has no LambdaGELU"), relu_substituted(nn.Linear(2, 2)):
        pass
