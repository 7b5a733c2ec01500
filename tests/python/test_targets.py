"""suggest_targets, site_weights and budget_targets: a λ that costs what was allowed, measured on the activations."""

import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lambda_gelu
from lambda_gelu import (
    HardnessCapWarning,
    HardnessScheduler,
    Histogram,
    LambdaGELU,
    SiteWeight,
    Statistics,
    budget_targets,
    observe,
    relu_substituted,
    site_weights,
    suggest_targets,
)


def gap(x, hardness):
    """ReLU(x) - x Φ(λx) in double."""
    x = x.double()
    return x.abs() * torch.special.erfc(hardness * x.abs() / 2**0.5) / 2


def ser_db(x, hardness):
    return 10 * math.log10(x.double().relu().square().sum() / gap(x, hardness).square().sum())


def normal(*shape, mean=0.0, std=1.0, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * std + mean


def statistics_of(activations, channel_dim=None):
    """As observe would give them."""
    per = "layer" if channel_dim is None else "channel"
    histograms = {name: Histogram.of(x, channel_dim=channel_dim) for name, x in activations.items()}
    return Statistics(histograms, per=per)


SITES = {
    "a": normal(40_000, mean=-0.5, std=0.8),
    "b": normal(40_000, mean=0.3, std=2.0, seed=1),
    "c": normal(40_000, mean=-1.0, std=0.5, seed=2),
}


# --- a tolerance in dB -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decibels", [20.0, 30.0, 40.0])
def test_at_its_target_every_site_has_the_ser_of_the_tolerance(decibels):
    targets = suggest_targets(statistics_of(SITES), decibels, cap=1000.0)
    assert list(targets) == list(SITES)
    for name, x in SITES.items():
        assert isinstance(targets[name], float)
        assert abs(ser_db(x, targets[name]) - decibels) < 0.1
    assert suggest_targets(statistics_of(SITES)) == suggest_targets(statistics_of(SITES), 30.0, cap=64.0)


def test_at_its_target_every_channel_has_the_ser_of_the_tolerance():
    x = normal(30_000, 3) * torch.tensor([0.3, 1.0, 2.0]) + torch.tensor([-0.2, 0.0, -1.0])
    statistics = statistics_of({"a": x}, channel_dim=1)
    targets = suggest_targets(statistics, 30.0, per="channel")["a"]
    for channel, target in zip(x.unbind(1), targets, strict=True):
        assert abs(ser_db(channel, target) - 30) < 0.1
    assert abs(ser_db(x, torch.tensor(targets, dtype=torch.float64)) - 30) < 0.1  # and so the whole site
    assert abs(ser_db(x, suggest_targets(statistics)["a"]) - 30) < 0.1  # one λ for all channels


def test_a_hardness_above_the_cap_is_capped_and_warned_of_by_name():
    with pytest.warns(HardnessCapWarning) as caught:
        targets = suggest_targets(statistics_of(SITES), 30.0, cap=5)
    assert targets["a"] == targets["c"] == 5.0 and targets["b"] < 5
    (warning,) = caught
    assert warning.filename == __file__
    for name in ("a", "c"):
        assert f"{name} ({ser_db(SITES[name], 5.0):.1f} dB)" in str(warning.message)
    assert "b (" not in str(warning.message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        suggest_targets(statistics_of(SITES), 30.0)


def test_channels_that_are_never_positive_or_always_zero_have_a_target_too():
    x = torch.stack([normal(10_000), normal(10_000).abs().neg(), torch.zeros(10_000)], 1)
    with pytest.warns(HardnessCapWarning, match=r"a \(1 of 3 channels, -inf dB\)"):
        targets = suggest_targets(statistics_of({"a": x}, channel_dim=1), 30.0, per="channel")["a"]
    assert targets[1:] == [64.0, 1.0]
    with pytest.warns(HardnessCapWarning, match=r"a \(-inf dB\)"):
        assert suggest_targets(statistics_of({"a": x[:, 1]})) == {"a": 64.0}


@pytest.mark.parametrize(("least", "target"), [(1.0, 64.0), (50.0, 1.0)])
def test_a_site_without_a_signal_is_not_left_soft_while_it_has_an_error(least, target):
    x = -least - normal(1000).abs()  # at the cap the error is too small for a double: the SER is infinite
    statistics = statistics_of({"a": x})
    assert statistics["a"].ser_db(64.0) == math.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert suggest_targets(statistics) == {"a": target}
    assert statistics["a"].expected_gap(target) < 1e-300


@pytest.mark.parametrize("cap", [0.5, 64.0])
def test_a_tolerance_that_every_hardness_keeps_asks_for_none(cap):
    x = normal(1000, mean=4.0)
    assert ser_db(x, 1e-9) > 6.0
    assert suggest_targets(statistics_of({"a": x}), 6.0, cap=cap) == {"a": min(cap, 1.0)}


def test_a_network_that_is_hardened_to_its_targets_has_the_tolerance():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 16), LambdaGELU(), nn.Linear(16, 16), LambdaGELU(16, channel_dim=-1), nn.Linear(16, 2)
    )
    x = normal(4000, 8)
    for per in ("layer", "channel"):
        targets = {"1": 1.5, "3": 1.5}
        for _ in range(4):  # a harder first site gives the second other activations
            hardened = copy.deepcopy(model)
            HardnessScheduler(hardened, 1, start=0.0, target=targets).step()
            with observe(hardened, per="channel", channel_dim=-1) as statistics:
                hardened(x)
            targets = suggest_targets(statistics, per=per)
            targets["1"] = suggest_targets(statistics)["1"]  # it has one λ
        for name, site in lambda_gelu.find_sites(hardened).items():
            assert abs(statistics[name].ser_db(site.hardness) - 30) < 0.1


@pytest.mark.parametrize("value", [0.0, -30.0, math.nan, math.inf])
@pytest.mark.parametrize("argument", ["tolerance_db", "cap"])
def test_a_tolerance_and_a_cap_must_be_finite_and_positive(argument, value):
    with pytest.raises(ValueError, match=rf"{argument} must be finite and positive, got {value}"):
        suggest_targets(statistics_of(SITES), **{argument: value})


def unusable():
    broken = normal(100)
    broken[3] = math.nan
    return {
        "never executed while it was observed: b": {"a": normal(100), "b": torch.empty(0)},
        "there is no calibration data": {"a": torch.empty(0), "b": torch.empty(0)},
        r"NaN or infinite at b \(1\)": {"a": normal(100), "b": broken},
    }


@pytest.mark.parametrize("message", unusable())
def test_statistics_that_are_not_complete_are_refused_by_name(message):
    statistics = statistics_of(unusable()[message])
    with pytest.raises(ValueError, match=message):
        suggest_targets(statistics)
    with pytest.raises(ValueError, match=message):
        budget_targets(statistics, {"a": 1.0, "b": 1.0}, 0.1)


def test_other_arguments_are_refused_by_name():
    statistics = statistics_of(SITES)
    with pytest.raises(ValueError, match=r'need statistics per channel: observe\(model, per="channel"\)'):
        suggest_targets(statistics, per="channel")
    with pytest.raises(ValueError, match='per must be "layer" or "channel"'):
        suggest_targets(statistics, per="neuron")
    for argument in ("tolerance_db", "cap"):
        with pytest.raises(TypeError, match=f"{argument} must be a float"):
            suggest_targets(statistics, **{argument: "30"})
    with pytest.raises(TypeError, match=r"statistics must be those of lambda_gelu\.observe, got dict"):
        suggest_targets({})


# --- a budget over the network ---------------------------------------------------------------------------------------


def costs(targets, weights):
    return {name: weights[name] * gap(SITES[name], targets[name]).mean().item() for name in targets}


WEIGHTS = {"a": 1.0, "b": 0.3, "c": 5.0}


@pytest.mark.parametrize("budget", [0.01, 0.001])
def test_a_budget_is_spent_in_equal_shares(budget):
    targets = budget_targets(statistics_of(SITES), WEIGHTS, budget, cap=1e4)
    for cost in costs(targets, WEIGHTS).values():
        assert cost == pytest.approx(budget / 3, rel=0.02)
    # No other way of spending it hardens less: any exchange between two sites makes the product of the λ larger.
    product = math.prod(targets.values())
    for more, less in (("a", "b"), ("b", "c"), ("c", "a")):
        statistics = statistics_of(SITES)
        other = dict(targets)
        for name, share in ((more, 1.2), (less, 0.8)):
            other[name] = statistics[name].target_from_gap(share * budget / 3 / WEIGHTS[name])
        assert math.prod(other.values()) > product


def test_what_a_site_does_not_need_at_its_floor_goes_to_the_others():
    floor = {"a": 1.0, "b": torch.tensor([300.0, 400.0]), "c": 1.0}
    targets = budget_targets(statistics_of(SITES), WEIGHTS, 0.01, floor=floor, cap=1e4)
    spent = costs(targets, WEIGHTS)
    assert targets["b"] == 300.0 and spent["b"] < 1e-5
    assert spent["a"] == pytest.approx(spent["c"], rel=0.02) and sum(spent.values()) == pytest.approx(0.01, rel=0.02)


def test_a_budget_that_is_large_enough_hardens_nothing():
    assert budget_targets(statistics_of(SITES), WEIGHTS, 100.0, floor=1.5) == dict.fromkeys(SITES, 1.5)


def test_weights_count_by_their_size_and_one_of_zero_hardens_nothing():
    statistics = statistics_of(SITES)
    signed = {"a": -1.0, "b": 0.3, "c": 5.0}
    assert budget_targets(statistics, signed, 0.01) == budget_targets(statistics, WEIGHTS, 0.01)
    as_found = {name: SiteWeight(cost=0.0, gap=1.0, weight=weight) for name, weight in signed.items()}
    assert budget_targets(statistics, as_found, 0.01) == budget_targets(statistics, WEIGHTS, 0.01)
    targets = budget_targets(statistics, {**WEIGHTS, "c": 0.0}, 0.01)
    assert targets["c"] == 1.0 and targets["a"] > 1


@pytest.mark.parametrize(
    ("budget", "capped", "message"),
    [
        (
            0.01,
            ["a", "b", "c"],
            r"at the cap of 4 .* share: a, b, c\. The budget of 0\.01 is not kept: .* is predicted",
        ),
        (0.04, ["a", "c"], r"at the cap of 4 .* share: a, c\. The others make up for it: .* is predicted"),
    ],
)
def test_sites_at_the_cap_are_named_with_what_is_predicted(budget, capped, message):
    with pytest.warns(HardnessCapWarning, match=message) as caught:
        targets = budget_targets(statistics_of(SITES), WEIGHTS, budget, cap=4.0)
    assert caught[0].filename == __file__
    assert [name for name, target in targets.items() if target == 4.0] == capped
    total = sum(costs(targets, WEIGHTS).values())
    predicted = float(str(caught[0].message).rpartition(": ")[2].split()[0])
    assert predicted == pytest.approx(total, rel=0.01)
    assert predicted == pytest.approx(budget, rel=1e-3) if "b" not in capped else predicted > budget


BAD_BUDGETS = {
    r"weights must name every site once: unknown \['d'\], missing \['a'\]": {"weights": {"b": 1.0, "c": 1.0, "d": 1.0}},
    r"floor must name every site once: unknown \[\], missing \['c'\]": {"floor": {"a": 1.0, "b": 1.0}},
    "budget must be finite and positive, got 0": {"budget": 0.0},
    "budget must be finite and positive, got nan": {"budget": math.nan},
    "cap must be finite and positive, got -1": {"cap": -1.0},
    "weight of 'b' must be finite, got nan": {"weights": {**WEIGHTS, "b": math.nan}},
    "floor of 'b' must be positive, got 0": {"floor": {"a": 1.0, "b": 0.0, "c": 1.0}},
    "floor of 'a' must be finite, got inf": {"floor": math.inf},
}


@pytest.mark.parametrize("message", BAD_BUDGETS)
def test_a_budget_is_refused_by_the_name_of_what_is_wrong(message):
    arguments = {"weights": WEIGHTS, "budget": 0.01} | BAD_BUDGETS[message]
    with pytest.raises(ValueError, match=message):
        budget_targets(statistics_of(SITES), **arguments)


def test_numbers_that_are_none_are_refused():
    for arguments, message in [
        ({"weights": [1.0]}, "weights must be a mapping by site name"),
        ({"weights": {**WEIGHTS, "a": "1"}}, "weight of 'a' must be a float, got str"),
        ({"budget": "1"}, "budget must be a float"),
    ]:
        with pytest.raises(TypeError, match=message):
            budget_targets(statistics_of(SITES), **{"weights": WEIGHTS, "budget": 0.01, **arguments})


# --- what a site does to the loss ------------------------------------------------------------------------------------


class Counting(nn.Module):
    """Changes a buffer and draws random numbers, in eval mode too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return x + 0 * torch.rand(())


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 8),
        LambdaGELU(init_hardness=1.4),
        nn.BatchNorm1d(8),
        nn.Dropout(0.5),
        Counting(),
        nn.Linear(8, 8),
        LambdaGELU(8, init_hardness=torch.linspace(1.5, 6, 8)),
        nn.Linear(8, 3),
    )
    return model.train()


X, Y = normal(64, 5, seed=5), torch.arange(64) % 3


def loss(model):
    return F.cross_entropy(model(X), Y)


class Mixed(nn.Module):
    """(1 - t) f + t ReLU at one site."""

    def __init__(self, site, share):
        super().__init__()
        self.site, self.share = site, share

    def forward(self, x):
        return self.site(x) + self.share * (x.relu() - self.site(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_first_order_weights_are_the_derivative_of_the_loss_towards_relu(model, dtype):
    model.to(dtype)
    weights = site_weights(model, lambda m: F.cross_entropy(m(X.to(dtype)), Y))
    double = copy.deepcopy(model).double().eval()
    for name, weight in weights.items():
        values = []
        for share in (-1e-5, 1e-5):
            mixed = copy.deepcopy(double)
            mixed[int(name)] = Mixed(mixed[int(name)], share)
            values.append(F.cross_entropy(mixed(X.double()), Y).item())
        assert weight.cost == pytest.approx((values[1] - values[0]) / 2e-5, rel=1e-4)


def test_probed_weights_are_the_loss_with_one_site_as_relu(model):
    weights = site_weights(model, loss, method="probe")
    evaluated = copy.deepcopy(model).eval()
    before = loss(evaluated).item()
    for name, weight in weights.items():
        swapped = copy.deepcopy(evaluated)
        swapped[int(name)] = nn.ReLU()
        assert weight.cost == loss(swapped).item() - before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("method", ["first-order", "probe"])
def test_the_gap_is_that_of_the_calibration_data_or_of_the_statistics(model, method, dtype):
    x = X.to(dtype)

    def loss(model):
        return F.cross_entropy(model(x).float(), Y)

    evaluated = copy.deepcopy(model.to(dtype)).eval()
    activations = {}
    for name, site in lambda_gelu.find_sites(evaluated).items():
        site.register_forward_pre_hook(lambda module, args, name=name: activations.update({name: args[0].detach()}))
    evaluated(x)
    with observe(evaluated) as statistics:
        evaluated(x)
    measured = site_weights(model, loss, method=method)
    predicted = site_weights(model, loss, method=method, statistics=statistics)
    for name, site in lambda_gelu.find_sites(model).items():
        exact = gap(activations[name], site.hardness.detach().double()).mean().item()
        assert measured[name].gap == pytest.approx(exact, rel=1e-5)
        assert predicted[name].gap == statistics[name].expected_gap(site.hardness)
        assert predicted[name].cost == measured[name].cost
        for weight in (measured[name], predicted[name]):
            assert weight.weight == pytest.approx(weight.cost / weight.gap)


def test_both_methods_agree_where_the_gap_is_small(model):
    model.double()
    x = normal(4096, 5, seed=6).double()
    y = torch.arange(4096) % 3
    for site in lambda_gelu.find_sites(model).values():
        site.set_hardness(100.0)
    first, probed = (
        site_weights(model, lambda m: F.cross_entropy(m(x), y), method=method) for method in ("first-order", "probe")
    )
    for name in first:
        assert first[name].cost == pytest.approx(probed[name].cost, rel=0.02)


@pytest.mark.parametrize("method", ["first-order", "probe"])
@pytest.mark.parametrize("raising", [False, True])
def test_the_model_is_afterwards_as_it_was(model, method, raising):
    loss(model).backward()
    model[2].eval()
    calls = 0

    def its_loss(each):
        nonlocal calls
        calls += 1
        if raising and calls == (1 if method == "first-order" else 2):
            each(X)
            raise KeyError
        assert not each.training and not each[0].training
        return loss(each)

    state, gradients = copy.deepcopy(model.state_dict()), [p.grad.clone() for p in model.parameters()]
    modes, random = [module.training for module in model.modules()], torch.get_rng_state()
    try:
        site_weights(model, its_loss, method=method)
    except KeyError:
        assert raising
    assert calls == (1 if method == "first-order" else 2 if raising else 3)
    assert all(torch.equal(value.nan_to_num(), state[name].nan_to_num()) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, gradient) for p, gradient in zip(model.parameters(), gradients, strict=True))
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    for site in lambda_gelu.find_sites(model).values():
        assert not site._forward_hooks and not site._substituted


def test_parameters_that_want_no_gradient_change_nothing(model):
    expected = site_weights(model, loss)
    model.requires_grad_(False)
    with torch.no_grad():
        assert site_weights(model, loss) == expected


def test_a_compiled_model_is_measured_without_its_code(model):
    expected = site_weights(model.eval(), loss)
    compiled = torch.compile(model, backend="eager")
    compiled(X)
    assert site_weights(compiled, loss) == expected
    torch._dynamo.reset()


def test_weights_and_statistics_give_targets_whose_cost_is_about_the_budget(model):
    model.double().eval()
    x = X.double()

    def its_loss(each):
        return F.cross_entropy(each(x), Y)

    with observe(model) as statistics:
        model(x)
    weights = site_weights(model, its_loss, statistics=statistics)
    budget = sum(abs(weight.cost) for weight in weights.values()) / 20
    targets = budget_targets(statistics, weights, budget)
    HardnessScheduler(model, 1, start=0.0, target=targets).step()
    with relu_substituted(model):
        as_relu = its_loss(model).item()
    # To first order, and with the sign of the weights: of the order of the budget, not of the cost without hardening.
    assert abs(as_relu - its_loss(model).item()) < 1.5 * budget


BAD_LOSSES = {
    "scalar": (lambda m: m(X), ValueError, r"loss must return a scalar, got shape \(64, 3\)"),
    "number": (lambda m: 1.0, TypeError, "loss must return a tensor, got float"),
    "nan": (lambda m: loss(m) * math.nan, ValueError, "loss must be finite, got nan"),
    "none": (torch.tensor(1.0), TypeError, "loss must be a function of the model, got Tensor"),
    "unreached": (lambda m: m[:2](X).mean(), ValueError, "the loss never executes 6"),
    "constant": (lambda m: torch.ones(()), ValueError, "the loss never executes 1, 6"),
}


@pytest.mark.parametrize("method", ["first-order", "probe"])
@pytest.mark.parametrize("case", BAD_LOSSES)
def test_a_loss_that_says_nothing_is_refused(model, case, method):
    its_loss, error, message = BAD_LOSSES[case]
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        site_weights(model, its_loss, method=method)
    assert all(torch.equal(v.nan_to_num(), before[name].nan_to_num()) for name, v in model.state_dict().items())


def test_other_models_and_methods_are_refused(model):
    with pytest.raises(ValueError, match='method must be "first-order" or "probe"'):
        site_weights(model, loss, method="second-order")
    with pytest.raises(ValueError, match=r"must not be computed under torch\.no_grad"):
        site_weights(model, lambda m: loss(m).detach())
    with relu_substituted(model), pytest.raises(ValueError, match=r"computed as ReLU already.*1, 6"):
        site_weights(model, loss)
    with pytest.raises(ValueError, match="another model: they lack 1, 6"):
        site_weights(model, loss, statistics=statistics_of(SITES))
    with observe(model) as empty:
        pass
    with pytest.raises(ValueError, match="site weights: there is no calibration data"):
        site_weights(model, loss, statistics=empty)
    with pytest.raises(ValueError, match="no LambdaGELU module"):
        site_weights(nn.Linear(5, 3), loss)
