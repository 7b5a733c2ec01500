"""Bad input on the way to ReLU: refused by name, and nothing in the model has changed."""

import copy

import pytest
import torch
from torch import nn

import lambda_gelu
from lambda_gelu import BestSubstituted, HardnessScheduler, LambdaGELU, Substitution, observe, to_relu_

X = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))


class Network(nn.Module):
    """Two sites, of which the second is not always reached."""

    def __init__(self, whole=True):
        super().__init__()
        self.first, self.act = nn.Linear(4, 8), LambdaGELU()
        self.second, self.late = nn.Linear(8, 8), LambdaGELU()
        self.last = nn.Linear(8, 2)
        self.whole = whole

    def forward(self, x):
        x = self.act(self.first(x))
        if self.whole:
            x = self.late(self.second(x))
        return self.last(x)


def statistics_of(model, x=X):
    with observe(model) as statistics, torch.no_grad():
        model(x)
    return statistics


def of_another_model():
    return statistics_of(nn.Sequential(nn.Linear(4, 8), LambdaGELU()))


def no_data():
    with observe(Network()) as statistics:
        pass
    return statistics


def never_executed():
    return statistics_of(Network(whole=False))


def nan_activations():
    return statistics_of(Network(), torch.full((2, 4), torch.nan))


def loss(model):
    return model(X).square().mean()


# --- statistics ------------------------------------------------------------------------------------------------------

STATISTICS = {
    no_data: "no calibration data",
    never_executed: "never executed while it was observed: late",
    nan_activations: r"NaN or infinite at act \(16\)",
    of_another_model: "statistics of another model: .*act",
}
CONSUMERS = {
    "inspect_sites": lambda_gelu.inspect_sites,
    "to_relu_": lambda model, statistics: to_relu_(model, statistics=statistics),
    "site_weights": lambda model, statistics: lambda_gelu.site_weights(model, loss, statistics=statistics),
    "follow": lambda model, statistics: HardnessScheduler(model, 4).follow(statistics),
    "BestSubstituted": lambda model, statistics: BestSubstituted(model, higher_is_better=True).update(1.0, statistics),
    "suggest_targets": lambda model, statistics: HardnessScheduler(
        model, 4, target=lambda_gelu.suggest_targets(statistics)
    ),
}


def described(model):
    return [(name, type(module), module.training) for name, module in model.named_modules()]


@pytest.fixture
def unchanged():
    """A model, which must be to the last bit what it was when the test ends."""
    torch.manual_seed(0)
    model = Network()
    state, modules = copy.deepcopy(model.state_dict()), described(model)
    yield model
    assert described(model) == modules
    assert model.state_dict().keys() == state.keys()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=0, atol=0, equal_nan=True)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(site._substituted or site._observers for site in (model.act, model.late))


@pytest.mark.parametrize("consumer", CONSUMERS)
@pytest.mark.parametrize("statistics", STATISTICS)
def test_statistics_that_say_nothing_of_the_model_are_refused_by_name(unchanged, consumer, statistics):
    message = STATISTICS[statistics]
    if consumer == "suggest_targets" and statistics is of_another_model:
        message = "target must name every site"  # the targets are those of the other model
    with pytest.raises(ValueError, match=message):
        CONSUMERS[consumer](unchanged, statistics())


def diverged(model):
    model.first.weight.data.mul_(torch.nan)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda model: setattr(model, "whole", False), "never executed while it was observed: late"),
        (diverged, "NaN or infinite at act"),
        (lambda model: model.register_forward_pre_hook(lambda *_: (X[:0],)), "no calibration data"),
    ],
)
def test_the_protocol_stops_where_there_is_nothing_to_choose_targets_from(damage, message):
    model = Network()
    substitution = Substitution(model, total_steps=8, start=2, harden=0.5, recover=2, calibrate=2)
    damage(model)
    model(X)
    substitution.step()
    before, modules = copy.deepcopy(model.state_dict()), described(model)
    model(X)
    with pytest.raises(ValueError, match=message):
        substitution.step()
    assert described(model) == modules
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0, equal_nan=True)


# --- numbers and names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tolerance", [0.0, -3.0, float("nan"), float("inf")])
@pytest.mark.parametrize(
    "call",
    [
        lambda model, value: lambda_gelu.suggest_targets(statistics_of(model), value),
        lambda model, value: lambda_gelu.inspect_sites(model, statistics_of(model), tolerance_db=value),
        lambda model, value: HardnessScheduler(model, 4).follow(statistics_of(model), tolerance_db=value),
        lambda model, value: Substitution(model, total_steps=8, tolerance_db=value),
        lambda model, value: BestSubstituted(model, higher_is_better=True, tolerance_db=value),
    ],
)
def test_a_tolerance_that_is_not_positive_is_refused(unchanged, call, tolerance):
    with pytest.raises(ValueError, match="tolerance_db"):
        call(unchanged, tolerance)


@pytest.mark.parametrize(
    "call",
    [
        lambda model: HardnessScheduler(model, 4, target={"act": 8.0, "late": 8.0, "typo": 8.0}),
        lambda model: HardnessScheduler(model, 4).set_targets({"act": 8.0, "late": 8.0, "typo": 8.0}),
        lambda model: lambda_gelu.budget_targets(statistics_of(model), {"act": 1.0, "late": 1.0, "typo": 1.0}, 0.1),
        lambda model: to_relu_(model, sites=["act", "typo"]),
    ],
)
def test_sites_that_do_not_exist_are_named(unchanged, call):
    with pytest.raises(ValueError, match="typo"):
        call(unchanged)


# --- a model that is a ReLU network already --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        to_relu_,
        lambda_gelu.fold_hardness_,
        lambda model: Substitution(model, total_steps=8),
        lambda model: HardnessScheduler(model, 8),
        lambda model: lambda_gelu.site_weights(model, loss),
        lambda model: lambda_gelu.shadow_evaluate(model, loss),
        lambda model: observe(model).__enter__(),
    ],
)
def test_a_model_that_is_substituted_already_is_refused(call):
    model = Network()
    to_relu_(model)
    before = described(model)
    with pytest.raises(ValueError, match="Network has no LambdaGELU"):
        call(model)
    assert described(model) == before


# --- checkpoints -----------------------------------------------------------------------------------------------------


def protocol(model, **options):
    return Substitution(model, total_steps=8, start=2, harden=0.5, recover=2, calibrate=2, cap=1e6, **options)


def state_after(steps):
    model = Network()
    substitution = protocol(model)
    for _ in range(steps):
        model(X)
        substitution.step()
    return substitution.state_dict()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: protocol(Network(), tolerance_db=20.0), "tolerance_db"),
        (
            lambda: Substitution(Network(), total_steps=9, start=2, harden=0.5, recover=2, calibrate=2, cap=1e6),
            "total_steps",
        ),
        (lambda: protocol(nn.Sequential(nn.Linear(4, 8), LambdaGELU())), "sites"),
    ],
)
def test_a_checkpoint_of_another_plan_or_model_is_refused(make, message):
    substitution = make()
    before = described(substitution._model)
    with pytest.raises(ValueError, match=message):
        substitution.load_state_dict(state_after(4))
    assert described(substitution._model) == before and substitution.stage == "learn"


def test_a_checkpoint_of_an_earlier_stage_is_refused_by_a_relu_network():
    early = state_after(1)
    model = Network()
    late = protocol(model)
    late.load_state_dict(state_after(7))
    before = described(model)
    with pytest.raises(ValueError, match="the state is of stage 'learn', before the swap"):
        late.load_state_dict(early)
    assert described(model) == before and late.stage == "recover"
