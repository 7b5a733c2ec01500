"""to_relu_ with a metric: bias correction, the order of harm, the loss that is allowed, and what is refused."""

import copy
import math

import pytest
import torch
from torch import nn

from lambda_gelu import LambdaGELU, Statistics, find_sites, observe, relu_substituted, site_weights, to_relu_
from lambda_gelu._layers import shift_of
from lambda_gelu.correction import BiasCorrection
from lambda_gelu.successors import find_successors

pytestmark = pytest.mark.usefixtures("device")


@pytest.fixture
def network():
    """Three sites, of which the last has nothing behind it; with float64 weights, so that facts can be exact."""
    torch.manual_seed(0)
    layers = (nn.Linear(4, 16), LambdaGELU(), nn.Linear(16, 16), LambdaGELU(16), nn.Linear(16, 3), LambdaGELU())
    model = nn.Sequential(*layers).double()
    model[3].set_hardness(torch.linspace(1.2, 4, 16))
    model[5].set_hardness(30.0)
    return model


@pytest.fixture
def data():
    torch.manual_seed(1)
    return torch.randn(4096, 4, dtype=torch.float64)


@pytest.fixture
def distance(network, data):
    """The mean squared distance from what the network computes as it stands."""
    with torch.no_grad():
        wanted = network(data)

    def evaluate(model):
        with torch.no_grad():
            return (model(data) - wanted).square().mean()

    return evaluate


def gaps_of(site, x):
    """E[ReLU(x) − f(x; λ)] by channel, measured on a tensor (..., channels)."""
    with torch.no_grad():
        return (x.relu() - site(x)).flatten(0, -2).mean(0)


def state_of(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_same(model, state):
    now = model.state_dict()
    assert now.keys() == state.keys()
    for key, value in state.items():
        torch.testing.assert_close(now[key], value, rtol=0, atol=0, equal_nan=True)


def kinds(model):
    return [type(module) for module in model.modules()]


# --- the correction --------------------------------------------------------------------------------------------------


def test_the_correction_takes_the_mean_of_the_gap_back_in_the_next_layer(network, data, distance):
    swapped = copy.deepcopy(network)
    to_relu_(swapped)
    before = state_of(network)
    gaps = gaps_of(network[1], network[0](data).detach())
    report = to_relu_(
        network,
        correction="bias",
        calibrate=lambda model: model(data),
        evaluate=distance,
        higher_is_better=False,
        example_inputs=data[:4],
    )
    change = network[2].bias.detach() - before["2.bias"]
    # The histogram knows E[e] up to what it does not know of |x| within a bin.
    torch.testing.assert_close(
        change, -network[2].weight.detach() @ gaps, rtol=0, atol=0.01 * change.abs().max().item()
    )
    assert [site.correction for site in report.sites] == [
        "2.bias",
        "4.bias",
        "no successor: it goes to what the model returns",
    ]
    untouched = ("0.weight", "0.bias", "2.weight", "4.weight")
    assert all(torch.equal(network.state_dict()[key], before[key]) for key in untouched)
    assert kinds(network) == kinds(swapped)
    assert report.metrics["before"] == 0.0
    assert report.metrics["swapped"] == pytest.approx(distance(swapped).item())
    assert report.metrics["corrected"] == pytest.approx(distance(network).item())
    assert report.metrics["corrected"] < 0.7 * report.metrics["swapped"]


IMAGES = (64, 2, 10, 10)

CORRECTED = {
    "linear": (nn.Sequential(nn.Linear(4, 6), LambdaGELU(), nn.Linear(6, 3)), (512, 4)),
    "batch norm": (nn.Sequential(nn.Conv2d(2, 6, 3), LambdaGELU(), nn.BatchNorm2d(6), nn.ReLU()), IMAGES),
    "no bias before a batch norm": (
        nn.Sequential(nn.Conv2d(2, 6, 3), LambdaGELU(), nn.Conv2d(6, 4, 3, groups=2, bias=False), nn.BatchNorm2d(4)),
        IMAGES,
    ),
    "transposed convolution": (
        nn.Sequential(nn.Conv2d(2, 6, 3), LambdaGELU(), nn.ConvTranspose2d(6, 4, 3, groups=2, padding=2)),
        IMAGES,
    ),
    "flattened maps": (
        nn.Sequential(nn.Conv2d(2, 6, 3), LambdaGELU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(96, 3)),
        IMAGES,
    ),
}


@pytest.mark.parametrize("name", CORRECTED)
@torch.no_grad()
def test_with_the_measured_gap_the_mean_of_the_next_layers_output_is_as_before_the_swap(name):
    torch.manual_seed(0)
    model, shape = copy.deepcopy(CORRECTED[name][0]).double().to(torch.get_default_device()).eval(), CORRECTED[name][1]
    x = torch.randn(shape, dtype=torch.float64)
    relu_behind = isinstance(model[-1], nn.ReLU)
    whole = model[:-1] if relu_behind else model
    inputs = model[0](x)
    gap = (inputs.relu() - model[1](inputs)).movedim(1, -1).flatten(0, -2)
    # The gap of a single sample per position is not its mean over the channel: compare with a gap that is constant.
    gaps = gap.mean(0)
    successor = find_successors(model, x[:4])["1"]
    shifted = copy.deepcopy(whole)
    shifted[1].register_forward_hook(lambda *call: call[2] + gaps.view(-1, *(1,) * (inputs.dim() - 2)))
    state = state_of(model)
    correction = BiasCorrection(successor, gaps)
    before = whole(x)
    correction.apply()
    shifted.load_state_dict(whole.state_dict())
    torch.testing.assert_close(shifted(x), before, rtol=0, atol=1e-12)
    correction.undo()
    assert_same(model, state)


@torch.no_grad()
def test_padding_zeros_are_not_shifted_so_that_the_interior_of_a_convolution_is_exact():
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 2, 3, padding=1).double()
    x, constants = torch.randn(2, 3, 6, 6, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    left = conv(x + constants.view(3, 1, 1)) - shift_of(conv, constants).view(2, 1, 1) - conv(x)
    assert left[..., 1:-1, 1:-1].abs().max() < 1e-12
    assert left[..., 0, :].abs().min() > 1e-3


def test_a_correction_that_makes_the_metric_worse_is_taken_back_to_the_last_bit(network, data):
    before = state_of(network)
    bias = before["2.bias"]

    def evaluate(model):  # dislikes any change of this bias
        return (model[2].bias - bias).abs().sum()

    report = to_relu_(
        network,
        correction="bias",
        calibrate=lambda model: model(data),
        evaluate=evaluate,
        higher_is_better=False,
        example_inputs=data[:4],
    )
    first, second, _ = report.sites
    assert first.correction.startswith("rejected: 0 → ")
    # It changes nothing of this metric, and what does not improve is not kept.
    assert second.correction == "rejected: 0 → 0"
    weights = {key: value for key, value in before.items() if key in network.state_dict()}
    assert_same(network, weights)
    assert kinds(network).count(nn.ReLU) == 3
    assert report.metrics == {"before": 0.0, "swapped": 0.0, "corrected": 0.0}


def test_each_correction_is_judged_with_those_before_it(network, data):
    before = state_of(network)
    seen = []

    def evaluate(model):  # likes a changed bias of layer 2, and only beside it one of layer 4
        changed = [not torch.equal(model[layer].bias, before[f"{layer}.bias"]) for layer in (2, 4)]
        seen.append(changed)
        return {(False, False): 0.0, (True, False): 1.0, (True, True): 2.0, (False, True): -1.0}[tuple(changed)]

    report = to_relu_(
        network,
        correction="bias",
        calibrate=lambda model: model(data),
        evaluate=evaluate,
        higher_is_better=True,
        example_inputs=data[:4],
    )
    assert seen == [[False, False], [False, False], [True, False], [True, True]]
    assert report.metrics == {"before": 0.0, "swapped": 0.0, "corrected": 2.0}


def test_statistics_per_channel_correct_as_calibration_data_does(network, data, distance):
    by_hand = copy.deepcopy(network)
    options = {"correction": "bias", "evaluate": distance, "higher_is_better": False, "example_inputs": data[:4]}
    report = to_relu_(network, calibrate=lambda model: model(data), **options)
    with torch.no_grad(), observe(by_hand, per="channel", channel_dim={"1": -1, "3": 1, "5": None}) as statistics:
        by_hand(data)
    same = to_relu_(by_hand, statistics=statistics, **options)
    assert_same(by_hand, state_of(network))
    assert same.metrics == report.metrics
    assert [site.measured_ser_db for site in same.sites] == [None] * 3


def test_a_layer_without_bias_gets_one_only_where_that_was_asked_for(data):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), LambdaGELU(), nn.Linear(8, 3, bias=False)).double()
    model[2].weight.requires_grad_(False)
    with torch.no_grad():
        wanted = model(data)
    options = {
        "correction": "bias",
        "calibrate": lambda model: model(data),
        "evaluate": lambda model: (model(data) - wanted).square().mean().item(),
        "higher_is_better": False,
    }
    (site,) = to_relu_(copy.deepcopy(model), **options).sites
    assert site.correction == "no bias: 2 has none (add_bias=True gives it one)"
    with_bias = copy.deepcopy(model)
    report = to_relu_(with_bias, add_bias=True, **options)
    assert report.sites[0].correction == "2.bias" and "2.bias" in dict(with_bias.named_parameters())
    assert not with_bias[2].bias.requires_grad
    assert report.metrics["corrected"] < report.metrics["swapped"]
    rejected = to_relu_(model, add_bias=True, **{**options, "higher_is_better": True})
    assert rejected.sites[0].correction.startswith("rejected") and model[2].bias is None


def test_the_report_says_what_the_statistics_predict_and_what_was_measured(network, data):
    with torch.no_grad(), observe(network) as statistics:
        network(data)
    inputs = {"1": network[0](data).detach()}
    report = to_relu_(network, calibrate=lambda model: model(data), sites=["1", "3"])
    assert [site.substituted for site in report.sites] == [True, True, False]
    assert kinds(network).count(LambdaGELU) == 1
    for site in report.sites:
        assert site.measured_ser_db == pytest.approx(site.ser_db, abs=0.1)
        assert site.ser_db == statistics[site.name].ser_db(
            [site.hardness_min] if site.name != "3" else torch.linspace(1.2, 4, 16)
        )
    x, hardness = inputs["1"], report.sites[0].hardness_mean
    gates = torch.special.ndtr(hardness * x)
    gap = x.relu() - x * gates
    first = report.sites[0]
    assert first.measured_ser_db == pytest.approx(
        10 * math.log10(x.relu().square().sum() / gap.square().sum()), abs=1e-4
    )
    assert first.effective_hardness == pytest.approx(hardness * x.std(correction=0).item(), rel=1e-3)
    assert first.expected_gap == pytest.approx(gap.mean().item(), rel=0.01)
    assert first.zeros_before == pytest.approx((gates < 0.01).double().mean().item(), abs=0.005)
    assert first.zeros_after == (x <= 0).double().mean().item()
    assert report.metrics == {}


# --- one site after another ------------------------------------------------------------------------------------------


def cost_alone(model, name, evaluate):
    alone = copy.deepcopy(model)
    to_relu_(alone, sites=[name])
    return evaluate(alone).item()


def test_sites_are_swapped_from_the_least_harmful_on_as_far_as_the_loss_allows(network, data, distance):
    costs = {name: cost_alone(network, name, distance) for name in find_sites(network)}
    order = sorted(costs, key=costs.get)
    assert order != list(costs)  # or the order would not show
    two = copy.deepcopy(network)
    to_relu_(two, sites=order[:2])
    allowed = distance(two).item()
    state = state_of(network)
    report = to_relu_(network, evaluate=distance, higher_is_better=False, max_loss=allowed)
    assert set(report.substituted) == set(order[:2]) and report.left == (order[2],)
    assert {site.name: site.measured_cost for site in report.sites} == pytest.approx(costs)
    assert report.metrics == {"before": 0.0, "swapped": pytest.approx(allowed)}
    assert distance(network).item() == pytest.approx(allowed)
    assert_same(network, {key: value for key, value in state.items() if key in network.state_dict()})
    assert "still λ-GELU" in str(report) or "left" in str(report)


def test_a_loss_of_nothing_leaves_every_site(network, distance):
    state = state_of(network)
    before = kinds(network)
    report = to_relu_(network, evaluate=distance, higher_is_better=False, max_loss=0.0)
    assert report.substituted == () and kinds(network) == before
    assert_same(network, state)
    assert report.metrics == {"before": 0.0, "swapped": 0.0}


def test_a_correction_can_bring_a_site_under_the_allowed_loss(network, data, distance):
    options = {"evaluate": distance, "higher_is_better": False, "order": "model"}
    first = copy.deepcopy(network)
    to_relu_(first, sites=["1"])
    corrected = {"correction": "bias", "calibrate": lambda model: model(data), "example_inputs": data[:4]}
    best = to_relu_(copy.deepcopy(network), sites=["1"], **corrected, **options).metrics["corrected"]
    allowed = (best + distance(first).item()) / 2
    assert to_relu_(copy.deepcopy(network), max_loss=allowed, **options).substituted == ()
    state = state_of(network)
    report = to_relu_(network, max_loss=allowed, **corrected, **options)
    assert report.substituted == ("1",)
    assert report.metrics["swapped"] == pytest.approx(distance(first).item())
    assert report.metrics["corrected"] == pytest.approx(best) == pytest.approx(distance(network).item())
    assert [site.correction for site in report.sites] == ["2.bias", None, None]
    # The correction of the site that was rolled back went with it.
    assert torch.equal(network[4].bias, state["4.bias"]) and not torch.equal(network[2].bias, state["2.bias"])


def test_the_order_by_harm_alone_swaps_every_site(network, data, distance):
    weights = site_weights(network, distance, method="probe", statistics=observed(network, data))
    report = to_relu_(network, evaluate=distance, higher_is_better=False, order="harm", weights=weights)
    assert report.left == () and all(site.measured_cost > 0 for site in report.sites)
    # What the probe predicts is what is measured here: one site at a time.
    assert [site.predicted_cost for site in report.sites] == pytest.approx(
        [site.measured_cost for site in report.sites]
    )


def test_a_metric_that_becomes_nan_is_worse_than_any(network):
    def evaluate(model):
        return math.nan if model[1]._substituted else 0.0

    report = to_relu_(network, evaluate=evaluate, higher_is_better=True, max_loss=1.0)
    assert report.left == ("1",) and report.sites[0].measured_cost == math.inf


# --- what an evaluation may do ---------------------------------------------------------------------------------------


def test_evaluations_see_the_same_random_numbers_and_may_switch_modes(network, data, distance):
    network[1].eval()
    modes = [module.training for module in network.modules()]
    seen = []

    def evaluate(model):
        seen.append(torch.rand(()).item())
        model.eval()
        return distance(model)

    torch.manual_seed(7)
    state = torch.get_rng_state()
    to_relu_(network, evaluate=evaluate, higher_is_better=False, order="harm", calibrate=lambda model: model(data))
    assert len(seen) == 5 and len(set(seen)) == 1
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in network.modules()] == modes


def test_calibration_runs_in_eval_mode_and_without_gradients(network, data):
    seen = []
    to_relu_(network.train(), calibrate=lambda model: seen.append((model.training, model(data).requires_grad)))
    assert seen == [(False, False)] and network.training and network[1].training


@pytest.mark.parametrize("when", range(6))
def test_an_exception_of_evaluate_leaves_everything_as_it_was(network, data, distance, when):
    before, state = kinds(network), state_of(network)
    x = network(data)
    calls = []

    def evaluate(model):
        calls.append(None)
        if len(calls) > when:
            raise KeyError("gone")
        return distance(model)

    options = {"example_inputs": data[:4], "order": "harm" if when == 5 else None}
    with pytest.raises(KeyError, match="gone"):
        to_relu_(
            network,
            correction="bias",
            calibrate=lambda model: model(data),
            evaluate=evaluate,
            higher_is_better=False,
            max_loss=10.0 if when > 3 else None,
            **options,
        )
    assert kinds(network) == before and torch.equal(network(data), x)
    assert_same(network, state)
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_a_compiled_model_is_corrected_as_the_plain_one(network, data, distance):
    plain = copy.deepcopy(network)
    compiled = torch.compile(network, backend="eager")
    options = {
        "correction": "bias",
        "calibrate": lambda model: model(data),
        "evaluate": distance,
        "higher_is_better": False,
        "example_inputs": data[:4],
        "max_loss": 100.0,
    }
    compiled(data)
    report = to_relu_(compiled, **options)
    assert report == to_relu_(plain, **options)
    assert_same(network, state_of(plain))
    torch.testing.assert_close(compiled(data), plain(data))


# --- bad input -------------------------------------------------------------------------------------------------------


def observed(model, data, **options):
    with torch.no_grad(), observe(model, **options) as statistics:
        model(data)
    return statistics


BIAS = {"correction": "bias", "evaluate": lambda model: 0.0, "higher_is_better": False}

REFUSED = {
    "unknown correction": ({"correction": "variance"}, "correction must be 'none' or 'bias', got 'variance'"),
    "unknown order": ({"order": "size"}, "order must be 'model' or 'harm', got 'size'"),
    "unknown sites": ({"sites": ["1", "2", "9"]}, "sites names 2, 9, but the sites are 1, 3, 5"),
    "weights of other sites": ({"weights": {"2": None}}, "weights names 2, but the sites are 1, 3, 5"),
    "no sites": ({"sites": []}, "sites is empty"),
    "no data": (BIAS, "correction='bias' needs calibration data"),
    "no metric": ({"correction": "bias", "calibrate": print}, "correction='bias' needs evaluate"),
    "no metric for a loss": ({"max_loss": 1.0}, "max_loss needs evaluate"),
    "no metric for an order": ({"order": "harm"}, "order='harm' needs evaluate"),
    "no direction": ({**BIAS, "calibrate": print, "higher_is_better": None}, "needs higher_is_better, True or False"),
    "negative loss": ({"max_loss": -1.0}, "max_loss must not be negative, got -1.0"),
    "infinite loss": ({"max_loss": math.inf}, "max_loss must be finite, got inf"),
    "both": ({"statistics": Statistics({}), "calibrate": print}, "statistics and calibrate are both given"),
    "nan": ({"evaluate": lambda model: math.nan}, "evaluate gives NaN for the model as it stands"),
    "calibration without data": ({"calibrate": lambda model: None}, "there is no calibration data"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_bad_arguments_are_refused_and_change_nothing(network, name):
    options, message = REFUSED[name]
    before, state = kinds(network), state_of(network)
    with pytest.raises(ValueError, match=message):
        to_relu_(network, **options)
    assert kinds(network) == before
    assert_same(network, state)


def test_what_is_no_number_is_refused(network):
    for options, message in (
        ({"evaluate": lambda model: None}, "evaluate must give a number, got NoneType"),
        ({"max_loss": True}, "max_loss must be a float, got bool"),
        ({"sites": "1"}, "sites must be a list of names, got the string '1'"),
    ):
        with pytest.raises(TypeError, match=message):
            to_relu_(network, **options)
    assert kinds(network).count(LambdaGELU) == 3


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        (lambda model, data: observed(nn.Sequential(LambdaGELU()), data), "statistics of another model"),
        (lambda model, data: observed(model, data[:0]), "there is no calibration data"),
        (lambda model, data: observed(model, data * math.nan), "NaN or infinite at 1 "),
        (
            observed,
            "1: the correction needs statistics of 16 channels in dimension -1",
        ),
        (
            lambda model, data: observed(model, data, per="channel", channel_dim={"1": 0}),
            "1: .* got 4096 channels in dimension 0",
        ),
    ],
)
def test_statistics_that_do_not_fit_are_refused_and_change_nothing(network, data, statistics, message):
    given = statistics(copy.deepcopy(network), data)
    before, state = kinds(network), state_of(network)
    with pytest.raises(ValueError, match=message):
        to_relu_(network, statistics=given, example_inputs=data[:4], **BIAS)
    assert kinds(network) == before
    assert_same(network, state)


def test_as_many_channels_in_another_dimension_are_refused():
    model, x = nn.Sequential(nn.Linear(4, 5), LambdaGELU(), nn.Linear(5, 2)), torch.randn(3, 5, 4)
    given = observed(model, x, per="channel")  # dimension 1 has 5 too
    with pytest.raises(ValueError, match=r"1: .* 5 channels in dimension -1, got 5 channels in dimension 1: observe"):
        to_relu_(model, statistics=given, example_inputs=x, **BIAS)
    assert isinstance(model[1], LambdaGELU)


def test_a_site_that_was_never_executed_is_refused_by_name_unless_it_is_left(network, data):
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = network, LambdaGELU()

        def forward(self, x):
            return self.used(x)

    model = Partly()
    with pytest.raises(ValueError, match=r"never executed while it was observed: unused"):
        to_relu_(model, calibrate=lambda model: model(data))
    assert kinds(model).count(LambdaGELU) == 4
    to_relu_(model, calibrate=lambda model: model(data), sites=["used.1", "used.3", "used.5"])
    assert kinds(model).count(LambdaGELU) == 1


def test_a_model_that_is_substituted_already_is_refused_by_name(network):
    to_relu_(network)
    with pytest.raises(ValueError, match=r"has no LambdaGELU module, but 3 nn\.ReLU: substituted already$"):
        to_relu_(network)


def test_relu_substituted_around_a_trial_stays(network, data, distance):
    with relu_substituted(network):
        inside = network(data)
        with pytest.raises(KeyError):
            to_relu_(network, evaluate=lambda model: {}["gone"])
        assert torch.equal(network(data), inside)
    assert not torch.equal(network(data), inside)
