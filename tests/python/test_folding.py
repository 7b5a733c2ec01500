"""fold_hardness_: f(x; λ) = GELU(λx) / λ, so λ fits into the neighbouring layers."""

import copy
import json

import pytest
import torch
from torch import nn

from lambda_gelu import LambdaGELU, fold_hardness_

pytestmark = pytest.mark.usefixtures("device")


def site(n=1, channel_dim=1):
    """λ from 1.5 to 9, neither equal nor powers of two."""
    return LambdaGELU(n, init_hardness=torch.linspace(1.5, 9, n), channel_dim=channel_dim)


class Heads(nn.Module):
    """One λ per head of 3 features, which lie in a dimension of their own at the site."""

    def __init__(self):
        super().__init__()
        self.before, self.site, self.behind = nn.Linear(4, 6), site(2, channel_dim=1), nn.Linear(6, 4)

    def forward(self, x):
        return self.behind(self.site(self.before(x).view(-1, 2, 3)).transpose(1, 2).transpose(1, 2).flatten(1))


class Gated(nn.Module):
    """GEGLU with a second layer as its gate, and a scale per feature; or, broadcast, with one number per sample."""

    def __init__(self, n=1, gates=6):
        super().__init__()
        self.before, self.gate, self.site, self.behind = nn.Linear(4, 6), nn.Linear(4, gates), site(n), nn.Linear(6, 4)
        self.scale = nn.Parameter(torch.rand(6))

    def forward(self, x):
        return self.behind(self.scale * (self.gate(x) * self.site(self.before(x))))


IMAGE = (3, 4, 8, 8)

# The network, the shape of its input, the layers before and behind its site.
FOLDED = {
    "linear": (nn.Sequential(nn.Linear(4, 6), site(), nn.Linear(6, 2)), (3, 4), "0", ("2",)),
    "no bias": (nn.Sequential(nn.Linear(4, 6, bias=False), site(), nn.Linear(6, 2)), (3, 5, 4), "0", ("2",)),
    "λ per channel": (nn.Sequential(nn.Linear(4, 6), site(6), nn.Linear(6, 2)), (3, 4), "0", ("2",)),
    "λ per channel, last": (nn.Sequential(nn.Linear(4, 6), site(6, -1), nn.Linear(6, 2)), (3, 5, 4), "0", ("2",)),
    "λ per head": (Heads(), (3, 4), "before", ("behind",)),
    "gated": (Gated(), (3, 4), "before", ("behind",)),
    "gated, λ per channel": (Gated(6), (3, 4), "before", ("behind",)),
    "gated by one number": (Gated(6, gates=1), (3, 4), "before", ("behind",)),
    "frozen": (nn.Sequential(nn.Linear(4, 6), site(6), nn.Linear(6, 2)), (3, 4), "0", ("2",)),
    "dropout": (
        nn.Sequential(nn.Linear(4, 6), nn.Dropout(), site(), nn.Dropout(), nn.Linear(6, 2)),
        (3, 4),
        "0",
        ("4",),
    ),
    "norm": (nn.Sequential(nn.LayerNorm(4), site(4), nn.Linear(4, 2)), (3, 4), "0", ("2",)),
    "rms norm": (nn.Sequential(nn.RMSNorm(4), site(4), nn.Linear(4, 2)), (3, 4), "0", ("2",)),
    "conv": (nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), site(6), nn.Conv2d(6, 4, 3, groups=2)), IMAGE, "0", ("2",)),
    "padding": (
        nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), site(6), nn.Conv2d(6, 4, 3, padding=1)),
        IMAGE,
        "0",
        ("2",),
    ),
    "transposed": (
        nn.Sequential(
            nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), site(6), nn.ConvTranspose2d(6, 2, 3, stride=2, groups=2)
        ),
        IMAGE,
        "0",
        ("2",),
    ),
    "batch norm": (nn.Sequential(nn.BatchNorm2d(4), site(4), nn.Conv2d(4, 2, 3)), IMAGE, "0", ("2",)),
    "group norm": (nn.Sequential(nn.GroupNorm(2, 4), site(4), nn.Conv2d(4, 2, 3)), IMAGE, "0", ("2",)),
    "pools": (
        nn.Sequential(nn.Conv2d(4, 6, 3), nn.MaxPool2d(2), site(6), nn.AvgPool2d(2), nn.Conv2d(6, 2, 1)),
        IMAGE,
        "0",
        ("4",),
    ),
    "flattened": (
        nn.Sequential(nn.Conv2d(4, 6, 3), site(6), nn.Flatten(), nn.Linear(216, 4)),
        IMAGE,
        "0",
        ("3",),
    ),
    "conv1d and conv3d": (
        nn.Sequential(nn.Conv1d(4, 6, 3), site(6), nn.Unflatten(1, (6, 1, 1)), nn.Conv3d(6, 2, 1)),
        (3, 4, 8),
        "0",
        ("3",),
    ),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", FOLDED)
@torch.no_grad()
def test_a_folded_network_is_a_gelu_network_that_computes_the_same(name, dtype):
    model, shape, before, behind = FOLDED[name]
    torch.manual_seed(0)
    model = copy.deepcopy(model).double().to(torch.get_default_device())
    for module in model.modules():
        if isinstance(module, LambdaGELU) and name == "frozen":
            module.freeze_hardness()
            module.set_hardness(torch.linspace(0.5, 64, 6))
        if isinstance(module, nn.modules.batchnorm._NormBase):
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2)
    x = torch.randn(shape, dtype=torch.float64)
    y = model.eval()(x)
    model.to(dtype)
    report = fold_hardness_(model, x.to(dtype))
    assert not any(isinstance(module, LambdaGELU) for module in model.modules())
    (folded,) = report.sites
    assert (folded.predecessor, folded.successors, report.left) == (before, behind, {})
    torch.testing.assert_close(model(x.to(dtype)).double(), y, rtol=0, atol=1e-14 if dtype == torch.float64 else 2e-6)


def test_a_chain_is_folded_without_a_run_and_in_training():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), site(), nn.Linear(6, 6), site(6, -1), nn.Linear(6, 2)).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    y = model(x)
    report = fold_hardness_(model)
    assert [type(module) for module in model] == [nn.Linear, nn.GELU, nn.Linear, nn.GELU, nn.Linear]
    assert model[1].training and [name for name, _ in model.named_parameters() if "hardness" in name] == []
    torch.testing.assert_close(model(x), y, rtol=0, atol=1e-14)
    assert str(report).splitlines()[0] == "2 sites are GELU now, λ is in their neighbours"
    assert str(report).splitlines()[3].split() == ["1", "1.5", "1.5", "0", "2"]
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()


def test_powers_of_two_leave_every_bit():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), LambdaGELU(), nn.Linear(6, 2)).bfloat16()
    model[1].freeze_hardness()
    model[1].set_hardness(8.0)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fold_hardness_(model)
    assert torch.equal(model[0].weight, before["0.weight"] * 8) and torch.equal(model[0].bias, before["0.bias"] * 8)
    assert torch.equal(model[2].weight, before["2.weight"] / 8) and torch.equal(model[2].bias, before["2.bias"])


class Residual(nn.Module):
    def __init__(self, share=False):
        super().__init__()
        self.before, self.site, self.behind = nn.Linear(4, 4), site(), nn.Linear(4, 4)
        if share:
            self.behind.weight = self.before.weight

    def forward(self, x):
        y = self.before(x)
        return y + self.behind(self.site(y))


class Tied(Residual):
    def forward(self, x):
        return self.behind(self.site(self.before(x)))


class Squared(Residual):
    def forward(self, x):
        y = self.site(self.before(x))
        return self.behind(y * y.view(-1, 2, 2).flatten(1))


class SquaredLater(Residual):
    def forward(self, x):
        y = self.site(self.before(x))
        return self.behind(y * x * y)


class OwnGate(Residual):
    """The gate is what goes into the site, so that λ would come twice."""

    def forward(self, x):
        y = self.before(x)
        return self.behind(self.site(y) * y)


class Twice(Residual):
    def forward(self, x):
        return self.behind(self.site(self.before(self.before(x))))


class Sharpened(nn.Module):
    """One channel of the layer before the site has two λ."""

    def __init__(self):
        super().__init__()
        self.before, self.site, self.behind = nn.Linear(4, 2), site(4, -1), nn.Linear(4, 4)

    def forward(self, x):
        return self.behind(self.site(self.before(x).repeat(1, 2)))


def weight_normed():
    model = nn.Sequential(nn.Linear(4, 6), site(), nn.Linear(6, 2))
    nn.utils.parametrizations.weight_norm(model[0])
    return model


def overflowing():
    model = nn.Sequential(nn.Linear(4, 6), LambdaGELU(), nn.Linear(6, 2)).half()
    nn.init.constant_(model[0].bias, 6e4)
    return model


# The network, a part of the reason.
LEFT = {
    "residual": (Residual, "before before it also goes to add"),
    "tied": (lambda: Tied(share=True), "before.weight is shared with behind.weight"),
    "square": (Squared, "it goes to mul"),
    "square of a product": (SquaredLater, "it goes to mul"),
    "gate of the same layer": (OwnGate, "before before it also goes to behind"),
    "called twice": (Twice, "before is called 2 times"),
    "two λ for one channel": (Sharpened, "one channel of the layer before it has several λ"),
    "first": (lambda: nn.Sequential(site(), nn.Linear(4, 2)), "what comes before it is no layer"),
    "behind a tanh": (lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh(), site(), nn.Linear(4, 2)), "no layer"),
    "last": (lambda: nn.Sequential(nn.Linear(4, 4), site()), "what the model returns"),
    "norm behind": (lambda: nn.Sequential(nn.Linear(4, 4), site(), nn.LayerNorm(4)), "2: LayerNorm is no linear layer"),
    "batch norm behind": (lambda: nn.Sequential(nn.Linear(4, 4), site(), nn.BatchNorm1d(4)), "2: BatchNorm1d is no"),
    "norm without weight": (
        lambda: nn.Sequential(nn.LayerNorm(4, elementwise_affine=False), site(), nn.Linear(4, 2)),
        "0: LayerNorm has no weight",
    ),
    "computed weight": (weight_normed, "its weight is computed from other parameters"),
    "overflow": (overflowing, "0.bias would overflow torch.float16"),
}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key].nan_to_num(7), b[key].nan_to_num(7)) for key in a)


@pytest.mark.parametrize("name", LEFT)
def test_a_site_without_neighbours_for_its_hardness_is_left_and_named(name):
    make, reason = LEFT[name]
    model = make()
    state = copy.deepcopy(model.state_dict())
    x = torch.randn(3, 4, dtype=next(model.parameters()).dtype)
    report = fold_hardness_(model, x)
    ((_, why),) = report.left.items()
    assert reason in why and report.sites == ()
    assert same(model.state_dict(), state) and f"still λ-GELU: {next(iter(report.left))}: " in str(report)


def test_a_site_that_cannot_be_folded_does_not_keep_others_from_it():
    torch.manual_seed(0)
    model = nn.Sequential(site(), nn.Linear(4, 6), site(), nn.Linear(6, 2)).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    y = model(x)
    report = fold_hardness_(model)
    assert [folded.name for folded in report.sites] == ["2"] and list(report.left) == ["0"]
    torch.testing.assert_close(model(x), y, rtol=0, atol=1e-14)


def test_a_gate_is_passed_without_a_run_too():
    torch.manual_seed(0)
    model, x = Gated().double(), torch.randn(3, 4, dtype=torch.float64)
    y = model(x)
    assert [folded.successors for folded in fold_hardness_(model).sites] == [("behind",)]
    torch.testing.assert_close(model(x), y, rtol=0, atol=1e-14)
    for make in (Squared, SquaredLater, OwnGate):
        assert fold_hardness_(make()).sites == ()


def test_what_cannot_be_traced_is_left_with_the_reason():
    class Branching(Tied):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    model = Branching()
    report = fold_hardness_(model)
    assert "torch.fx cannot trace" in report.left["site"] and isinstance(model.site, LambdaGELU)
    assert fold_hardness_(model, torch.ones(3, 4)).left == {} and isinstance(model.site, nn.GELU)


def test_a_shared_site_that_is_called_once_becomes_gelu_at_all_its_places():
    model = Tied()
    model.alias = model.site
    report = fold_hardness_(model)
    assert (report.sites[0].name, report.sites[0].also_at) == ("site", ("alias",))
    assert model.alias is model.site and isinstance(model.site, nn.GELU)


def test_the_gelu_of_an_encoder_layer_is_fused_again():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True).double().eval()
    encoder.activation = LambdaGELU(init_hardness=3.0)
    encoder.activation_relu_or_gelu = 0
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    with torch.no_grad():
        y = encoder(x)
        fold_hardness_(encoder, x)
        assert encoder.activation_relu_or_gelu == 2
        torch.testing.assert_close(encoder(x), y, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.Linear(2, 2), "Linear has no LambdaGELU"),
        (site, "the model itself is a LambdaGELU and cannot be replaced in place: write nn.GELU"),
        (lambda: nn.Sequential(torch.compile(site())), "inside its own torch.compile"),
    ],
)
def test_a_model_in_which_no_site_can_be_replaced_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        fold_hardness_(make())
