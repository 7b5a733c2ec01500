"""Hardening beyond a fixed schedule: when it starts, how fast it goes, and targets that change on the way."""

import copy
import itertools
import json
import math
import pickle
import warnings

import pytest
import torch
from networks import hardness_of, sites_alone
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

import lambda_gelu
from lambda_gelu import (
    AllowedLoss,
    HardnessCapWarning,
    HardnessScheduler,
    LambdaGELU,
    Remaining,
    Settled,
    param_groups,
)

pytestmark = pytest.mark.usefixtures("device")

SCHEDULES = ["linear", "geometric", "harmonic", "cosine"]


def trace(model, scheduler, reports):
    """λ of the first site after every step, each with its report (None: no report)."""
    values = []
    for report in reports:
        scheduler.step(report)
        values.append(model[0].hardness[0].item())
    return values


# --- targets by channel ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_given", [list, tuple, torch.tensor], ids=["list", "tuple", "tensor"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_channel_reaches_its_own_target(schedule, as_given):
    model = sites_alone(torch.tensor([1.5, 2.0, 6.0]), num_parameters=3)
    one_by_one = [sites_alone(value) for value in (1.5, 2.0, 6.0)]
    plan = {"start": 0.0, "schedule": schedule}
    scheduler = HardnessScheduler(model, 5, target={"0": as_given([4.0, 9.0, 5.0])}, **plan)
    references = [HardnessScheduler(m, 5, target=t, **plan) for m, t in zip(one_by_one, (4.0, 9.0, 5.0), strict=True)]
    for _ in range(5):
        scheduler.step()
        for reference in references:
            reference.step()
        assert model[0].hardness.tolist() == [m[0].hardness.item() for m in one_by_one]
    assert model[0].hardness.tolist() == pytest.approx([4.0, 9.0, 6.0], rel=1e-15)  # λ is never lowered


def test_one_value_serves_all_channels_and_is_the_same_as_a_float():
    for target in (8.0, {"0": 8.0}, {"0": [8.0]}, {"0": torch.tensor([8.0])}):
        model = sites_alone(2.0, num_parameters=3)
        scheduler = HardnessScheduler(model, 2, start=0.0, target=target)
        scheduler.step()
        assert model[0].hardness.tolist() == pytest.approx([5.0] * 3, rel=1e-15)
        assert scheduler.targets == {"0": 8.0}


# --- targets that change ---------------------------------------------------------------------------------------------


def expected_way(schedule, present, target, progress, before):
    """λ on what remains of the schedule after the progress `before`, from the definition of each."""
    share = (progress - before) / (1 - before)
    if schedule == "linear":
        return present + (target - present) * share
    if schedule == "geometric":
        return present * (target / present) ** share
    if schedule == "harmonic":
        return 1 / (1 / present + (1 / target - 1 / present) * share)
    wave, wave_before = (0.5 - 0.5 * math.cos(math.pi * p) for p in (progress, before))
    return present + (target - present) * (wave - wave_before) / (1 - wave_before)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_new_target_is_reached_at_the_end_from_the_present_hardness(schedule):
    model = sites_alone(2.0, 3.0)
    scheduler = HardnessScheduler(model, 10, start=0.2, target=8.0, schedule=schedule)
    for _ in range(5):
        scheduler.step()
    present = hardness_of(model)
    scheduler.set_targets({"0": 20.0, "1": 12.0})
    assert hardness_of(model) == present  # the path turns, it does not jump
    for step in range(6, 11):
        scheduler.step()
        for site, before, target in zip(model, present, (20.0, 12.0), strict=True):
            expected = expected_way(schedule, before[0], target, (step - 2) / 8, 3 / 8)
            assert site.hardness.item() == pytest.approx(expected, rel=1e-13)
    assert scheduler.phase == "done" and hardness_of(model) == [[20.0], [12.0]]


def test_new_targets_while_learning_replace_those_of_the_plan():
    model, reference = sites_alone(2.0), sites_alone(2.0)
    scheduler = HardnessScheduler(model, 8, start=0.25, target=30.0)
    scheduler.set_targets({"0": [6.0]})
    expected = HardnessScheduler(reference, 8, start=0.25, target=6.0)
    assert not model[0].is_frozen
    assert trace(model, scheduler, [None] * 8) == trace(reference, expected, [None] * 8)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_same_targets_again_change_no_bit(schedule):
    model, reference = sites_alone(2.0, 1.1), sites_alone(2.0, 1.1)
    plan = {"start": 0.1, "target": {"0": 7.3, "1": 11.7}, "schedule": schedule}
    scheduler, expected = HardnessScheduler(model, 9, **plan), HardnessScheduler(reference, 9, **plan)
    for _ in range(10):
        scheduler.set_targets({"0": 7.3, "1": 11.7})
        scheduler.step()
        expected.step()
        assert hardness_of(model) == hardness_of(reference)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_targets_that_drift_at_every_step_are_reached_and_the_way_lies_between_the_fixed_ones(schedule):
    steps, targets = 20, [8.0 + 0.2 * step for step in range(20)]
    model, low, high = sites_alone(2.0), sites_alone(2.0), sites_alone(2.0)
    plan = {"start": 0.0, "schedule": schedule}
    scheduler = HardnessScheduler(model, steps, target=targets[0], **plan)
    bounds = [HardnessScheduler(m, steps, target=t, **plan) for m, t in ((low, targets[0]), (high, targets[-1]))]
    for target in targets:
        scheduler.set_targets(target)
        for run in (scheduler, *bounds):
            run.step()
        between = (low[0].hardness.item() * (1 - 1e-12), high[0].hardness.item() * (1 + 1e-12))
        assert between[0] <= model[0].hardness.item() <= between[1]
    assert model[0].hardness.item() == targets[-1]


def test_hardness_never_falls_however_the_targets_move():
    model = sites_alone(torch.tensor([2.0, 4.0]), num_parameters=2)
    scheduler = HardnessScheduler(model, 10, start=0.0, target=9.0)
    values = [model[0].hardness.tolist()]
    for target in (9.0, 9.0, 9.0, 3.0, 3.0, [1.0, 12.0], [1.0, 12.0], 2.0, 5.0, 5.0):
        scheduler.set_targets({"0": target})
        scheduler.step()
        values.append(model[0].hardness.tolist())
    for before, after in itertools.pairwise(values):
        assert all(now >= then for then, now in zip(before, after, strict=True))
    assert values[4] == values[5] == values[3]  # above the target of 3: kept
    assert values[-1] == pytest.approx([5.0, max(5.0, values[7][1])], rel=1e-15)


def test_after_the_end_a_higher_target_holds_at_once_and_a_lower_one_changes_nothing():
    model = sites_alone(2.0)
    scheduler = HardnessScheduler(model, 4, start=0.0, end=0.5, target=8.0)
    trace(model, scheduler, [None, None])
    scheduler.set_targets(7.0)
    assert model[0].hardness.item() == 8.0
    scheduler.set_targets(9.0)
    assert model[0].hardness.item() == 9.0 and scheduler.phase == "done"
    scheduler.step()
    assert model[0].hardness.item() == 9.0


@pytest.mark.parametrize(
    ("target", "error", "words"),
    [
        ({"0": 8.0}, ValueError, r"unknown \[\], missing \['1'\]"),
        ({"0": 8.0, "1": 8.0, "fc": 9.0}, ValueError, r"unknown \['fc'\], missing \[\]; the sites are \['0', '1'\]"),
        ({"0": 8.0, "1": [8.0] * 3}, ValueError, "target of '1' must have 1 or 2 values, got 3"),
        ({"0": 8.0, "1": []}, ValueError, "target of '1' must have 1 or 2 values, got 0"),
        (
            {"0": 8.0, "1": [8.0, -1.0]},
            ValueError,
            "target of '1' must be finite and positive in torch.float64, got -1",
        ),
        ({"0": 8.0, "1": torch.tensor([math.nan, 2.0])}, ValueError, "target of '1' must be finite and .* got nan"),
        ({"0": 8.0, "1": [8.0, "9"]}, TypeError, "target of '1' must be a float, got str"),
        ({"0": 8.0, "1": [True, 2.0]}, TypeError, "target of '1' must be a float, got bool"),
        (0.0, ValueError, "target of '0' must be finite and positive"),
        (None, TypeError, "target of '0' must be a float, got NoneType"),
        ([8.0, 8.0], TypeError, "target must be a float or a mapping from site names, got list"),
    ],
)
def test_bad_targets_are_refused_by_name_and_change_nothing(target, error, words):
    model = sites_alone(torch.tensor([2.0, 3.0]), num_parameters=2)
    model.insert(0, LambdaGELU(init_hardness=2.0, dtype=torch.float64))
    scheduler = HardnessScheduler(model, 4, start=0.0, target=8.0)
    scheduler.step()
    state, hardness = scheduler.state_dict(), hardness_of(model)
    with pytest.raises(error, match=words):
        scheduler.set_targets(target)
    assert scheduler.state_dict() == state and hardness_of(model) == hardness
    if target is not None:
        with pytest.raises(error, match=words):
            HardnessScheduler(model, 4, target=target)


# --- targets that follow statistics ----------------------------------------------------------------------------------


class Scaled(nn.Module):
    """A site of one λ and one of a λ per channel, whose pre-activations spread more and more as `scale` grows."""

    def __init__(self):
        super().__init__()
        self.scale = 1.0
        self.wide = LambdaGELU(3, dtype=torch.float64)
        self.narrow = LambdaGELU(dtype=torch.float64)

    def inputs(self):
        noise = torch.randn(4000, 3, generator=torch.Generator("cpu").manual_seed(0), dtype=torch.float64, device="cpu")
        return (noise * torch.tensor([0.5, 1.0, 2.0], device="cpu") - 0.3).to(
            self.wide.raw_hardness.device
        ) * self.scale

    def forward(self):
        return self.narrow(self.inputs()), self.wide(self.inputs())


def measured_ser_db(model, site, per="layer"):
    """Of the swap itself, on the very activations."""
    x = model.inputs()
    signal, error = (part.square().mean(0 if per == "channel" else (0, 1)) for part in (x.relu(), x.relu() - site(x)))
    return (10 * torch.log10(signal / error)).tolist()


def observed(model, per="layer"):
    with lambda_gelu.observe(model, per=per, channel_dim=1 if per == "channel" else None) as statistics:
        model()
    return statistics


@pytest.mark.parametrize("per", ["layer", "channel"])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_targets_follow_the_statistics_to_the_tolerance_at_the_end(schedule, per):
    model = Scaled()
    scheduler = HardnessScheduler(model, 8, start=2, schedule=schedule)
    before = scheduler.get_last_hardness()
    for step in range(8):
        model.scale = 0.5 + 0.05 * (8 - step)  # the pre-activations shrink: the targets rise
        targets = scheduler.follow(observed(model, per), tolerance_db=30.0, per=per)
        assert targets == scheduler.targets and isinstance(targets["wide"], list) == (per == "channel")
        scheduler.step()
        after = scheduler.get_last_hardness()
        assert all((after[name] >= before[name]).all() for name in after)
        before = after
    assert measured_ser_db(model, model.narrow) == pytest.approx(30.0, abs=0.1)
    assert measured_ser_db(model, model.wide, per) == pytest.approx([30.0] * 3 if per == "channel" else 30.0, abs=0.1)


def test_what_the_cap_keeps_is_warned_of_by_name():
    model = Scaled()
    scheduler = HardnessScheduler(model, 2, start=0)
    with pytest.warns(HardnessCapWarning, match=r"cap of 4, .* wide \(2 of 3 channels") as caught:
        scheduler.follow(observed(model, "channel"), 30.0, cap=4.0, per="channel")
    assert len(caught) == 1 and caught[0].filename == __file__
    assert max(scheduler.targets["wide"]) == 4.0
    with pytest.warns(HardnessCapWarning, match=r" wide \(2 of 3 channels, .*, narrow \(.* dB\)") as caught:
        scheduler.follow(observed(model, "channel"), 30.0, cap=2.0, per="channel")
    assert len(caught) == 1


def test_statistics_that_cannot_be_followed_are_refused_by_name_and_change_nothing():
    model, other = Scaled(), nn.Sequential(LambdaGELU())
    scheduler = HardnessScheduler(model, 4, start=0, target=9.0)
    scheduler.step()
    state, hardness = scheduler.state_dict(), [model.wide.hardness, model.narrow.hardness]
    good, good_channels = observed(model), observed(model, "channel")
    with lambda_gelu.observe(model) as empty:
        pass
    with lambda_gelu.observe(other) as foreign:
        other(torch.ones(2))
    with lambda_gelu.observe(model) as never, lambda_gelu.observe(model, per="channel") as never_channels:
        model.wide(model.inputs())
    with lambda_gelu.observe(model) as diverged:
        model()
        model.wide(model.inputs() * math.nan)
    cases = [
        (ValueError, "they lack wide, narrow; the model has no site 0", foreign, {}),
        (ValueError, "there is no calibration data", empty, {}),
        (ValueError, "never executed while it was observed: narrow", never, {}),
        (ValueError, "never executed while it was observed: narrow", never_channels, {"per": "channel"}),
        (ValueError, "activations that are NaN or infinite at wide", diverged, {}),
        (ValueError, "tolerance_db must be finite and positive, got 0", good, {"tolerance_db": 0.0}),
        (ValueError, "tolerance_db must be finite and positive, got nan", good, {"tolerance_db": math.nan}),
        (ValueError, "cap must be finite and positive, got -1", good, {"cap": -1.0}),
        (ValueError, "targets per channel need statistics per channel", good, {"per": "channel"}),
        (ValueError, 'per must be "layer" or "channel", got .site', good_channels, {"per": "site"}),
        (TypeError, "statistics must be those of lambda_gelu.observe, got dict", {"wide": 8.0}, {}),
    ]
    for error, words, statistics, options in cases:
        with pytest.raises(error, match=words):
            scheduler.follow(statistics, **options)
        assert scheduler.state_dict() == state
        assert all(map(torch.equal, (model.wide.hardness, model.narrow.hardness), hardness))


# --- the onset -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("start", "onset"), [(3, 3), (0, 0), (7, 7), (0.3, 3), (0.0, 0)])
def test_the_onset_is_a_step_or_a_fraction(start, onset):
    model = sites_alone(2.0)
    scheduler = HardnessScheduler(model, 8, start=start, target=8.0)
    assert (scheduler.onset_step, scheduler.end_step) == (onset, 8)
    frozen = [model[0].is_frozen]
    for _ in range(8):
        scheduler.step()
        frozen.append(model[0].is_frozen)
    assert frozen == [False] * onset + [True] * (9 - onset)


@pytest.mark.parametrize("total", [7, 49, 1000, 12345])
def test_a_step_as_the_onset_means_that_step_for_every_length_of_the_run(total):
    model = sites_alone(2.0)
    for step in {*range(0, total, max(1, total // 50)), total - 1}:
        assert HardnessScheduler(model, total, start=step).onset_step == step
        model[0].unfreeze_hardness()


def test_the_end_may_be_a_part_of_what_remains():
    model = sites_alone(2.0)
    scheduler = HardnessScheduler(model, 20, start=10, end=Remaining(0.7), target=9.0)
    assert (scheduler.onset_step, scheduler.end_step) == (10, 17)
    values = trace(model, scheduler, [None] * 20)
    assert values[9] == pytest.approx(2.0) and values[16] == values[19] == 9.0 > values[15]


RULE = Settled(patience=2, hardness_tolerance=0.1, metric_tolerance=0.05, latest=0.75)


def settle(metrics, hardness, rule=RULE, total=20):
    """The onset of a run whose reports after every step are these, with λ set as training would."""
    model = sites_alone(2.0)
    scheduler = HardnessScheduler(model, total, start=rule, target=9.0, end=Remaining(0.5))
    for metric, value in zip(metrics, hardness, strict=True):
        if scheduler.onset_step is not None:
            break
        model[0].set_hardness(value)
        scheduler.step(metric)
    return scheduler.onset_step, model[0].is_frozen


@pytest.mark.parametrize(
    ("metrics", "hardness", "onset"),
    [
        # the reference is report 1: 2 reports near it
        ([1.0, 1.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0], 3),
        # the metric jumps at 3, which becomes the reference
        ([1.0, 1.0, 0.5, 0.5, 0.5], [2.0] * 5, 5),
        # λ jumps at 3
        ([1.0] * 5, [2.0, 2.0, 3.0, 3.0, 3.0], 5),
        # each step is small, but the drift is not: 0.06 from the reference at every second report
        ([1.0, 0.97, 0.94, 0.91, 0.88], [2.0] * 5, None),
        ([1.0] * 5, [2.0, 2.15, 2.3, 2.45, 2.6], None),
        # near means within the tolerance: 5 % of the larger, and 10 % of λ
        ([1.0, 1.052, 1.052], [2.0, 2.19, 1.81], 3),
        ([1.0, 1.054, 1.0], [2.0] * 3, None),
        ([1.0, 1.0, 1.0], [2.0, 2.21, 2.21], None),
        # neither direction is better, nor does the sign matter
        ([-3.0, -3.1, -2.9], [2.0] * 3, 3),
        ([0.0, 0.0, 0.0], [2.0] * 3, 3),
    ],
)
def test_hardening_starts_once_hardness_and_metric_have_settled(metrics, hardness, onset):
    assert settle(metrics, hardness) == (onset, onset is not None)


def test_hardening_starts_at_the_latest_where_nothing_settles_or_nothing_is_reported():
    metrics = [float(2**i) for i in range(20)]
    assert settle(metrics, [2.0] * 20) == (15, True)
    assert settle([None] * 20, [2.0] * 20) == (15, True)
    rule = Settled(patience=2, latest=7)
    assert settle([None] * 20, [2.0] * 20, rule) == (7, True)


def test_every_channel_of_every_site_must_have_settled():
    model = sites_alone(torch.tensor([2.0, 2.0]), torch.tensor([2.0, 2.0]), num_parameters=2)
    scheduler = HardnessScheduler(model, 20, start=RULE)
    for step in range(8):
        model[1].set_hardness(torch.tensor([2.0, 2.0 + 0.6 * step], dtype=torch.float64))
        scheduler.step(1.0)
    assert scheduler.phase == "learn"
    for _ in range(2):
        scheduler.step(1.0)
    assert scheduler.phase == "harden" and scheduler.onset_step == 10
    assert model[1].hardness.tolist() == pytest.approx([2.0, 6.2], rel=1e-12)  # what was learned is kept at the onset


def test_a_report_starts_hardening_at_the_step_it_is_made_after_and_moves_no_hardness():
    model = sites_alone(2.0)
    scheduler = HardnessScheduler(model, 20, start=RULE, target=8.0, end=Remaining(0.5))
    for _ in range(3):
        scheduler.step()
        scheduler.report(torch.tensor([0.5]))
    assert (scheduler.phase, scheduler.onset_step, scheduler.end_step) == ("harden", 3, 12)
    before = model[0].hardness.item()
    assert model[0].is_frozen and before == pytest.approx(2.0)
    scheduler.step()
    assert model[0].hardness.item() == pytest.approx(2.0 + 6.0 / 9, rel=1e-12)
    assert trace(model, scheduler, [None] * 16)[-1] == 8.0


def test_a_schedule_without_rules_takes_no_notice_of_reports():
    model, reference = sites_alone(2.0), sites_alone(2.0)
    scheduler, expected = HardnessScheduler(model, 8, target=9.0), HardnessScheduler(reference, 8, target=9.0)
    assert trace(model, scheduler, [3.0, 1.0, 9.0, 1.0, 1.0, 1.0, 1.0, 5.0]) == trace(reference, expected, [None] * 8)
    assert scheduler.state_dict() == expected.state_dict()


# --- the rate --------------------------------------------------------------------------------------------------------


def rated_run(losses, *, total=10, rate=None):
    model = sites_alone(2.0)
    rate = rate or AllowedLoss(0.1, waiting=0.5)
    scheduler = HardnessScheduler(model, total, start=0, target=12.0, rate=rate)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return trace(model, scheduler, losses), scheduler


def test_hardening_is_done_early_where_the_loss_always_allows_it():
    model = sites_alone(2.0)
    scheduler = HardnessScheduler(model, 10, start=0, target=12.0, rate=AllowedLoss(0.1, waiting=0.5))
    scheduler.report(1.0)
    assert trace(model, scheduler, [1.0] * 10) == pytest.approx([4, 6, 8, 10, 12, 12, 12, 12, 12, 12], rel=1e-14)
    assert scheduler.phase == "done" and scheduler.forced_steps == 0 and scheduler.end_step == 10


def test_hardening_waits_while_the_loss_is_above_the_allowed_one():
    # Report i is made after step i + 1. The first step waits, since nothing has been reported.
    values, scheduler = rated_run([1.0, 1.0, 1.2, 1.2, 1.05, 0.8, 0.95, 0.85, 0.8, 0.8])
    assert values == pytest.approx([2, 4, 6, 6, 6, 8, 10, 10, 12, 12], rel=1e-14)
    assert scheduler.forced_steps == 0


def test_the_reference_is_the_lowest_loss_or_the_last_with_which_hardness_went_on():
    losses = [1.0, 1.09, 1.18, 1.27, 1.27, 1.27, 1.27, 1.27, 1.27, 1.27]
    lowest, _ = rated_run(losses)
    last, _ = rated_run(losses, rate=AllowedLoss(0.1, reference="last"))
    assert lowest[:6] == pytest.approx([2, 4, 6, 6, 6, 6], rel=1e-14)
    assert last[:6] == pytest.approx([2, 4, 6, 8, 10, 12], rel=1e-14)


def test_the_reference_is_none_of_a_network_that_hardening_has_not_touched_but_the_last():
    model = sites_alone(2.0)
    scheduler = HardnessScheduler(model, 12, start=4, target=10.0, rate=AllowedLoss(0.1, waiting=0.5))
    values = trace(model, scheduler, [0.1, 9.0, 3.0, 2.0, 2.05, 2.2, 2.05, 2.05, 2.05, 2.05, 2.05, 2.05])
    # neither the 0.1 of an untrained network nor the 9.0, but the 2.0 at the onset: 2.2 is too high, 2.05 is not
    assert values == pytest.approx([2, 2, 2, 2, 4, 6, 6, 8, 10, 10, 10, 10], rel=1e-14)


def test_hardening_is_done_by_the_end_whatever_the_loss_and_says_so_once():
    model = sites_alone(2.0)
    scheduler = HardnessScheduler(model, 10, start=0, end=0.8, target=10.0, rate=AllowedLoss(0.1, waiting=0.5))
    scheduler.report(1.0)
    seen = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(10):
            scheduler.step(9.0)
            seen.append((model[0].hardness.item(), len(caught)))
    # one step on the report of 1.0, then waiting as long as 3 steps are enough
    hardness, warned = zip(*seen, strict=True)
    assert hardness == pytest.approx([4, 4, 4, 4, 4, 6, 8, 10, 10, 10], rel=1e-14)
    assert warned == (0, 0, 0, 0, 0, 1, 1, 1, 1, 1)
    assert "too far above 1" in str(caught[0].message) and "by step 8" in str(caught[0].message)
    assert caught[0].filename == __file__
    assert scheduler.forced_steps == 3 and scheduler.phase == "done"


def test_without_any_report_hardening_waits_as_long_as_it_can():
    model = sites_alone(2.0)
    scheduler = HardnessScheduler(model, 4, start=0, target=10.0, rate=AllowedLoss(0.1, waiting=0.5))
    with pytest.warns(UserWarning, match="no loss has been reported"):
        assert trace(model, scheduler, [None] * 4) == pytest.approx([2, 2, 6, 10], rel=1e-14)


# --- compiled --------------------------------------------------------------------------------------------------------


def test_neither_reports_nor_new_targets_compile_a_model_again():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), LambdaGELU(4), nn.Linear(4, 1))
    scheduler = HardnessScheduler(model, 8, start=Settled(patience=1), rate=AllowedLoss(0.1))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    x, phases = torch.randn(5, 3), set()
    for step in range(9):
        y = compiled(x)
        torch.testing.assert_close(y, model(x))
        y.sum().backward()
        phases.add(scheduler.phase)
        scheduler.step(1.0)
        scheduler.set_targets({"1": [9.0 + step, 8.0, 7.0, 6.0]})
    assert counter.frame_count == 1 and phases == {"learn", "harden", "done"}


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: Settled(patience=0), ValueError, "patience must be at least 1, got 0"),
        (lambda: Settled(patience=1.5), TypeError, "patience must be an int, got float"),
        (lambda: Settled(hardness_tolerance=0.0), ValueError, "hardness_tolerance must be finite and positive, got 0"),
        (lambda: Settled(hardness_tolerance=-1), ValueError, "hardness_tolerance must be finite and positive, got -1"),
        (lambda: Settled(metric_tolerance=0), ValueError, "metric_tolerance must be finite and positive, got 0"),
        (
            lambda: Settled(metric_tolerance=math.nan),
            ValueError,
            "metric_tolerance must be finite and positive, got nan",
        ),
        (lambda: Settled(metric_tolerance="1"), TypeError, "metric_tolerance must be a float, got str"),
        (lambda: Settled(latest=None), TypeError, "latest must be a float, got NoneType"),
        (lambda: Remaining(0.0), ValueError, "fraction must satisfy 0 < fraction <= 1, got 0.0"),
        (lambda: Remaining(1.1), ValueError, "fraction must satisfy 0 < fraction <= 1, got 1.1"),
        (lambda: Remaining(True), TypeError, "fraction must be a float, got bool"),
        (lambda: AllowedLoss(0.0), ValueError, "allowed must be finite and positive, got 0.0"),
        (lambda: AllowedLoss(-0.1), ValueError, "allowed must be finite and positive, got -0.1"),
        (lambda: AllowedLoss(math.inf), ValueError, "allowed must be finite and positive, got inf"),
        (lambda: AllowedLoss(0.1, waiting=1.0), ValueError, "waiting must satisfy 0 < waiting < 1, got 1.0"),
        (lambda: AllowedLoss(0.1, waiting=0), ValueError, "waiting must satisfy 0 < waiting < 1, got 0"),
        (lambda: AllowedLoss(0.1, reference="best"), ValueError, "reference must be 'lowest' or 'last', got 'best'"),
    ],
)
def test_bad_rules_are_refused_by_name(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"start": 8}, ValueError, "start as a step must be from 0 to 7, got 8"),
        ({"start": -1}, ValueError, "start as a step must be from 0 to 7, got -1"),
        ({"start": True}, TypeError, r"start must be a fraction \(float\) or a step \(int\), got bool"),
        ({"start": 6, "end": 0.5}, ValueError, "start and end"),
        ({"start": Settled(latest=1.0)}, ValueError, "start and end"),
        ({"start": Settled(latest=8)}, ValueError, "latest as a step must be from 0 to 7, got 8"),
        ({"start": Settled(latest=0.5), "end": 0.5}, ValueError, "start and end"),
        ({"rate": 0.1}, TypeError, "rate must be an AllowedLoss or None, got float"),
        ({"start": "0.25"}, TypeError, r"start must be a fraction \(float\) or a step \(int\), got str"),
        ({"end": None}, TypeError, r"end must be a fraction \(float\) or Remaining, got NoneType"),
        ({"end": True}, TypeError, r"end must be a fraction \(float\) or Remaining, got bool"),
        ({"start": Settled(), "end": Settled()}, TypeError, "end must be a fraction .*, got Settled"),
        ({"schedule": None}, TypeError, "schedule must be a str, got NoneType"),
    ],
)
def test_rules_that_leave_no_step_to_harden_are_refused_and_change_nothing(arguments, error, words):
    model = sites_alone(2.0)
    with pytest.raises(error, match=words):
        HardnessScheduler(model, 8, **arguments)
    assert not model[0].is_frozen


@pytest.mark.parametrize(
    ("metric", "error", "words"),
    [
        (math.nan, ValueError, "metric must be finite, got nan"),
        (torch.tensor(math.inf), ValueError, "metric must be finite, got inf"),
        ("0.5", TypeError, "metric must be a float or a tensor of one element, got str"),
        (True, TypeError, "metric must be a float or a tensor of one element, got bool"),
        (torch.ones(2), TypeError, "metric must be a float or a tensor of one element, got Tensor"),
    ],
)
@pytest.mark.parametrize("call", [HardnessScheduler.step, HardnessScheduler.report])
def test_a_bad_metric_is_refused_and_changes_nothing(call, metric, error, words):
    model = sites_alone(2.0)
    scheduler = HardnessScheduler(model, 8, start=Settled(patience=1), rate=AllowedLoss(0.1))
    scheduler.step(1.0)
    state = scheduler.state_dict()
    with pytest.raises(error, match=words):
        call(scheduler, metric)
    assert scheduler.state_dict() == state and not model[0].is_frozen


def test_a_diverged_hardness_is_refused_by_name_when_a_metric_is_reported():
    model = sites_alone(2.0, 3.0)
    scheduler = HardnessScheduler(model, 8, start=Settled(patience=1))
    scheduler.step(1.0)
    state = scheduler.state_dict()
    with torch.no_grad():
        model[1].raw_hardness.fill_(math.nan)
    for call in (scheduler.report, scheduler.step):
        with pytest.raises(ValueError, match="the learned hardness of '1' must be finite, got nan"):
            call(1.0)
    assert scheduler.state_dict() == state and not model[0].is_frozen


def test_a_report_on_a_site_that_should_learn_but_is_frozen_is_refused():
    model = sites_alone(2.0, 3.0)
    scheduler = HardnessScheduler(model, 8, start=Settled(patience=1))
    model[1].freeze_hardness()
    with pytest.raises(RuntimeError, match="step 0 is to learn the hardness, but it is frozen at 1"):
        scheduler.report(1.0)
    assert scheduler.state_dict()["settling"]["metric"] is None


# --- state -----------------------------------------------------------------------------------------------------------

STEPS = 16
NEW_TARGETS = {3: {"1": 9.0, "3": [5.0, 6.0, 7.0]}, 9: {"1": 11.0, "3": [8.0, 6.0, 7.5]}, 15: {"1": 12.0, "3": 9.0}}


class Run:
    """A training whose onset, pace and targets all depend on what it sees."""

    def __init__(self, schedule):
        torch.manual_seed(0)
        self.model = nn.Sequential(
            nn.Linear(2, 3), LambdaGELU(), nn.Linear(3, 3), LambdaGELU(3, channel_dim=-1), nn.Linear(3, 1)
        )
        self.optimizer = torch.optim.Adam(param_groups(self.model, lr=0.01))
        self.scheduler = HardnessScheduler(
            self.model,
            STEPS,
            start=Settled(patience=2, hardness_tolerance=0.5, metric_tolerance=0.5, latest=0.5),
            schedule=schedule,
            end=Remaining(0.9),
            rate=AllowedLoss(0.005, waiting=0.4),
        )

    def go(self, steps):
        trace = []
        for step in steps:
            x = torch.randn(8, 2, generator=torch.Generator().manual_seed(step))
            self.optimizer.zero_grad()
            loss = (self.model(x) - x.sin().sum(1, keepdim=True)).square().mean()
            loss.backward()
            self.optimizer.step()
            if step in NEW_TARGETS:
                self.scheduler.set_targets(NEW_TARGETS[step])
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.scheduler.step(loss.detach() if step % 2 else None)
            trace.append((loss.item(), self.scheduler.phase, *map(tuple, self.hardness())))
        return trace

    def hardness(self):
        return [site.hardness.tolist() for site in (self.model[1], self.model[3])]

    def states(self):
        parts = (self.model.state_dict(), self.optimizer.state_dict(), json.dumps(self.scheduler.state_dict()))
        return copy.deepcopy(parts)

    def load(self, states, order):
        loads = {
            "model": lambda: self.model.load_state_dict(states[0]),
            "optimizer": lambda: self.optimizer.load_state_dict(states[1]),
            "scheduler": lambda: self.scheduler.load_state_dict(json.loads(states[2])),
        }
        for name in order:
            loads[name]()


@pytest.fixture(scope="module", params=SCHEDULES)
def unbroken(request):
    run = Run(request.param)
    trace, states = [], [run.states()]
    for step in range(STEPS):
        trace += run.go([step])
        states.append(run.states())
    return request.param, trace, states


def test_a_resumed_run_equals_an_unbroken_one_to_the_last_bit(unbroken):
    schedule, trace, states = unbroken
    phases = [phase for _, phase, *_ in trace]
    assert set(phases) == {"learn", "harden", "done"}  # or the rules were never put to the test
    for step in range(STEPS):
        run = Run(schedule)
        run.load(states[step], ("model", "optimizer", "scheduler") if step % 2 else ("scheduler", "model", "optimizer"))
        assert run.go(range(step, STEPS)) == trace[step:]
        for mine, theirs in zip(run.states()[0].values(), states[-1][0].values(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=0, equal_nan=True)
        assert run.states()[2] == states[-1][2]


def test_the_keys_of_the_state_are_the_same_at_every_step(unbroken):
    def keys(state):
        return {key: keys(value) for key, value in state.items()} if isinstance(state, dict) else None

    states = [json.loads(scheduler) for _, _, scheduler in unbroken[2]]
    assert all(keys(state) == keys(states[0]) for state in states)


def test_the_state_and_the_targets_are_copies_and_a_decided_onset_leaves_no_reference_behind():
    model = sites_alone(torch.tensor([2.0, 3.0]), num_parameters=2)
    scheduler = HardnessScheduler(model, 8, start=Settled(patience=1), target={"0": [8.0, 9.0]})
    for _ in range(3):
        scheduler.step(1.0)
    scheduler.set_targets({"0": [9.0, 10.0]})
    expected = copy.deepcopy(scheduler.state_dict())
    assert expected["settling"]["hardness"] == {"0": []} != expected["learned_hardness"]
    state = scheduler.state_dict()
    for values in (*(state[k]["0"] for k in ("targets", "present_targets", "path_hardness")), scheduler.targets["0"]):
        values[0] = 99.0
    state["path_tick"]["0"] = 99
    assert scheduler.state_dict() == expected


def test_a_copy_of_a_run_with_rules_goes_on_by_itself(unbroken):
    schedule, trace, _ = unbroken
    run = Run(schedule)
    assert run.go(range(9)) == trace[:9]
    for twin in (copy.deepcopy(run), pickle.loads(pickle.dumps(run))):
        assert twin.go(range(9, STEPS)) == trace[9:]
    assert run.go(range(9, STEPS)) == trace[9:]


def started(**changes):
    """A state in the middle of hardening with every rule, changed."""
    model = sites_alone(2.0, 3.0)
    scheduler = HardnessScheduler(model, 8, **RULES)
    for _ in range(4):
        scheduler.step(1.0)
    scheduler.set_targets(9.0)
    state = copy.deepcopy(scheduler.state_dict())
    for key, value in changes.items():
        outer, _, inner = key.partition("__")
        if inner:
            state[outer][inner] = value
        else:
            state[key] = value
    return state


RULES = {"start": Settled(patience=1, latest=4), "end": Remaining(1.0), "rate": AllowedLoss(0.1), "target": 8.0}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (started(start=0.25), "start differs: the state has 0.25, this scheduler {'patience': 1"),
        (started(start__patience=2), "start differs"),
        (started(rate__allowed=0.2), "rate differs"),
        (started(rate=None), "rate differs: the state has None"),
        (started(end=1.0), "end differs"),
        (started(targets__0=9.0), "targets differs"),
        (started(onset=5), "onset must be None or from 0 to 4, got 5"),
        (started(onset=None), "onset must be known at step 4, got None"),
        (started(onset=-1), "onset must be None or from 0 to 4, got -1"),
        (started(present_targets={"0": 9.0}), r"missing \['1'\]"),
        (started(present_targets={"0": 9.0, "1": -1.0}), "target of '1' must be finite and positive"),
        (started(path_tick={"0": 7, "1": 0}), "path_tick of '0' must be an int from 0 to 2, got 7"),
        (started(path_tick={"0": 0}), "not one that state_dict"),
        (started(path_hardness={"0": [2.0, 3.0], "1": []}), "path_hardness must have"),
        (started(path_hardness={"act": [2.0]}), "path_hardness must have"),
        (started(path_hardness={"0": [math.nan], "1": [2.0]}), "nan"),
        (started(pace__gone=9), "pace.gone must be from 0 to 2 at step 4, got 9"),
        (started(pace__gone=-1), "pace must count steps"),
        (started(pace={"speed": 1}), "not one that state_dict"),
        (started(pace__waits="no"), "pace must count steps"),
        (started(pace__reference=math.nan), "pace.reference must be None or a finite number, got nan"),
        (started(settling__metric="0.5"), "settling.metric must be None or a finite number, got '0.5'"),
        (started(settling={"streak": 1, "metric": 1.0, "hardness": {"0": [2.0]}}), "settling.hardness must have"),
        (started(settling=None), "not one that state_dict"),
        (started(step=2), "pace.gone must be|path_tick"),
    ],
)
def test_a_state_of_another_plan_is_refused_by_name_and_changes_nothing(state, words):
    model = sites_alone(2.0, 3.0)
    scheduler = HardnessScheduler(model, 8, **RULES)
    scheduler.step(2.0)
    before = scheduler.state_dict()
    with pytest.raises(ValueError, match=words):
        scheduler.load_state_dict(state)
    assert scheduler.state_dict() == before and not any(site.is_frozen for site in model)
    with pytest.raises(TypeError, match="state_dict must be a mapping, got list"):
        scheduler.load_state_dict([])
    scheduler.load_state_dict(started())
    assert scheduler.phase == "harden" and scheduler.targets == {"0": 9.0, "1": 9.0}


@pytest.mark.parametrize("step", [1, 2, 5, 8, 11])
def test_a_state_of_a_version_without_rules_resumes_as_it_did(step):
    model, reference = sites_alone(2.0, 3.0), sites_alone(2.0, 3.0)
    plan = {"start": 0.2, "end": 0.8, "target": 9.0, "schedule": "geometric"}
    unbroken = HardnessScheduler(reference, 10, **plan)
    trace(reference, unbroken, [None] * step)
    old = {"total_steps": 10, "start": 0.2, "end": 0.8, "schedule": "geometric", "targets": {"0": 9.0, "1": 9.0}}
    learned = {"0": [2.0], "1": [3.0]} if step >= 2 else {"0": [], "1": []}
    scheduler = HardnessScheduler(model, 10, **plan)
    scheduler.load_state_dict({**old, "step": step, "learned_hardness": learned})
    assert scheduler.phase == unbroken.phase
    rest = max(0, 10 - step)
    assert trace(model, scheduler, [None] * rest) == pytest.approx(trace(reference, unbroken, [None] * rest), rel=1e-12)
    with pytest.raises(ValueError, match="rate differs"):
        HardnessScheduler(sites_alone(2.0, 3.0), 10, **plan, rate=AllowedLoss(1.0)).load_state_dict(
            {**old, "step": step, "learned_hardness": learned}
        )
