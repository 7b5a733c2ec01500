"""Saving and resuming: nothing is lost, nothing is silently reinterpreted."""

import copy
import io
import math

import pytest
import torch
from torch import nn

import lambda_gelu
from lambda_gelu import HardnessScheduler, LambdaGELU

pytestmark = pytest.mark.usefixtures("device")


def assert_same_bits(actual, expected):
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(actual[key], value, rtol=0, atol=0, equal_nan=True)


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def frozen_module(*values, **options):
    module = LambdaGELU(len(values), **options)
    module.freeze_hardness()
    module.set_hardness(torch.tensor(values))
    return module


# --- the state dict of a module --------------------------------------------------------------------------------------


def test_the_state_dict_holds_tensors_only():
    state = LambdaGELU(2, temperature=0.3).state_dict()
    assert set(state) == {"raw_hardness", "hardness_override", "_extra_state"}
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    assert state["_extra_state"].dtype == torch.float64 and state["_extra_state"].item() == 0.3


def test_the_temperature_in_the_state_ignores_the_default_device():
    module = LambdaGELU()
    with torch.device("meta"):
        assert module.state_dict()["_extra_state"].item() == 0.1


@pytest.mark.parametrize("assign", [False, True])
def test_loading_restores_a_learned_module(assign):
    source = LambdaGELU(2, init_hardness=torch.tensor([1.25, 3.0]))
    target = frozen_module(5.0, 6.0)
    target.load_state_dict(through_a_file(source.state_dict()), strict=True, assign=assign)
    assert not target.is_frozen
    assert torch.equal(target.hardness, source.hardness)


@pytest.mark.parametrize("assign", [False, True])
def test_loading_restores_a_frozen_module(assign):
    source = frozen_module(4.3, 0.9)
    target = LambdaGELU(2)
    target.load_state_dict(through_a_file(source.state_dict()), strict=True, assign=assign)
    assert target.is_frozen
    assert torch.equal(target.hardness, source.hardness)
    x = torch.randn(5, 2)
    assert torch.equal(target(x), source(x))


def test_loading_adopts_the_temperature_and_keeps_the_hardness_to_the_last_bit():
    source = LambdaGELU(3, init_hardness=torch.tensor([1.1, 2.2, 3.3]), temperature=0.7)
    target = LambdaGELU(3, temperature=0.1)
    target.load_state_dict(source.state_dict())
    assert target.temperature == 0.7
    assert torch.equal(target.hardness, source.hardness)
    x = torch.randn(5, 3)
    assert torch.equal(target(x), source(x))


def other(key, value):
    def change(state):
        state[key] = value

    return change


def without(*keys):
    def change(state):
        for key in keys:
            del state[key]

    return change


DOUBLE = torch.tensor(0.5, dtype=torch.float64)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            other("1.raw_hardness", torch.zeros(3)),
            r"size mismatch for 1\.raw_hardness.*expected shape \(2,\), got \(3,\)",
        ),
        (other("1.hardness_override", torch.full((1,), 3.0)), "size mismatch"),
        (other("1._extra_state", DOUBLE * 0), "temperature must be finite and positive, got 0.0"),
        (other("1._extra_state", DOUBLE * math.nan), "temperature must be finite and positive, got nan"),
        (other("1._extra_state", 0.5), "1._extra_state must be a tensor that holds τ, got float"),
        (other("1._extra_state", None), "must be a tensor that holds τ, got NoneType"),
        (other("1._extra_state", DOUBLE.to("meta")), r"must be a tensor that holds τ, got shape \(\) on meta"),
        (other("1._extra_state", DOUBLE.expand(2)), r"must be a tensor that holds τ, got shape \(2,\) on cpu"),
        (other("1._extra_state", DOUBLE.bfloat16()), "must be float64 as it was saved, got torch.bfloat16"),
        (other("1.hardness_override", torch.tensor([2.0, math.nan])), "must be NaN .learned. or finite and positive"),
        (other("1.hardness_override", torch.tensor([2.0, -1.0])), "must be NaN .learned. or finite and positive"),
        (other("1.hardness_override", torch.tensor([2.0, math.inf])), "must be NaN .learned. or finite and positive"),
        (other("1.hardness_override", torch.tensor([7.0, 8.0]).half()), "override must be .* got torch.float16"),
        (other("1.hardness_override", torch.tensor([7.0, 8.0]).bfloat16()), "override must be .* got torch.bfloat16"),
        (without("1._extra_state"), r"1\._extra_state missing"),
        (without("1.raw_hardness"), r"1\.raw_hardness missing"),
        (without("1.hardness_override"), r"1\.hardness_override missing"),
    ],
)
@pytest.mark.parametrize("frozen", [False, True])
def test_a_state_that_would_be_reinterpreted_is_refused_and_changes_nothing(change, words, strict, frozen):
    network = nn.Sequential(nn.Linear(2, 2), LambdaGELU(2, temperature=0.1))
    if frozen:
        network[1].freeze_hardness()
    state = nn.Sequential(nn.Linear(2, 2), frozen_module(7.0, 8.0, temperature=0.5)).state_dict()
    change(state)
    before = copy.deepcopy(network[1].state_dict())
    with pytest.raises(RuntimeError, match=words):
        network.load_state_dict(state, strict=strict)
    assert_same_bits(network[1].state_dict(), before)
    assert (network[1].temperature, network[1].is_frozen) == (0.1, frozen)


def test_a_missing_site_is_reported_by_strict_loading_only():
    network = nn.Sequential(nn.Linear(2, 2), LambdaGELU())
    state = nn.Sequential(nn.Linear(2, 2), nn.GELU()).state_dict()
    with pytest.raises(RuntimeError, match=r"Missing key.*1\.raw_hardness"):
        network.load_state_dict(state)
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert set(missing) == {"1.raw_hardness", "1.hardness_override", "1._extra_state"} and not unexpected


def test_loading_into_a_module_of_another_dtype_keeps_the_scheduled_hardness():
    source = frozen_module(7.978845596313477)
    target = LambdaGELU(dtype=torch.bfloat16)
    target.load_state_dict(source.state_dict())
    assert target.hardness.item() == 7.978845596313477


# --- save and resume -------------------------------------------------------------------------------------------------

STEPS = 12


def make_run(make_optimizer):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Linear(6, 8), LambdaGELU(), nn.Linear(8, 8), LambdaGELU(8, temperature=0.2), nn.Linear(8, 1)
    )
    optimizer = make_optimizer(lambda_gelu.param_groups(network, lr=0.005, weight_decay=0.01))
    scheduler = HardnessScheduler(network, STEPS, start=0.4, end=0.9, target=6.0, schedule="geometric")
    return network, optimizer, scheduler


def advance(run, first, last):
    network, optimizer, scheduler = run
    for step in range(first, last):
        generator = torch.Generator("cpu").manual_seed(step)
        x = torch.randn(16, 6, generator=generator, device="cpu").to(network[0].weight.device)
        optimizer.zero_grad()
        (network(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
        scheduler.step()


OPTIMIZERS = {
    "sgd": lambda groups: torch.optim.SGD(groups, momentum=0.9),
    "adamw": torch.optim.AdamW,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("stop", [0, 3, 4, 5, 8, 11])  # before, at and after the switch (step 5) and at the target
@pytest.mark.parametrize("model_first", [True, False])
def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(name, stop, model_first):
    unbroken = make_run(OPTIMIZERS[name])
    advance(unbroken, 0, STEPS)

    broken = make_run(OPTIMIZERS[name])
    advance(broken, 0, stop)
    states = through_a_file([part.state_dict() for part in broken])

    resumed = make_run(OPTIMIZERS[name])
    order = (0, 1, 2) if model_first else (2, 1, 0)
    for index in order:
        resumed[index].load_state_dict(states[index])
    assert resumed[2].phase == broken[2].phase
    advance(resumed, stop, STEPS)

    assert_same_bits(resumed[0].state_dict(), unbroken[0].state_dict())
    assert resumed[2].state_dict() == unbroken[2].state_dict()
    assert resumed[0][1].hardness.item() == 6.0  # the run did harden


def resumed_without_the_scheduler(stop):
    broken, resumed = make_run(OPTIMIZERS["sgd"]), make_run(OPTIMIZERS["sgd"])
    advance(broken, 0, stop)
    resumed[0].load_state_dict(broken[0].state_dict())
    resumed[1].load_state_dict(broken[1].state_dict())
    return resumed


def test_a_resumed_run_without_the_scheduler_state_differs():
    # The bitwise test above can fail: it is the scheduler's state that makes it pass.
    unbroken = make_run(OPTIMIZERS["sgd"])
    advance(unbroken, 0, STEPS)
    resumed = resumed_without_the_scheduler(stop=3)
    advance(resumed, 3, STEPS)
    assert not torch.equal(resumed[0][1].hardness, unbroken[0][1].hardness)


def test_a_resumed_run_without_the_scheduler_state_is_refused_where_the_model_is_frozen_already():
    with pytest.raises(RuntimeError, match="frozen at 1, 3"):
        advance(resumed_without_the_scheduler(stop=8), 8, STEPS)
