"""convert_: what is known as GELU, what is left alone, what is named."""

import functools
import inspect
import math
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import lambda_gelu
from lambda_gelu import LambdaGELU, convert_, to_relu_

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


class Calling(Block):
    """Calls its GELU with keywords."""

    def __init__(self, keywords):
        super().__init__()
        self.keywords = keywords

    def forward(self, x):
        return self.act(**self.keywords)


EXAMPLE = torch.randn(2, 4)


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
    assert report.skipped == {"0": "SlightlyDifferentGELU has a forward of its own; gelu_classes has it checked"}
    assert "left alone: 0: SlightlyDifferentGELU has a forward of its own" in str(report)


def test_the_documented_bound_on_the_change_of_function_holds_and_is_tight():
    model = nn.Sequential(nn.GELU())
    report = convert_(model)
    x = torch.linspace(-6, 6, 24001, dtype=torch.float64)
    hardness = model[0].hardness.item()
    change = (lambda_gelu.lambda_gelu(x, hardness) - nn.functional.gelu(x)).abs().max().item()
    # d f / d λ = x² φ(λx) is at most 2 φ(√2) / λ², at x = √2 / λ
    bound = 2 * math.exp(-1) / math.sqrt(2 * math.pi) * (1 - 1 / hardness)
    assert 0.99 * bound < change <= bound < 0.0030
    assert report.sites[0].error == pytest.approx(bound, rel=1e-12)


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
    assert columns.split() == ["site", "replaced", "number", "of", "λ", "error", "calls", "shared", "module", "with"]
    assert row.split() == ["1", "GELU(approximate='none')", "5", "0.0029", "1", "-"]
    (site,) = report.to_dict()["sites"]
    assert site.pop("error") == pytest.approx(0.0029, rel=0.01)
    assert [line.split(":")[0] for line in site.pop("called_from")] == ["container.py"]  # nn.Sequential calls it
    assert site == {
        "name": "1",
        "replaced": "GELU(approximate='none')",
        "num_parameters": 5,
        "calls": 1,
        "shared_with": [],
    }


@pytest.mark.parametrize(
    ("model", "arguments", "error", "words"),
    [
        (nn.GELU(), {}, ValueError, "the model itself is a GELU"),
        (
            nn.Sequential(nn.Linear(2, 2)),
            {},
            ValueError,
            "Sequential has no GELU module; F.gelu .* only with example_in",
        ),
        (
            nn.Sequential(nn.ReLU()),
            {"example_inputs": EXAMPLE},
            ValueError,
            "Sequential has no GELU module, nor a call of F.gelu",
        ),
        (nn.Sequential(SlightlyDifferentGELU()), {}, ValueError, "no GELU module; 0: .* has a forward of its own"),
        (
            nn.Sequential(SlightlyDifferentGELU()),
            {"gelu_classes": [SlightlyDifferentGELU]},
            ValueError,
            r"gelu_classes: SlightlyDifferentGELU is not GELU: off by 1 at x = .* \(0\)",
        ),
        (Block(), {"gelu_classes": nn.GELU}, TypeError, "gelu_classes must be a list of classes, got GELU itself"),
        (Block(), {"gelu_classes": [nn.GELU()]}, TypeError, "gelu_classes must hold subclasses of torch.nn.Module"),
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
        (nn.Sequential(nn.Linear(2, 2), LambdaGELU()), {}, ValueError, "no GELU module beside 1 LambdaGELU"),
        (
            Calling({"input": EXAMPLE, "approximate": "tanh"}),
            {"example_inputs": EXAMPLE},
            ValueError,
            r"act is called with \(input=..., approximate=...\), but a LambdaGELU takes one tensor",
        ),
        (
            Calling({"x": EXAMPLE}),
            {"example_inputs": EXAMPLE, "gelu_classes": [nn.GELU]},
            ValueError,
            r"act is called with \(x=...\), but",
        ),
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


# --- by what it computes ---------------------------------------------------------------------------------------------


class GELUOfMyOwn(nn.Module):
    def forward(self, x):
        return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


class Clipped(GELUOfMyOwn):
    def forward(self, x):
        return super().forward(x).clip(max=50)  # shows far out only


class GELUWithABias(GELUOfMyOwn):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return super().forward(x) + self.bias


def test_a_class_of_ones_own_is_named_and_converted_on_demand():
    model = nn.Sequential(GELUOfMyOwn(), nn.GELU())
    assert convert_(model).skipped == {
        "0": "GELUOfMyOwn is not known; where it is GELU, gelu_classes=[GELUOfMyOwn] converts it"
    }
    (site,) = convert_(model, gelu_classes=[GELUOfMyOwn]).sites
    assert (site.name, site.replaced, type(model[0])) == ("0", "GELUOfMyOwn()", LambdaGELU)
    assert site.error == pytest.approx(0.0029, rel=0.01)


@pytest.mark.parametrize(
    ("kind", "words"),
    [(Clipped, "Clipped is not GELU: off by 1e.05 at x = 1e.05"), (GELUWithABias, "GELUWithABias has parameters")],
)
def test_a_class_of_ones_own_that_is_not_gelu_is_refused(kind, words):
    model = nn.Sequential(kind(), nn.GELU())
    with pytest.raises(ValueError, match=words):
        convert_(model, gelu_classes=[kind])
    assert [type(module) for module in model] == [kind, nn.GELU]


def test_a_forward_that_was_put_into_an_instance_is_left_alone():
    model = nn.Sequential(nn.GELU(), nn.GELU())
    model[0].forward = lambda x: x + 1
    assert list(convert_(model).skipped) == ["0"]
    assert model[0](torch.zeros(())).item() == 1


def test_a_padded_batch_can_be_the_example_of_a_transformer_encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2)
    padding = torch.arange(5).expand(2, 5) >= torch.tensor([[4], [5]])
    inputs = {
        "src": torch.randn(2, 5, 8),
        "src_key_padding_mask": padding,
    }  # which torch would pack into a nested tensor
    report = convert_(encoder, per="channel", channel_dim=-1, example_inputs=inputs)
    assert [(site.name, site.calls, site.num_parameters) for site in report.sites] == [
        ("layers.0.activation", 1, 16),
        ("layers.1.activation", 1, 16),
    ]


# --- functions in attributes -----------------------------------------------------------------------------------------


class Holder(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.act = function

    def forward(self, x):
        return self.act(self.linear(x))


@pytest.mark.parametrize(
    ("function", "replaced", "error"),
    [
        (F.gelu, "gelu", 0.00291),
        (functools.partial(F.gelu, approximate="tanh"), "gelu(approximate='tanh')", 0.00338),
    ],
)
def test_f_gelu_in_an_attribute_becomes_a_site(function, replaced, error):
    model = nn.Sequential(Holder(function))
    (site,) = convert_(model, example_inputs=EXAMPLE).sites
    assert (site.name, site.replaced, site.calls) == ("0.act", replaced, 1)
    assert site.error == pytest.approx(error, rel=0.01)
    assert isinstance(model[0].act, LambdaGELU) and list(lambda_gelu.find_sites(model)) == ["0.act"]


def test_f_gelu_in_an_attribute_is_a_function_again_where_something_else_is_refused():
    model = nn.Sequential(Holder(F.gelu), nn.TransformerEncoderLayer(4, 2, 8, activation=functools.partial(F.gelu)))
    before = [dict(vars(module)) for module in model]
    with pytest.raises(ValueError, match="above 1"):
        convert_(model, init_hardness=0.5)
    assert [dict(vars(module)) for module in model] == before
    assert model[0].act is F.gelu and "act" not in model[0]._modules


@pytest.mark.parametrize("activation", ["gelu", F.gelu, nn.GELU()])
@pytest.mark.parametrize("kind", [nn.TransformerEncoderLayer, nn.TransformerDecoderLayer])
def test_the_transformer_layers_of_torch_are_converted_however_they_got_their_gelu(kind, activation):
    torch.manual_seed(0)
    layer = kind(8, 2, 16, dropout=0.0, activation=activation, batch_first=True).eval()
    inputs = (torch.randn(2, 5, 8),) * (2 if kind is nn.TransformerDecoderLayer else 1)
    before = layer(*inputs)
    (site,) = convert_(layer, per="channel", channel_dim=-1, example_inputs=inputs).sites
    assert (site.name, site.calls, site.num_parameters) == ("activation", 1, 16)
    torch.testing.assert_close(layer(*inputs), before, rtol=0, atol=0.02)
    with torch.no_grad():  # where torch would take its fused kernel
        torch.testing.assert_close(layer(*inputs), before, rtol=0, atol=0.02)
    for value in layer(*inputs).sum().backward(), layer.activation.raw_hardness.grad:
        assert value is None or value.abs().max() > 0


# --- functional calls ------------------------------------------------------------------------------------------------


def somewhere_else(x):
    return F.gelu(x)


class Functional(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def line_of(function, text):
    """file.py:12 of a piece of source."""
    source, first = inspect.getsourcelines(function)
    (offset,) = [number for number, line in enumerate(source) if text in line]
    return f"test_conversion.py:{first + offset}"


CALLS = {
    "F.gelu": (lambda x: F.gelu(x, approximate="tanh"), "gelu"),
    "nn.functional.gelu": (lambda x: torch.nn.functional.gelu(x) + 0, "gelu"),
    "aten": (lambda x: torch.ops.aten.gelu(x) + 0, "gelu"),
    "aten overload": (lambda x: torch.ops.aten.gelu.default(x) + 0, "gelu"),
    "aten in place": (lambda x: torch.ops.aten.gelu_(x.clone()), "gelu"),
    "a module made on the spot": (lambda x: nn.GELU()(x) + 0, "GELU"),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_functional_call_is_found_under_any_name_and_named_with_its_module_and_line(call):
    function, name = CALLS[call]
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Sequential(Functional(function)))
    report = convert_(model, example_inputs=EXAMPLE)
    (found,) = report.functional_calls
    assert (found.name, found.module, found.function, found.calls) == ("2.0", "Functional", name, 1)
    assert found.location == f"test_conversion.py:{function.__code__.co_firstlineno}"
    assert f"still GELU: 2.0 (Functional) calls {name} at {found.location}" in str(report)
    assert len(report.sites) == 1


def test_functional_calls_are_counted_by_line_and_belong_to_the_innermost_forward():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Functional(somewhere_else)
            self.act = nn.GELU()

        def forward(self, x):
            x = self.inner(self.inner(x))
            return self.act(F.gelu(x))  # the model's own

    report = convert_(Model(), example_inputs=EXAMPLE)
    assert [(call.name, call.module, call.location, call.calls) for call in report.functional_calls] == [
        ("inner", "Functional", line_of(somewhere_else, "F.gelu"), 2),
        ("", "Model", line_of(Model, "F.gelu"), 1),
    ]
    assert "still GELU: the model (Model) calls gelu at" in str(report)


def test_a_functional_call_alone_is_refused_with_what_to_do():
    model = nn.Sequential(Functional(somewhere_else))
    with pytest.raises(ValueError, match=r"no GELU module; 0 \(Functional\) calls gelu at .*self.act = nn.GELU\(\)"):
        convert_(model, example_inputs=EXAMPLE)


def test_the_calls_of_gelu_modules_are_not_functional_calls():
    model = nn.Sequential(nn.GELU(), SlightlyDifferentGELU(), RenamedGELU(), Holder(F.gelu))
    assert convert_(model, example_inputs=EXAMPLE).functional_calls == ()


def test_without_example_inputs_functional_calls_are_not_known():
    report = convert_(nn.Sequential(nn.GELU(), Functional(somewhere_else)))
    assert report.functional_calls is None


@pytest.mark.parametrize("wrap", [lambda m: torch.compile(m, backend="eager"), nn.DataParallel])
def test_functional_calls_are_found_in_wrapped_models_and_nothing_is_compiled_for_it(wrap):
    compiled = torch.compile(Functional(somewhere_else), backend="eager")
    model = wrap(nn.Sequential(nn.Linear(4, 4), nn.GELU(), compiled))
    torch._dynamo.utils.counters.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (call,) = convert_(model, example_inputs=EXAMPLE).functional_calls
    assert (call.name, call.calls) == ("2", 1)
    assert not torch._dynamo.utils.counters["stats"]


# --- models that something has been done to ---------------------------------------------------------------------------


@pytest.mark.parametrize("in_place", [False, True])
def test_a_model_in_torch_compile_is_converted_and_computes_it(in_place):
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 4))
    if in_place:
        model.compile(backend="eager")
        compiled = model
    else:
        compiled = torch.compile(model, backend="eager")
    before = compiled(EXAMPLE)
    (site,) = convert_(compiled, init_hardness=3.0, example_inputs=EXAMPLE).sites
    assert (site.name, site.calls) == ("1", 1)
    after = compiled(EXAMPLE)
    assert torch.equal(after, model[2](model[1](model[0](EXAMPLE)))) and not torch.equal(after, before)
    to_relu_(compiled)
    assert torch.equal(compiled(EXAMPLE), model[2](model[0](EXAMPLE).relu()))


@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_torchscript_is_named_and_says_what_to_do():
    scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.GELU()))
    words = "1: GELU is TorchScript, which cannot change: convert first, then script"
    with pytest.raises(ValueError, match=words):
        convert_(scripted, example_inputs=EXAMPLE)
    report = convert_(nn.Sequential(nn.GELU(), scripted), example_inputs=EXAMPLE)
    assert [site.name for site in report.sites] == ["0"] and f"1.{words}".endswith(report.skipped["1.1"])


@pytest.mark.parametrize("example_inputs", [None, EXAMPLE])
def test_an_exported_model_is_refused_with_what_to_do(example_inputs):
    exported = torch.export.export(nn.Sequential(nn.Linear(4, 4), nn.GELU()), (torch.randn(2, 4),)).module()
    with pytest.raises(ValueError, match="convert first, then export"):
        convert_(exported, example_inputs=example_inputs)


# --- one module, several uses ----------------------------------------------------------------------------------------


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.act = nn.Linear(4, 4), nn.Linear(4, 4), nn.GELU()

    def forward(self, x):
        x = self.act(self.first(x))
        return self.act(self.second(x))


def test_one_module_called_twice_is_named_with_the_lines_to_split():
    report = convert_(Twice(), example_inputs=EXAMPLE)
    lines = (line_of(Twice, "self.act(self.first"), line_of(Twice, "self.act(self.second"))
    assert (report.sites[0].calls, report.sites[0].called_from) == (2, lines)
    assert f"one λ for 2 calls: act, from {', '.join(lines)}" in str(report)


def test_a_module_that_nothing_calls_is_named():
    report = convert_(nn.Sequential(Block(), Unreached()), example_inputs=EXAMPLE)
    assert [(site.name, site.calls, site.called_from) for site in report.sites][1] == ("1.act", 0, ())
    assert "never called: 1.act" in str(report) and "never called: 0.act" not in str(report)


def test_one_module_in_a_table_of_activations_is_split_where_modules_hold_it():
    table = {"gelu": nn.GELU()}  # not copied on access

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = table["gelu"]

        def forward(self, x):
            return self.act(x)

    model = nn.Sequential(Layer(), Layer())
    report = convert_(model, example_inputs=EXAMPLE)
    assert [(site.name, site.calls, site.shared_with) for site in report.sites] == [
        ("0.act", 1, ("1.act",)),
        ("1.act", 1, ("0.act",)),
    ]
    assert model[0].act is not model[1].act


def test_a_gelu_that_only_a_table_holds_is_named():
    table = [nn.GELU()]

    class Layer(nn.Module):
        def forward(self, x):
            return table[0](x)

    model = nn.Sequential(Layer(), nn.GELU())
    (call,) = convert_(model, example_inputs=EXAMPLE).functional_calls
    assert (call.name, call.module, call.function) == ("0", "Layer", "GELU")
