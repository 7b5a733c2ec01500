"""find_successors: which layers can take a constant per channel from a site's output."""

import contextlib
import copy
import re
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lambda_gelu import LambdaGELU, convert_
from lambda_gelu._layers import shift_of
from lambda_gelu.successors import NoSuccessor, Successor, find_successors

pytestmark = pytest.mark.usefixtures("device")


class Network(nn.Module):
    """4 features to 6 to a site; `rest` makes the result of the network, of what the site gives, and of the input."""

    def __init__(self, rest, **layers):
        super().__init__()
        self.rest = rest
        for name, layer in {
            "before": nn.Linear(4, 6),
            "site": LambdaGELU(),
            "behind": nn.Linear(6, 4),
            **layers,
        }.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.rest(self, self.site(self.before(x)), x)


def images(*layers, channels=6):
    return nn.Sequential(nn.Conv2d(2, channels, 3, padding=1), LambdaGELU(), *layers)


IMAGE = (3, 2, 8, 8)

# The network, the shape of its input, what takes the constant, the dimension of the channels.
FOUND = {
    "linear": (nn.Sequential(nn.Linear(4, 6), LambdaGELU(), nn.Linear(6, 2)), (3, 4), "2.bias", -1),
    "sequence": (nn.Sequential(nn.Linear(4, 6), LambdaGELU(), nn.Linear(6, 2)), (3, 5, 4), "2.bias", -1),
    "λ per channel": (nn.Sequential(nn.Linear(4, 6), LambdaGELU(6), nn.Linear(6, 2)), (3, 4), "2.bias", -1),
    "dropout": (nn.Sequential(LambdaGELU(), nn.Dropout(0.5), nn.Identity(), nn.Linear(4, 2)), (3, 4), "3.bias", -1),
    "functional dropout": (
        Network(lambda net, y, x: net.behind(F.dropout(y, 0.5, net.training))),
        (3, 4),
        "behind.bias",
        -1,
    ),
    "two layers": (
        Network(
            lambda net, y, x: net.behind(y) * torch.sigmoid(net.other(y)),
            other=nn.Linear(6, 4, bias=True),
        ),
        (3, 4),
        "behind.bias, other.bias",
        -1,
    ),
    "two sites": (
        Network(
            lambda net, y, x: net.behind(y) + net.behind2(net.site2(net.before(x))),
            site2=LambdaGELU(),
            behind2=nn.Linear(6, 4),
        ),
        (3, 4),
        "behind.bias",
        -1,
    ),
    "reshaped and back": (
        Network(lambda net, y, x: net.behind(y.view(3, 2, 3).transpose(0, 1).transpose(0, 1).flatten(1))),
        (3, 4),
        "behind.bias",
        -1,
    ),
    "first token": (Network(lambda net, y, x: net.behind(y[:, 0])), (3, 5, 4), "behind.bias", -1),
    "mean of tokens": (Network(lambda net, y, x: net.behind(y.mean(1))), (3, 5, 4), "behind.bias", -1),
    "maximum of tokens": (
        Network(lambda net, y, x: net.behind(y.max(1).values)),
        (3, 5, 4),
        "behind.bias",
        -1,
    ),
    "part of the channels": (
        Network(lambda net, y, x: net.behind(y[..., 3:]), behind=nn.Linear(3, 4)),
        (3, 4),
        "behind.bias",
        -1,
    ),
    "halves": (
        Network(
            lambda net, y, x: net.behind(y.chunk(2, -1)[0]) + net.other(y.chunk(2, -1)[1]),
            behind=nn.Linear(3, 4),
            other=nn.Linear(3, 4),
        ),
        (3, 4),
        "behind.bias, other.bias",
        -1,
    ),
    "tokens mixed": (
        Network(lambda net, y, x: net.behind(y.transpose(1, 2)), behind=nn.Linear(5, 4)),
        (3, 5, 4),
        "behind.bias",
        1,
    ),
    "conv": (images(nn.Conv2d(6, 4, 3)), IMAGE, "2.bias", 1),
    "conv, groups": (images(nn.Conv2d(6, 4, (3, 1), groups=2, stride=2, dilation=2)), IMAGE, "2.bias", 1),
    "conv, circular padding": (images(nn.Conv2d(6, 4, 3, padding=1, padding_mode="circular")), IMAGE, "2.bias", 1),
    "conv1d": (nn.Sequential(LambdaGELU(), nn.Conv1d(4, 2, 3)), (3, 4, 7), "1.bias", 1),
    "conv1d, no batch": (nn.Sequential(LambdaGELU(), nn.Conv1d(4, 2, 3)), (4, 7), "1.bias", 0),
    "conv3d": (nn.Sequential(LambdaGELU(), nn.Conv3d(2, 2, 2, groups=2)), (3, 2, 4, 4, 4), "1.bias", 1),
    "conv over tokens": (
        Network(lambda net, y, x: net.behind(y.transpose(1, 2)), behind=nn.Conv1d(6, 4, 2)),
        (3, 5, 4),
        "behind.bias",
        -1,
    ),
    "batch norm": (images(nn.BatchNorm2d(6)), IMAGE, "2.running_mean", 1),
    "no bias before a batch norm": (
        images(nn.Conv2d(6, 4, 3, bias=False), nn.Dropout2d(), nn.BatchNorm2d(4)),
        IMAGE,
        "4.running_mean",
        1,
    ),
    "max pool": (images(nn.MaxPool2d(3, 2, padding=1), nn.Conv2d(6, 4, 3)), IMAGE, "3.bias", 1),
    "average pool": (images(nn.AvgPool2d(3, 2), nn.Conv2d(6, 4, 3)), IMAGE, "3.bias", 1),
    "average pool, padding not counted": (
        images(nn.AvgPool2d(3, 2, padding=1, count_include_pad=False), nn.Conv2d(6, 4, 3)),
        IMAGE,
        "3.bias",
        1,
    ),
    "global average": (images(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)), IMAGE, "4.bias", 1),
    "flattened maps": (images(nn.MaxPool2d(4), nn.Flatten(), nn.Linear(24, 4)), IMAGE, "4.bias", 1),
    "shuffled pixels": (images(nn.PixelShuffle(2), nn.Conv2d(2, 4, 3), channels=8), IMAGE, None, None),
    "upsampled": (images(nn.Upsample(scale_factor=2), nn.Conv2d(6, 4, 3)), IMAGE, "3.bias", 1),
}
# They need a run: torch.fx sees no shapes, or not that λ lie along the dimension of the channels.
NEED_A_RUN = {
    *("λ per channel", "reshaped and back", "first token", "mean of tokens", "maximum of tokens", "halves"),
    *("part of the channels", "tokens mixed", "conv over tokens", "flattened maps", "global average", "average pool"),
    *("average pool, padding not counted", "upsampled", "shuffled pixels"),
}


def first_site(model):
    return next((name, module) for name, module in model.named_modules() if isinstance(module, LambdaGELU))


def take_back(successor, constants):
    """Folds minus a constant per channel of the site into the layers behind it."""
    for layer in successor.layers:
        arriving = constants[list(layer.channels)]
        if layer.kind == "norm":
            layer.module.running_mean += arriving
        elif layer.norms:
            for norm in layer.norms:
                norm.module.running_mean += shift_of(layer.module, arriving)[list(norm.channels)]
        else:
            layer.module.bias -= shift_of(layer.module, arriving)


@pytest.mark.parametrize("inputs", ["a run", "torch.fx"])
@pytest.mark.parametrize("name", FOUND)
@torch.no_grad()
def test_what_is_folded_into_the_successors_undoes_a_constant_per_channel(name, inputs):
    model, shape, expected, dim = FOUND[name]
    torch.manual_seed(0)
    model = copy.deepcopy(model).double().to(torch.get_default_device())
    x = torch.randn(shape, dtype=torch.float64)
    site_name, site = first_site(model)
    found = find_successors(model, x if inputs == "a run" else None)[site_name]
    if expected is None or (inputs == "torch.fx" and name in NEED_A_RUN):
        assert isinstance(found, NoSuccessor)
        return
    assert str(found) == expected
    model.eval()
    y = model(x)
    constants = torch.randn(found.num_channels, dtype=torch.float64)

    def add_constants(module, args, output):
        if inputs == "a run":
            assert (found.channel_dim, output.shape[found.channel_dim]) == (dim, found.num_channels)
        sizes = [1] * output.dim()
        sizes[found.channel_dim] = -1
        return output + constants.view(sizes)

    site.register_forward_hook(add_constants)
    assert (model(x) - y).abs().max() > 0.01
    take_back(found, constants)
    torch.testing.assert_close(model(x), y, rtol=0, atol=1e-12)


def returns_hidden(net, y, x):
    return {"result": net.behind(y), "hidden": [y]}


def changes_in_place(net, y, x):
    z = net.behind(y)
    y.add_(1)
    return z


def reads_through_data(net, y, x):
    return net.behind(y) + y.data.sum()


def reads_in_numpy(net, y, x):
    return net.behind(y) + float(y.numpy().sum())


def reads_its_memory(net, y, x):
    return net.behind(y) + torch.empty(0).set_(y.untyped_storage(), 0, y.shape).sum()


def uses_a_view(net, y, x):
    return net.behind(y) + y.view(-1)[:4]


def swallows_an_error(net, y, x):
    with contextlib.suppress(RuntimeError):
        net.behind(y[..., :2])
    return net.behind(y) + y.sum()


def tied_bias():
    net = Network(lambda net, y, x: net.other(net.behind(y)), other=nn.Linear(4, 4))
    net.other.bias = net.behind.bias
    return net


def tied_weights():
    """behind.weight is that of another layer too, which keeps nobody from changing the bias."""
    net = Network(lambda net, y, x: net.behind(y) + net.other(y))
    net.other = nn.Linear(6, 4)
    net.other.weight = net.behind.weight
    return net


def parametrized_bias():
    net = Network(lambda net, y, x: net.behind(y))
    nn.utils.parametrize.register_parametrization(net.behind, "bias", nn.Identity())
    return net


class Unused(nn.Identity):
    def __init__(self):
        super().__init__()
        self.site = LambdaGELU()


class OwnLinear(nn.Linear):
    def forward(self, input):
        return F.linear(input.square(), self.weight, self.bias)


class OwnConvolution(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input.square(), weight, bias)


def plain(net, y, x):
    return net.behind(y)


# The network, the shape of its input, a part of the reason.
REFUSED = {
    "residual sum": (
        lambda: Network(lambda net, y, x: y + net.behind(y), behind=nn.Linear(6, 6)),
        (3, 4),
        "it goes to add",
    ),
    "GEGLU": (
        lambda: Network(
            lambda net, y, x: net.behind(y * net.gate(x)),
            gate=nn.Linear(4, 6),
        ),
        (3, 4),
        "it goes to mul",
    ),
    "the end of the model": (
        lambda: nn.Sequential(nn.Linear(4, 6), LambdaGELU()),
        (3, 4),
        "it goes to what the model returns",
    ),
    "returned beside": (lambda: Network(returns_hidden), (3, 4), "it goes to what the model returns"),
    "layer norm": (lambda: nn.Sequential(LambdaGELU(), nn.LayerNorm(4), nn.Linear(4, 2)), (3, 4), "1: LayerNorm mixes"),
    "group norm": (lambda: images(nn.GroupNorm(2, 6)), IMAGE, "2: GroupNorm mixes"),
    "instance norm": (lambda: images(nn.InstanceNorm2d(6)), IMAGE, "2: InstanceNorm2d subtracts the mean"),
    "batch norm without statistics": (
        lambda: images(nn.BatchNorm2d(6, track_running_stats=False)),
        IMAGE,
        "2: BatchNorm2d subtracts the mean",
    ),
    "stride of a transposed convolution": (
        lambda: images(nn.ConvTranspose2d(6, 4, 3, stride=2)),
        IMAGE,
        "2: ConvTranspose2d with stride .2, 2. makes a constant differ",
    ),
    "another activation": (lambda: nn.Sequential(LambdaGELU(), nn.Tanh(), nn.Linear(4, 2)), (3, 4), "[Tt]anh"),
    "concatenation": (
        lambda: Network(lambda net, y, x: net.behind(torch.cat([y, x], 1)), behind=nn.Linear(10, 4)),
        (3, 4),
        "it goes to cat",
    ),
    "called twice": (
        lambda: Network(lambda net, y, x: net.behind(net.site(y))),
        (3, 4),
        "called 2 times",
    ),
    "never called": (lambda: nn.Sequential(Unused(), nn.Linear(4, 2)), (3, 4), "it was never called"),
    "unused": (lambda: Network(lambda net, y, x: x), (3, 4), "nothing uses its output"),
    "layer called twice": (
        lambda: Network(lambda net, y, x: net.behind(y) + net.behind(net.before(x))),
        (3, 4),
        "behind is called 2 times",
    ),
    "bias of two layers": (tied_bias, (3, 4), "behind.bias is shared with other.bias"),
    "bias read elsewhere": (
        lambda: Network(lambda net, y, x: net.behind(y) + net.behind.bias),
        (3, 4),
        "behind.bias is also read outside of behind",
    ),
    "computed bias": (parametrized_bias, (3, 4), "behind.bias is computed from other parameters"),
    "functional layer": (
        lambda: Network(lambda net, y, x: F.linear(y, net.behind.weight, net.behind.bias)),
        (3, 4),
        "it goes to (addmm|linear)",
    ),
    "a forward of its own": (
        lambda: Network(plain, behind=OwnLinear(6, 4)),
        (3, 4),
        "square|pow at",
    ),
    "a convolution of its own": (lambda: images(OwnConvolution(6, 4, 3)), IMAGE, "square|pow at"),
}
ONLY_A_RUN_SEES = {
    "in place": (lambda: Network(changes_in_place), (3, 4), "it goes to add_"),
    ".data": (lambda: Network(reads_through_data), (3, 4), "it goes to sum"),
    "numpy": (lambda: Network(reads_in_numpy), (3, 4), "it goes to numpy"),
    "memory": (lambda: Network(reads_its_memory), (3, 4), "it goes to set_"),
    "a view": (lambda: Network(uses_a_view), (1, 4), "it goes to add"),
    "error in a layer": (lambda: Network(swallows_an_error), (3, 4), "a layer raised an exception"),
    "average pool with padding": (
        lambda: images(nn.AvgPool2d(3, 2, padding=1), nn.Conv2d(6, 4, 3)),
        IMAGE,
        "avg_pool2d pools several channels, or padding",
    ),
    "mean of channels": (
        lambda: Network(lambda net, y, x: net.behind(y.mean(-1, True)), behind=nn.Linear(1, 4)),
        (3, 4),
        "mean pools several channels",
    ),
    "maximum of channels": (
        lambda: Network(lambda net, y, x: net.behind(y.amax(-1, True)), behind=nn.Linear(1, 4)),
        (3, 4),
        "amax pools several channels",
    ),
    "channels and batch mixed": (
        lambda: Network(lambda net, y, x: net.behind(y.t().reshape(3, 6))),
        (3, 4),
        "channels are mixed",
    ),
    "λ along another dimension": (
        lambda: Network(plain, site=LambdaGELU(5, channel_dim=1)),
        (3, 5, 4),
        "channels are mixed",
    ),
}


@pytest.mark.parametrize("inputs", ["a run", "torch.fx"])
@pytest.mark.parametrize("name", [*REFUSED, *ONLY_A_RUN_SEES])
def test_a_site_whose_output_nothing_can_be_folded_behind_is_named_with_the_reason(name, inputs):
    if name == "numpy" and torch.get_default_device().type != "cpu":
        pytest.skip("numpy reads the memory of the CPU alone")
    make, shape, reason = {**REFUSED, **ONLY_A_RUN_SEES}[name]
    model = make()
    found = find_successors(model, torch.randn(shape) if inputs == "a run" else None)[first_site(model)[0]]
    assert isinstance(found, NoSuccessor)
    if inputs == "a run" or name in REFUSED:
        assert re.search(reason, found.reason), found.reason


@pytest.mark.parametrize("inputs", [None, (3, 4)])
def test_a_weight_of_two_layers_keeps_nobody_from_changing_their_biases(inputs):
    x = None if inputs is None else torch.randn(inputs)
    assert str(find_successors(tied_weights(), x)["site"]) == "behind.bias, other.bias"


# --- around it -------------------------------------------------------------------------------------------------------


def test_a_layer_without_bias_is_named_with_the_bias_that_it_lacks():
    found = find_successors(nn.Sequential(LambdaGELU(), nn.Linear(4, 2, bias=False)))["0"]
    (layer,) = found.layers
    assert (layer.parameter, layer.has_parameter, layer.kind) == ("1.bias", False, "linear")


def test_each_input_of_a_layer_behind_flattened_maps_has_the_channel_of_its_map():
    found = find_successors(images(nn.Flatten(), nn.Linear(6 * 4, 3)), torch.randn(3, 2, 2, 2))["1"]
    assert found.layers[0].channels == tuple(channel for channel in range(6) for _ in range(4))
    assert (found.channel_dim, found.num_channels) == (1, 6)


def test_a_trace_takes_optional_arguments_at_their_defaults_and_a_run_as_they_are_given():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.site, self.behind = LambdaGELU(), nn.Linear(4, 4)

        def forward(self, x, scale=None, keep=False):
            y = self.site(x)
            if scale is None:
                return self.behind(y)
            return (self.behind(y * scale), y) if keep else self.behind(y * scale)

    model, x = Optional(), torch.randn(3, 4)
    for inputs in (None, x, (x,), {"x": x}):
        assert str(find_successors(model, inputs)["site"]) == "behind.bias"
    for inputs in ((x, x), {"x": x, "scale": x}):
        assert "goes to mul" in find_successors(model, inputs)["site"].reason


def asks_for_values(net, y, x):
    return net.behind(y) if x.sum() > 0 else net.behind(-y)


def test_a_forward_that_asks_for_values_needs_a_run():
    model = Network(asks_for_values)
    found = find_successors(model)["site"]
    assert "torch.fx cannot trace the model" in found.reason and found.reason.endswith("give example_inputs")
    assert str(find_successors(model, torch.ones(3, 4))["site"]) == "behind.bias"
    assert "goes to neg" in find_successors(model, -torch.ones(3, 4))["site"].reason


def test_a_run_sees_what_hooks_do_and_a_trace_asks_for_one():
    def scale(module, args, output):
        return output * 2

    def look(module, args, output):
        module.seen = output

    for module in ("site", "behind"):
        for hook, expected in (
            (scale, {"site": "goes to mul", "behind": "behind.bias"}[module]),
            (look, "behind.bias"),
        ):
            model = Network(plain)
            model.get_submodule(module).register_forward_hook(hook)
            assert "example_inputs" in str(find_successors(model)["site"])
            assert expected in str(find_successors(model, torch.randn(3, 4))["site"])


def keeps_what_it_computes(net, y, x):
    net.kept = y
    return net.behind(net.kept)


@pytest.mark.parametrize("inputs", [None, torch.ones(3, 4)])
def test_the_model_is_left_as_it_was(inputs):
    model = nn.Sequential(Network(keeps_what_it_computes), nn.BatchNorm1d(4))
    model.train()
    model[0].before.eval()
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    inputs = inputs if inputs is None else inputs.to(torch.get_default_device())
    assert str(find_successors(model, inputs)["0.site"]) == "0.behind.bias"
    assert [module.training for module in model.modules()] == modes
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert all(torch.equal(value, state[key]) or value.isnan().all() for key, value in model.state_dict().items())
    copy.deepcopy(model)  # stand-ins of torch.fx could not be copied
    assert torch.is_tensor(getattr(model[0], "kept", torch.ones(1)))


def test_without_the_part_of_torch_that_shows_operations_a_trace_still_works(monkeypatch):
    monkeypatch.setitem(sys.modules, "lambda_gelu._tracing.run", None)
    model = Network(plain)
    assert (
        "this PyTorch cannot show the operations of a run" in find_successors(model, torch.randn(3, 4))["site"].reason
    )
    assert str(find_successors(model)["site"]) == "behind.bias"


def test_wrapped_and_compiled_models_have_the_names_of_the_plain_one():
    model = nn.Sequential(torch.compile(Network(plain), backend="eager"))
    x = torch.randn(3, 4)
    for wrapped in (model, nn.DataParallel(model), torch.compile(model, backend="eager")):
        assert {name: str(found) for name, found in find_successors(wrapped, x).items()} == {"0.site": "0.behind.bias"}


def test_the_mlp_of_an_encoder_layer_and_of_gpt2_is_found():
    encoder = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True)
    convert_(encoder)
    assert str(find_successors(encoder, torch.randn(2, 3, 8))["activation"]) == "linear2.bias"
    transformers = pytest.importorskip("transformers")
    sizes = {"n_layer": 1, "n_embd": 8, "n_head": 2, "vocab_size": 20, "n_positions": 8}
    gpt = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))
    convert_(gpt)
    found = find_successors(gpt, {"input_ids": torch.arange(6).view(2, 3)})["transformer.h.0.mlp.act"]
    assert isinstance(found, Successor)
    assert (str(found), found.num_channels) == ("transformer.h.0.mlp.c_proj.bias", 32)


def test_a_model_without_a_site_is_refused():
    with pytest.raises(ValueError, match="Linear has no LambdaGELU"):
        find_successors(nn.Linear(2, 2))
