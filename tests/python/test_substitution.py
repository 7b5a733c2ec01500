"""convert_, to_relu_ and relu_substituted."""

import copy
import json
import pickle

import pytest
import torch
from torch import nn

import lambda_gelu
from lambda_gelu import LambdaGELU, convert_, relu_substituted, to_relu_

mpmath = pytest.importorskip("mpmath")

pytestmark = pytest.mark.usefixtures("device")


class SlightlyDifferentGELU(nn.GELU):
    """Computes something else: must be left alone."""

    def forward(self, input):
        return super().forward(input) + 1


class RenamedGELU(nn.GELU):
    """Computes the same."""


class Block(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.act = nn.GELU(approximate="tanh")

    def forward(self, x):
        return self.act(self.linear(x))


def types(model):
    return [type(module) for module in model.modules()]


# --- convert_ --------------------------------------------------------------------------------------------------------


def test_every_gelu_is_replaced_and_reported():
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU(), Block(), RenamedGELU(), nn.ReLU())
    report = convert_(model)
    assert [type(model[1]), type(model[2].act), type(model[3]), type(model[4])] == [LambdaGELU] * 3 + [nn.ReLU]
    assert [(site.name, site.replaced) for site in report.sites] == [
        ("1", "GELU(approximate='none')"),
        ("3", "RenamedGELU(approximate='none')"),
        ("2.act", "GELU(approximate='tanh')"),
    ]
    assert list(lambda_gelu.find_sites(model)) == ["1", "2.act", "3"]


def test_a_subclass_with_its_own_forward_is_left_alone_and_reported():
    model = nn.Sequential(SlightlyDifferentGELU(), nn.GELU())
    report = convert_(model)
    assert [type(module) for module in model] == [SlightlyDifferentGELU, LambdaGELU]
    assert report.skipped == {"0": "SlightlyDifferentGELU"}
    assert "left alone: 0 (SlightlyDifferentGELU has a forward of its own)" in str(report)


def test_the_documented_bound_on_the_change_of_function_holds_and_is_tight():
    model = nn.Sequential(nn.GELU())
    convert_(model)
    x = torch.linspace(-6, 6, 24001, dtype=torch.float64)
    hardness = model[0].hardness.item()
    change = (lambda_gelu.lambda_gelu(x, hardness) - nn.functional.gelu(x)).abs().max().item()
    # d f / d λ = x² φ(λx) is at most 2 φ(√2) / λ², at x = √2 / λ
    bound = float(2 * mpmath.npdf(mpmath.sqrt(2)) * (1 - 1 / mpmath.mpf(hardness)))
    assert 0.99 * bound < change <= bound < 0.0030


def test_init_hardness_and_temperature_are_passed_on():
    model = nn.Sequential(nn.GELU())
    report = convert_(model, init_hardness=1.5, temperature=0.5)
    assert model[0].hardness.item() == pytest.approx(1.5) and model[0].temperature == 0.5
    assert report.init_hardness == 1.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_site_has_the_dtype_of_its_surroundings_or_float32_beside_16_bits(dtype):
    model = nn.Sequential(nn.Linear(2, 2, dtype=dtype), nn.GELU())
    convert_(model)
    assert model[1].raw_hardness.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert model(torch.randn(3, 2, dtype=dtype)).dtype == dtype


def test_a_model_on_the_meta_device_stays_there():
    model = nn.Sequential(nn.Linear(2, 2, device="meta"), nn.GELU())
    convert_(model)
    assert model[1].raw_hardness.is_meta


def test_the_mode_of_the_replaced_module_is_kept():
    model = nn.Sequential(nn.GELU(), nn.GELU()).eval()
    model[1].train()
    convert_(model)
    assert [module.training for module in model] == [False, True]


def test_a_module_shared_by_several_places_becomes_one_site_each():
    gelu = nn.GELU()
    model = nn.Sequential(nn.Linear(3, 5), gelu, nn.Linear(5, 2), gelu)
    report = convert_(model, per="channel", example_inputs=torch.randn(4, 3))
    assert model[1] is not model[3]
    assert (model[1].num_parameters, model[3].num_parameters) == (5, 2)
    assert [site.shared_with for site in report.sites] == [("3",), ("1",)]


def test_a_parent_shared_by_several_places_is_converted_once():
    block = Block()
    model = nn.Sequential(block, block)
    report = convert_(model, example_inputs=torch.randn(2, 4))
    assert [(site.name, site.calls) for site in report.sites] == [("0.act", 2)]
    assert isinstance(block.act, LambdaGELU)


def test_per_channel_learns_the_numbers_of_channels():
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.GELU(), nn.Flatten(), nn.Linear(6 * 4, 10), nn.GELU())
    report = convert_(model, per="channel", example_inputs=torch.randn(2, 3, 4, 4))
    assert [site.num_parameters for site in report.sites] == [6, 10]
    assert [model[1].num_parameters, model[4].num_parameters] == [6, 10]
    assert model(torch.randn(2, 3, 4, 4)).shape == (2, 10)


def test_per_channel_with_channels_last():
    model = nn.Sequential(Block(4))
    convert_(model, per="channel", channel_dim=-1, example_inputs=torch.randn(2, 7, 4))
    assert (model[0].act.num_parameters, model[0].act.channel_dim) == (4, -1)


def test_converting_keeps_weights_and_function():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))
    x = torch.randn(16, 4)
    before, weights = model(x), [p.detach().clone() for p in model.parameters()]
    convert_(model)
    assert all(
        torch.equal(model.state_dict()[f"{i}.{n}"], w)
        for (i, n), w in zip([(0, "weight"), (0, "bias"), (2, "weight"), (2, "bias")], weights, strict=True)
    )
    torch.testing.assert_close(model(x), before, rtol=0, atol=0.0030 * weights[2].abs().sum(1).max().item())
    assert not torch.equal(model(x), before)


def test_the_conversion_report_prints_as_a_table_and_as_plain_data():
    model = nn.Sequential(nn.Linear(3, 5), nn.GELU())
    report = convert_(model, per="channel", example_inputs=torch.randn(4, 3))
    header, columns, _, row = str(report).splitlines()
    assert header == "1 sites are λ-GELU now, λ = 1.01"
    assert columns.split() == ["site", "replaced", "number", "of", "λ", "calls", "shared", "module", "with"]
    assert row.split() == ["1", "GELU(approximate='none')", "5", "1", "-"]
    assert report.to_dict()["sites"] == [
        {"name": "1", "replaced": "GELU(approximate='none')", "num_parameters": 5, "calls": 1, "shared_with": []},
    ]


class TwoWidths(Block):
    def forward(self, x):
        return self.act(x).sum() + self.act(x[:, :1]).sum()


class Unreached(Block):
    def forward(self, x):
        return self.linear(x)


class Failing(Block):
    def forward(self, x):
        self.act(x)
        raise RuntimeError("from the model")


EXAMPLE = torch.randn(2, 4)


@pytest.mark.parametrize(
    ("model", "arguments", "error", "words"),
    [
        (nn.GELU(), {}, ValueError, "the model itself is a GELU"),
        (nn.Sequential(nn.Linear(2, 2)), {}, ValueError, "Sequential has no nn.GELU module; F.gelu calls"),
        (nn.Sequential(nn.ReLU()), {}, ValueError, "do not derive from nn.GELU, such as transformers' GELUActivation"),
        (nn.Sequential(SlightlyDifferentGELU()), {}, ValueError, "no nn.GELU module .0 have a forward of their own"),
        ("model", {}, TypeError, "model must be a torch.nn.Module, got str"),
        (Block(), {"per": "neuron"}, ValueError, "per must be 'layer' or 'channel', got 'neuron'"),
        (Block(), {"per": "channel"}, ValueError, "per='channel' needs example_inputs"),
        (Block(), {"init_hardness": 1.0}, ValueError, "above 1"),
        (Block(), {"init_hardness": None}, TypeError, "init_hardness must be a float, got NoneType"),
        (Block(), {"init_hardness": True}, TypeError, "init_hardness must be a float, got bool"),
        (Block(), {"init_hardness": torch.tensor([2.0, 3.0])}, TypeError, "init_hardness must be a float, got Tensor"),
        (
            Block(),
            {"init_hardness": torch.full((4,), 2.0), "per": "channel", "example_inputs": EXAMPLE},
            TypeError,
            "init_hardness must be a float, got Tensor",
        ),
        (Block(), {"temperature": 0.0}, ValueError, "temperature"),
        (TwoWidths(), {"per": "channel", "example_inputs": EXAMPLE}, ValueError, r"act must see one .*got \[1, 4\]"),
        (Unreached(), {"per": "channel", "example_inputs": EXAMPLE}, ValueError, r"act must see one .*got \[\]"),
        (
            Block(),
            {"per": "channel", "example_inputs": EXAMPLE, "channel_dim": 2},
            ValueError,
            "channel_dim 2 is out of",
        ),
        (Failing(), {"example_inputs": EXAMPLE}, RuntimeError, "from the model"),
    ],
)
def test_what_cannot_be_converted_is_refused_and_stays_as_it_was(model, arguments, error, words):
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    with pytest.raises(error, match=words):
        convert_(model, **arguments)
    if modules:
        assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
        assert not any(module._forward_pre_hooks for module in modules)


def test_the_fused_inference_path_of_a_transformer_layer_sees_the_replacement():
    # torch.nn.TransformerEncoderLayer notes at construction that it may compute GELU itself in eval mode
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation=nn.GELU(), batch_first=True)
    x = torch.randn(2, 5, 8)
    convert_(layer, init_hardness=5.0)
    with_gradients = layer(x)
    with torch.inference_mode():
        torch.testing.assert_close(layer.eval()(x), with_gradients, rtol=1e-4, atol=1e-5)
    to_relu_(layer)
    with_gradients = layer.train()(x)
    with torch.inference_mode():
        torch.testing.assert_close(layer.eval()(x), with_gradients, rtol=1e-4, atol=1e-5)


def test_a_transformer_encoder_still_takes_padded_batches():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation=nn.GELU(), batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2)
    assert encoder.use_nested_tensor  # packs padded batches, which only the fused path of the layers understands
    x, padding = torch.randn(2, 5, 8), torch.arange(5).expand(2, 5) >= torch.tensor([[4], [5]])
    convert_(encoder, init_hardness=5.0)
    with_gradients = encoder(x, src_key_padding_mask=padding)
    with torch.inference_mode():
        y = encoder.eval()(x, src_key_padding_mask=padding)
    torch.testing.assert_close(y[~padding], with_gradients[~padding], rtol=1e-4, atol=1e-5)


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
    model = nn.Sequential(gelu, nn.Linear(2, 2), gelu, SlightlyDifferentGELU())
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
