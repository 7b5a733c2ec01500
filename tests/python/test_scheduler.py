"""HardnessScheduler: learn, then harden to the target, then stay."""

import copy
import itertools
import json
import math
import pickle

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from lambda_gelu import HardnessScheduler, LambdaGELU

pytestmark = pytest.mark.usefixtures("device")


def make_model(*hardness: float) -> nn.Sequential:
    return nn.Sequential(*[LambdaGELU(init_hardness=value, dtype=torch.float64) for value in hardness])


def trace(model, scheduler, steps):
    """λ of the first site before any step and after each."""
    values = [model[0].hardness[0].item()]
    for _ in range(steps):
        scheduler.step()
        values.append(model[0].hardness[0].item())
    return values


def test_linear_hardening_is_an_arithmetic_sequence_from_the_learned_value():
    model = make_model(2.0)
    scheduler = HardnessScheduler(model, 8, start=0.25, target=8.0)
    assert trace(model, scheduler, 8) == pytest.approx([2, 2, 2, 3, 4, 5, 6, 7, 8], rel=1e-12)
    assert model[0].hardness.item() == 8.0


def test_geometric_hardening_is_a_geometric_sequence():
    model = make_model(2.0)
    scheduler = HardnessScheduler(model, 4, start=0.0, target=32.0, schedule="geometric")
    assert trace(model, scheduler, 4) == pytest.approx([2, 4, 8, 16, 32], rel=1e-12)


def test_harmonic_hardening_is_linear_in_the_reciprocal():
    model = make_model(2.0)
    scheduler = HardnessScheduler(model, 4, start=0.0, target=10.0, schedule="harmonic")
    assert [1 / h for h in trace(model, scheduler, 4)] == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1], rel=1e-12)


def test_cosine_hardening_is_slow_at_both_ends_and_symmetric():
    model = make_model(2.0)
    scheduler = HardnessScheduler(model, 4, start=0.0, target=10.0, schedule="cosine")
    values = trace(model, scheduler, 4)
    assert values[2] == pytest.approx(6.0) and values[4] == 10.0
    assert values[1] + values[3] == pytest.approx(12.0)
    assert values[1] - values[0] < 1.2 < values[2] - values[1]


def test_the_default_target_has_a_gate_gap_of_a_tenth():
    model = make_model(2.0)
    scheduler = HardnessScheduler(model, 4)
    for _ in range(4):
        scheduler.step()
    assert model[0].hardness.item() == pytest.approx(math.sqrt(2 / math.pi) / 0.1, rel=1e-14)


def test_phases_and_freezing_follow_the_window():
    model = make_model(2.0)
    scheduler = HardnessScheduler(model, 10, start=0.25, end=0.75, target=4.0)
    seen = []
    for _ in range(12):
        seen.append((scheduler.phase, model[0].is_frozen))
        scheduler.step()
    # ceil(2.5) = 3 and ceil(7.5) = 8; beyond the end it stays done
    assert seen == [("learn", False)] * 3 + [("harden", True)] * 5 + [("done", True)] * 4
    assert model[0].hardness.item() == 4.0


def test_hardening_from_the_start_freezes_at_once():
    model = make_model(2.0)
    scheduler = HardnessScheduler(model, 4, start=0.0)
    assert scheduler.phase == "harden" and model[0].is_frozen and model[0].hardness.item() == pytest.approx(2.0)


def test_every_channel_starts_from_its_own_learned_value():
    model = nn.Sequential(LambdaGELU(3, dtype=torch.float64))
    scheduler = HardnessScheduler(model, 4, start=0.5, target=9.0)
    scheduler.step()
    model[0].set_hardness(torch.tensor([1.5, 3.0, 5.0]))  # as training does
    scheduler.step()
    assert model[0].hardness.tolist() == pytest.approx([1.5, 3.0, 5.0], rel=1e-12)
    scheduler.step()
    assert model[0].hardness.tolist() == pytest.approx([5.25, 6.0, 7.0], rel=1e-12)
    scheduler.step()
    assert model[0].hardness.tolist() == [9.0, 9.0, 9.0]


@pytest.mark.parametrize("schedule", ["linear", "geometric", "harmonic", "cosine"])
def test_hardening_never_lowers_a_hardness(schedule):
    model = nn.Sequential(LambdaGELU(3, init_hardness=torch.tensor([2.0, 5.0, 40.0]), dtype=torch.float64))
    learned = model[0].hardness.tolist()
    scheduler = HardnessScheduler(model, 5, start=0.0, target=5.0, schedule=schedule)
    previous = learned
    for _ in range(6):
        scheduler.step()
        present = model[0].hardness.tolist()
        assert all(now >= before for now, before in zip(present, previous, strict=True))
        previous = present
    assert previous[0] == 5.0 and previous[2] == learned[2] and previous[1] == pytest.approx(5.0)


def test_targets_by_site_name():
    model = make_model(2.0, 3.0)
    scheduler = HardnessScheduler(model, 2, start=0.0, target={"1": 12.0, "0": 6.0})
    for _ in range(2):
        scheduler.step()
    assert [site.hardness.item() for site in model] == [6.0, 12.0]


def test_get_last_hardness_is_detached_and_named():
    model = nn.Sequential(nn.Linear(1, 1), LambdaGELU(), nn.Sequential(LambdaGELU(2)))
    hardness = HardnessScheduler(model, 4).get_last_hardness()
    assert list(hardness) == ["1", "2.0"]
    assert [value.shape for value in hardness.values()] == [(1,), (2,)]
    assert not any(value.requires_grad for value in hardness.values())
    assert hardness["1"].item() == model[1].hardness.item()


class Wrapped(nn.Module):
    """As torch.compile and activation checkpointing do it."""

    def __init__(self, name, module):
        super().__init__()
        self.add_module(name, module)


def test_wrappers_leave_no_trace_in_the_names():
    plain = nn.Sequential(nn.Linear(1, 1), nn.Sequential(LambdaGELU()))
    wrappers = [
        lambda model: Wrapped("_orig_mod", model),
        nn.DataParallel,
        lambda model: nn.DataParallel(Wrapped("_orig_mod", model)),
        lambda model: torch.compile(nn.DataParallel(model)),
        lambda model: nn.DataParallel(torch.compile(nn.DataParallel(model))),
        lambda model: nn.Sequential(model[0], Wrapped("_checkpoint_wrapped_module", model[1])),
        torch.compile,
    ]
    for wrap in wrappers:
        assert list(HardnessScheduler(wrap(plain), 4).get_last_hardness()) == ["1.0"]


def test_hardening_does_not_recompile_from_step_to_step():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), LambdaGELU(4), nn.Linear(4, 1))
    scheduler = HardnessScheduler(model, 6, start=1 / 6, target=6.0)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    x = torch.randn(5, 3)
    graphs, outputs = [], []
    for _ in range(7):
        y = compiled(x)
        torch.testing.assert_close(y, model(x))
        y.sum().backward()
        graphs.append(counter.frame_count)
        outputs.append(y.detach())
        scheduler.step()
    assert graphs == [1] * 7  # learned and frozen alike
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(outputs[1:]))


# --- state -----------------------------------------------------------------------------------------------------------


def test_the_state_is_plain_data():
    scheduler = HardnessScheduler(make_model(2.0, 1.1), 4, start=0.0)
    state = scheduler.state_dict()
    assert json.loads(json.dumps(state)) == state


@pytest.mark.parametrize(("step", "learned", "hardness"), [(1, {}, 2.0), (4, {"0": [2.0]}, 5.0)])
def test_a_state_without_empty_lists_as_it_was_written_earlier_is_loaded_too(step, learned, hardness):
    model = nn.Sequential(LambdaGELU(init_hardness=2.0))
    scheduler = HardnessScheduler(model, 4, start=0.5, target=5.0)
    state = {"total_steps": 4, "start": 0.5, "end": 1.0, "schedule": "linear", "targets": {"0": 5.0}}
    scheduler.load_state_dict({**state, "step": step, "learned_hardness": learned})
    assert scheduler.state_dict()["step"] == step
    assert model[0].hardness.item() == pytest.approx(hardness)


def test_the_state_is_a_copy():
    scheduler = HardnessScheduler(make_model(2.0), 4, start=0.0)
    state = scheduler.state_dict()
    state["learned_hardness"]["0"][0] = 3.0
    state["targets"]["0"] = 99.0
    scheduler.step()
    assert scheduler.state_dict()["learned_hardness"]["0"][0] == pytest.approx(2.0)
    assert scheduler.state_dict()["targets"]["0"] != 99.0


def test_a_state_resumes_without_the_model_state():
    source = make_model(2.0)
    scheduler = HardnessScheduler(source, 8, target=8.0)
    for _ in range(5):
        scheduler.step()
    target = make_model(1.5)
    resumed = HardnessScheduler(target, 8, target=8.0)
    resumed.load_state_dict(scheduler.state_dict())
    assert resumed.phase == "harden" and torch.equal(target[0].hardness, source[0].hardness)
    for run in (scheduler, resumed):
        for _ in range(3):
            run.step()
    assert resumed.state_dict() == scheduler.state_dict()


def changed(**changes):
    return lambda state: state.update(changes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (changed(total_steps=9), "total_steps differs: the state has 9, this scheduler 8"),
        (changed(start=0.5), "start differs"),
        (changed(end=0.9), "end differs"),
        (changed(schedule="cosine"), "schedule differs: the state has 'cosine', this scheduler 'linear'"),
        (changed(targets={"0": 7.0, "1": 8.0}), "targets differs"),
        (changed(targets={"other": 8.0}), "targets differs"),
        (changed(step=-1), "step must be a non-negative int, got -1"),
        (changed(step=1.5), "step must be a non-negative int"),
        (changed(step=1), "learned_hardness must have {} values at step 1"),
        (changed(learned_hardness={}), "learned_hardness must have"),
        (changed(learned_hardness={"0": [1.5, 2.0], "1": [2.0]}), "learned_hardness must have"),
        (changed(learned_hardness={"0": [math.nan], "1": [2.0]}), "nan"),
        (lambda state: state.pop("step"), "state_dict lacks step"),
    ],
)
def test_a_state_of_another_plan_or_model_is_refused_and_changes_nothing(change, words):
    source = HardnessScheduler(make_model(2.0, 3.0), 8, target=8.0)
    for _ in range(5):
        source.step()
    state = source.state_dict()
    change(state)
    model = make_model(1.5, 2.5)
    scheduler = HardnessScheduler(model, 8, target=8.0)
    before = copy.deepcopy((scheduler.state_dict(), model.state_dict()))
    with pytest.raises(ValueError, match=words):
        scheduler.load_state_dict(state)
    assert scheduler.state_dict() == before[0] and scheduler.phase == "learn"
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[1][key], rtol=0, atol=0, equal_nan=True)
    assert not model[0].is_frozen


def test_a_step_that_should_have_learned_but_was_frozen_is_refused():
    model = make_model(2.0, 3.0)
    scheduler = HardnessScheduler(model, 4, start=0.5)
    early = scheduler.state_dict()
    for _ in range(3):
        scheduler.step()
    scheduler.load_state_dict(early)  # without the model's state, which would unfreeze
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match=r"step 0 .* frozen at 0, 1; unfreeze_hardness\(\) first"):
        scheduler.step()
    assert scheduler.state_dict() == early
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0, equal_nan=True)
    for site in model:
        site.unfreeze_hardness()
    scheduler.step()
    assert scheduler.state_dict()["step"] == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda run: pickle.loads(pickle.dumps(run))])
@pytest.mark.parametrize("steps", [1, 5])
def test_a_copy_of_a_run_goes_on_by_itself(copied, steps):
    model = make_model(2.0, 3.0)
    scheduler = HardnessScheduler(model, 8, target=8.0)
    for _ in range(steps):
        scheduler.step()
    state = scheduler.state_dict()
    twin, twin_scheduler = copied((model, scheduler))
    assert twin_scheduler.state_dict() == state and twin_scheduler.phase == scheduler.phase
    for _ in range(8):
        twin_scheduler.step()
    assert [site.hardness.item() for site in twin] == [8.0, 8.0]
    assert scheduler.state_dict() == state and model[0].hardness.item() != 8.0


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"total_steps": 0}, ValueError, "total_steps"),
        ({"total_steps": -3}, ValueError, "total_steps"),
        ({"total_steps": 2.5}, TypeError, "total_steps must be an int, got float"),
        ({"start": 0.5, "end": 0.5}, ValueError, "start"),
        ({"start": 0.8, "end": 0.2}, ValueError, "start"),
        ({"start": -0.1}, ValueError, "start"),
        # ceil(9.5) = ceil(9.6): not one step would harden
        ({"total_steps": 10, "start": 0.95, "end": 0.96}, ValueError, "the window .* must hold at least one step"),
        ({"end": 1.1}, ValueError, "end"),
        ({"start": math.nan}, ValueError, "start"),
        ({"schedule": "exponential"}, ValueError, "exponential.*linear|linear.*exponential"),
        ({"target": 0.0}, ValueError, "target of '0' must be finite and positive in torch.float64, got 0.0"),
        ({"target": -1.0}, ValueError, "target of '0' must be finite and positive"),
        ({"target": math.nan}, ValueError, "target of '0' must be finite and positive"),
        ({"target": math.inf}, ValueError, "target of '0' must be finite and positive"),
        ({"target": "8"}, TypeError, "target of '0' must be a float, got str"),
        ({"target": {"0": 8.0}}, ValueError, r"missing \['1'\]"),
        ({"target": {"0": 8.0, "1": 8.0, "act": 8.0}}, ValueError, r"unknown \['act'\]"),
        ({"model": nn.Linear(2, 2)}, ValueError, "Linear has no LambdaGELU"),
        ({"model": None}, TypeError, "model must be a torch.nn.Module, got NoneType"),
    ],
)
def test_bad_arguments_are_refused_and_change_nothing(arguments, error, words):
    model = make_model(2.0, 3.0)
    with pytest.raises(error, match=words):
        HardnessScheduler(**{"model": model, "total_steps": 8, "start": 0.0, **arguments})
    assert not model[0].is_frozen and not model[1].is_frozen


def test_a_target_outside_of_the_sites_dtype_is_refused_at_once():
    with pytest.raises(ValueError, match="float32"):
        HardnessScheduler(nn.Sequential(LambdaGELU()), 8, target=1e39)


def test_a_learned_hardness_outside_of_the_sites_dtype_is_refused_and_nothing_freezes():
    model = nn.Sequential(LambdaGELU(dtype=torch.float32), LambdaGELU(dtype=torch.float32))
    scheduler = HardnessScheduler(model, 2, start=0.5)
    early = scheduler.state_dict()
    state = {**early, "step": 2, "learned_hardness": {"0": [2.0], "1": [1e39]}}
    with pytest.raises(ValueError, match=r"finite and positive in torch\.float32; got 1e\+39"):
        scheduler.load_state_dict(state)
    assert scheduler.state_dict() == early
    assert not any(site.is_frozen for site in model)
    assert all(site.hardness_override.isnan().all() for site in model)


def test_a_diverged_hardness_is_refused_at_the_switch_and_nothing_freezes():
    model = make_model(2.0, 3.0)
    scheduler = HardnessScheduler(model, 2, start=0.5)
    with torch.no_grad():
        model[1].raw_hardness.fill_(math.nan)
    with pytest.raises(ValueError, match="nan"):
        scheduler.step()
    assert scheduler.phase == "learn" and not model[0].is_frozen
