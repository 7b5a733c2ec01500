"""init_hardness_: λ over the depth of a model."""

import copy
import math

import pytest
import torch
from torch import nn

from lambda_gelu import LambdaGELU, init_hardness_


def hardness_of(module):
    return module.hardness.tolist()


@pytest.fixture
def model():
    return nn.Sequential(LambdaGELU(init_hardness=5.0), nn.Linear(3, 3), LambdaGELU(3), nn.Sequential(LambdaGELU()))


def test_uniform_is_one_plus_log_two_everywhere(model):
    assert list(init_hardness_(model, "uniform")) == ["0", "2", "3.0"]
    for site in (model[0], model[2], model[3][0]):
        assert hardness_of(site) == pytest.approx([1 + math.log(2)] * site.num_parameters, rel=1e-6)


@pytest.mark.parametrize(("mode", "expected"), [("increasing", [1.1, 1.55, 2.0]), ("decreasing", [2.0, 1.55, 1.1])])
def test_hardness_is_linear_in_depth(model, mode, expected):
    assert list(init_hardness_(model, mode).values()) == pytest.approx(expected)
    assert [hardness_of(site)[0] for site in (model[0], model[2], model[3][0])] == pytest.approx(expected, rel=1e-6)


def test_low_and_high_set_the_range(model):
    assert list(init_hardness_(model, "increasing", low=2.0, high=4.0).values()) == pytest.approx([2.0, 3.0, 4.0])


@pytest.mark.parametrize(("mode", "expected"), [("increasing", 1.1), ("decreasing", 2.0)])
def test_a_single_site_gets_the_first_value(mode, expected):
    assert list(init_hardness_(nn.Sequential(LambdaGELU()), mode).values()) == [expected]


class Backwards(nn.Module):
    """Runs its sites against the order of their registration, one of them twice."""

    def __init__(self):
        super().__init__()
        self.last = LambdaGELU()
        self.middle = LambdaGELU(2)
        self.first = LambdaGELU()
        self.dropout = nn.Dropout(0.5)

    def forward(self, x, scale=1.0):
        return self.last(self.first(self.middle(self.dropout(self.first(x * scale)))))


X = torch.randn(3, 2)


@pytest.mark.parametrize("example", [X, (X, 2.0), {"x": X, "scale": 2.0}], ids=["tensor", "tuple", "mapping"])
def test_with_example_inputs_depth_is_the_order_of_first_execution(example):
    model = Backwards()
    assert list(init_hardness_(model, "increasing")) == ["last", "middle", "first"]
    assert list(init_hardness_(model, "increasing", example_inputs=example)) == ["first", "middle", "last"]
    assert hardness_of(model.first) == pytest.approx([1.1]) and hardness_of(model.last) == pytest.approx([2.0])


def test_the_probing_run_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.BatchNorm1d(2), Backwards()).train()
    model[1].dropout.eval()
    state = copy.deepcopy(model.state_dict())
    random_state = torch.get_rng_state()
    recorded = []
    model[0].register_forward_hook(lambda module, *_: recorded.append((torch.is_grad_enabled(), module.training)))
    init_hardness_(model, "uniform", example_inputs=torch.randn(3, 2, generator=torch.Generator().manual_seed(0)))
    assert recorded == [(False, False)]
    assert torch.equal(torch.get_rng_state(), random_state)
    assert model.training and model[1].training and not model[1].dropout.training
    assert torch.equal(model.state_dict()["0.running_mean"], state["0.running_mean"])
    assert all(not module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


class Forgetful(Backwards):
    def forward(self, x):
        return self.first(x)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mode": "random"}, "mode must be one of 'uniform', 'increasing', 'decreasing', got 'random'"),
        ({"low": 1.0}, "1 < low <= high, got 1.0 and 2.0"),
        ({"low": 3.0}, "1 < low <= high, got 3.0 and 2.0"),
        ({"high": math.inf}, "1 < low <= high"),
        ({"low": math.nan}, "1 < low <= high"),
        ({"example_inputs": torch.randn(3, 2)}, "example_inputs do not reach last, middle"),
    ],
)
def test_bad_arguments_are_refused_and_change_nothing(arguments, words):
    model = Forgetful()
    before = [hardness_of(site) for site in (model.last, model.middle, model.first)]
    with pytest.raises(ValueError, match=words):
        init_hardness_(model, **{"mode": "decreasing", **arguments})
    assert [hardness_of(site) for site in (model.last, model.middle, model.first)] == before


def test_a_frozen_site_is_refused(model):
    model[2].freeze_hardness()
    before = hardness_of(model[0])
    with pytest.raises(ValueError, match="hardness is frozen at 2"):
        init_hardness_(model, "decreasing")
    assert hardness_of(model[0]) == before


def test_a_model_without_a_site_is_refused():
    with pytest.raises(ValueError, match="GELU has no LambdaGELU"):
        init_hardness_(nn.GELU())


def test_an_exception_in_the_model_leaves_no_hook():
    model = Backwards()
    with pytest.raises(TypeError):
        init_hardness_(model, example_inputs=(1, 2, 3, 4))
    assert all(not module._forward_pre_hooks for module in model.modules()) and model.training


def test_a_value_that_a_later_site_cannot_hold_is_refused_before_the_first_changes():
    model = nn.Sequential(LambdaGELU(dtype=torch.float64), LambdaGELU(dtype=torch.float16))
    before = [hardness_of(site) for site in model]
    with pytest.raises(ValueError, match=r"out of the range of torch\.float16"):
        init_hardness_(model, "increasing", low=2.0, high=1e9)
    assert [hardness_of(site) for site in model] == before
