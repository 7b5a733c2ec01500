"""Hardening, whatever happens on the way."""

import json
import math
import warnings

import pytest
import torch
from networks import hardness_of, sites_alone

from lambda_gelu import AllowedLoss, HardnessScheduler, Remaining, Settled

pytest.importorskip("hypothesis")
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.one_of(st.none(), st.floats(0, 3)), min_size=12, max_size=12),
    st.floats(0.05, 0.95),
    st.sampled_from(["lowest", "last"]),
    st.integers(0, 10),
)
def test_a_rate_by_loss_keeps_its_promises_for_any_losses(losses, waiting, reference, start):
    model = sites_alone(2.0)
    scheduler = HardnessScheduler(
        model, 12, start=start, target=8.0, rate=AllowedLoss(0.5, waiting=waiting, reference=reference)
    )
    best, last, before, forced = math.inf, None, 2.0, 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for loss in losses:
            scheduler.step(loss)
            present = model[0].hardness.item()
            assert present >= before
            forced += present > before and (last is None or last > best + 0.5)  # it went on against the loss
            assert scheduler.forced_steps == forced
            before, last = present, last if loss is None else loss
            if loss is None:
                continue
            if present == 2.0 or (reference == "last" and loss <= best + 0.5):
                best = loss
            elif reference == "lowest":
                best = min(best, loss)
    assert model[0].hardness.item() == 8.0 and scheduler.phase == "done" and scheduler.forced_steps == forced


TARGETS = st.one_of(st.floats(1.5, 60), st.lists(st.floats(1.5, 60), min_size=2, max_size=2))
EVENTS = st.one_of(
    st.tuples(st.just("step"), st.none() | st.floats(0.5, 2)),
    st.tuples(st.just("report"), st.floats(0.5, 2)),
    st.tuples(st.just("set_targets"), st.fixed_dictionaries({"0": TARGETS, "1": TARGETS})),
)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(EVENTS, max_size=12),
    st.sampled_from([3, 0.4, Settled(patience=1, metric_tolerance=0.5, latest=0.6)]),
    st.sampled_from([0.9, Remaining(0.5)]),
    st.sampled_from([None, AllowedLoss(0.2, waiting=0.3)]),
    st.sampled_from(["linear", "geometric", "harmonic", "cosine"]),
)
def test_a_run_resumed_after_every_event_is_the_same_never_falls_and_ends_at_its_targets(
    events, start, end, rate, schedule
):
    def new_run():
        model = sites_alone(torch.tensor([1.5, 4.0]), torch.tensor([2.0, 2.0]), num_parameters=2)
        return model, HardnessScheduler(model, 10, start=start, end=end, rate=rate, schedule=schedule)

    def happens(run, event, argument):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            getattr(run, event)(argument)

    model, unbroken = new_run()
    lowest = hardness_of(model)
    for event, argument in [*events, *[("step", None)] * 10]:
        resumed_model, resumed = new_run()
        resumed_model.load_state_dict(model.state_dict())
        resumed.load_state_dict(json.loads(json.dumps(unbroken.state_dict())))
        for run in (unbroken, resumed):
            happens(run, event, argument)
        assert hardness_of(resumed_model) == hardness_of(model)
        assert resumed.state_dict() == unbroken.state_dict()
        present = hardness_of(model)
        assert all(now >= then for a, b in zip(present, lowest, strict=True) for now, then in zip(a, b, strict=True))
        lowest = present
    assert unbroken.phase == "done"
    for name, site in unbroken.get_last_hardness().items():
        target = torch.tensor(unbroken.targets[name], dtype=torch.float64).expand(2)
        assert (site.cpu() >= target).all()
        last_moves = unbroken.state_dict()["path_hardness"][name] or unbroken.state_dict()["learned_hardness"][name]
        assert torch.equal(site.cpu(), target.maximum(torch.tensor(last_moves, dtype=torch.float64)))
