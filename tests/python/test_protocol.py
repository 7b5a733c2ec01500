"""Substitution: calibrate, harden, swap and recover beside a training loop."""

import copy
import io
import math
import warnings

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from lambda_gelu import (
    AllowedLoss,
    Distillation,
    HardnessCapWarning,
    HardnessScheduler,
    LambdaGELU,
    Settled,
    ShadowScore,
    Substitution,
    Teacher,
    distillation_loss,
    find_sites,
    keep_optimizer_,
    observe,
    param_groups,
    relu_substituted,
    site_weights,
    suggest_targets,
    to_relu_,
)

STEPS = 24
PLAN = {"total_steps": STEPS, "start": 0.25, "harden": 0.5, "calibrate": 4, "every": 1, "recover": 6}
ONSET, SWAP = 6, 18  # λ is at its target at step 15

X = torch.randn(STEPS, 16, 4, generator=torch.Generator().manual_seed(0))
Y = X.prod(-1).sign().long().clamp(min=0)


def make_model(per_channel=False):
    torch.manual_seed(0)
    n = 8 if per_channel else 1
    model = nn.Sequential(nn.Linear(4, 8), LambdaGELU(n), nn.Dropout(0.1), nn.Linear(8, 8), LambdaGELU(n))
    return model.append(nn.Linear(8, 2))


def make(model=None, **options):
    model = make_model() if model is None else model
    optimizer = torch.optim.AdamW(param_groups(model, lr=0.01, lr_multiplier=1.0, weight_decay=0.1))
    return model, optimizer, Substitution(model, optimizer, **{**PLAN, **options})


def train_step(model, optimizer, step, extra=lambda: 0.0):
    torch.manual_seed(100 + step)
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(X[step]), Y[step]) + extra()
    loss.backward()
    optimizer.step()
    return loss.item()


def run(model, optimizer, substitution, begin=0, end=STEPS, *, validate=None):
    losses = []
    for step in range(begin, end):
        losses.append(train_step(model, optimizer, step, substitution.extra_loss))
        substitution.step()
        if validate is not None and step % 3 == 2:
            substitution.validate(validate)
    return losses


@torch.no_grad()
def loss_of(model):
    model.eval()
    value = nn.functional.cross_entropy(model(X.flatten(0, 1)), Y.flatten())
    model.train()
    return value


def calibrate(model):
    model.eval()
    model(X.flatten(0, 1))


def same_weights(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(
        torch.equal(value.nan_to_num(), theirs[key].nan_to_num()) for key, value in ours.items()
    )


def hardness(model):
    return [site.hardness.tolist() for site in find_sites(model).values()]


# --- what it does, beside the same done by hand ----------------------------------------------------------------------


def test_the_stages_follow_the_plan():
    model, optimizer, substitution = make()
    stages, frozen = [], []
    for step in range(STEPS):
        stages.append(substitution.stage)
        frozen.append([m.is_frozen for m in model.modules() if isinstance(m, LambdaGELU)])
        run(model, optimizer, substitution, step, step + 1)
    assert stages == ["learn"] * ONSET + ["harden"] * (SWAP - ONSET) + ["recover"] * (STEPS - SWAP)
    assert frozen == [[False] * 2] * ONSET + [[True] * 2] * (SWAP - ONSET) + [[]] * (STEPS - SWAP)
    assert substitution.stage == "done" and substitution.swap_step == SWAP
    assert [type(module) for module in model][1::3] == [nn.ReLU, nn.ReLU]
    substitution.step()  # one more does nothing
    assert substitution.stage == "done"


def test_it_is_what_its_parts_do_by_hand():
    model, optimizer, substitution = make(follow=False)
    run(model, optimizer, substitution)

    other = make_model()
    its_optimizer = torch.optim.AdamW(param_groups(other, lr=0.01, lr_multiplier=1.0, weight_decay=0.1))
    for step in range(ONSET - 4):
        train_step(other, its_optimizer, step)
    with observe(other) as statistics:
        for step in range(ONSET - 4, ONSET):
            train_step(other, its_optimizer, step)
    targets = suggest_targets(statistics, 30.0)
    scheduler = HardnessScheduler(other, STEPS - ONSET, start=0.0, end=0.5, target=targets, schedule="geometric")
    for step in range(ONSET, SWAP):
        train_step(other, its_optimizer, step)
        scheduler.step()
    assert hardness(other) == [[pytest.approx(targets[name])] for name in ("1", "4")]
    to_relu_(other)
    keep_optimizer_(its_optimizer, other)
    for step in range(SWAP, STEPS):
        train_step(other, its_optimizer, step)
    assert same_weights(model, other)


def test_every_site_has_its_ser_on_the_tensors_when_it_is_swapped():
    model, optimizer, substitution = make()
    run(model, optimizer, substitution, end=SWAP - 1)
    train_step(model, optimizer, SWAP - 1)
    inputs = {}
    handles = [
        site.register_forward_pre_hook(lambda module, args, name=name: inputs.update({name: args[0].detach()}))
        for name, site in find_sites(model).items()
    ]
    with torch.no_grad():
        model(X[:SWAP].flatten(0, 1))
    for handle in handles:
        handle.remove()
    for name, site in find_sites(model).items():
        relu = inputs[name].double().clamp(min=0)
        error = relu - site(inputs[name]).detach().double()
        assert 10 * math.log10(relu.square().mean() / error.square().mean()) == pytest.approx(30, abs=1.5)


def test_targets_follow_the_activations_unless_told_not_to():
    def targets_after_a_change(follow):
        model = make_model()
        substitution = Substitution(model, **PLAN, follow=follow, calibration=calibrate, cap=1000.0)
        for _ in range(ONSET):
            substitution.step()
        first = substitution.scheduler.targets["1"]
        with torch.no_grad():
            model[0].weight.div_(2)
            model[0].bias.div_(2)
        for _ in range(4):
            substitution.step()
        return first, substitution.scheduler.targets["1"]

    first, then = targets_after_a_change(follow=False)
    assert then == first
    first, then = targets_after_a_change(follow=True)
    assert then == pytest.approx(2 * first, rel=1e-3)  # f(x; λ) = GELU(λx)/λ: half the size asks for twice the λ


def test_targets_of_ones_own_and_a_cap():
    model, optimizer, substitution = make(targets=lambda statistics: dict.fromkeys(statistics, 5.0))
    run(model, optimizer, substitution, end=SWAP - 1)
    assert hardness(model) == [[5.0], [5.0]]
    model, optimizer, substitution = make(cap=3.0)
    with pytest.warns(HardnessCapWarning) as record:
        run(model, optimizer, substitution)
    assert len(record) == 1  # not at every update
    assert [site.hardness_max for site in substitution.report().sites] == [3.0, 3.0]


def test_per_channel_every_channel_has_its_target():
    model, optimizer, substitution = make(make_model(per_channel=True), per="channel", cap=1000.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", HardnessCapWarning)
        run(model, optimizer, substitution, end=ONSET)
    targets = substitution.scheduler.targets
    assert [len(set(target)) for target in targets.values()] == [8, 8]


def test_calibration_data_take_the_place_of_what_training_sees():
    calls = []

    def calibration(model):
        assert not torch.is_grad_enabled()
        model.eval()
        calls.append(torch.rand(1))
        model(X.flatten(0, 1))

    model, optimizer, substitution = make(calibration=calibration)
    twin, its_optimizer, plain = make()
    run(model, optimizer, substitution, end=ONSET)
    run(twin, its_optimizer, plain, end=ONSET)
    assert len(calls) == 1 and substitution.statistics is None
    assert model.training and all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    with torch.no_grad(), observe(twin) as statistics:
        calibration(twin)
    assert substitution.scheduler.targets == suggest_targets(statistics, 30.0)


def test_hardening_from_the_first_step_needs_calibration_data():
    with pytest.raises(ValueError, match="start leaves no step to observe before hardening: give calibration"):
        make(start=0.0)
    model, _, substitution = make(start=0.0, calibration=lambda model: model(X[0]))
    assert substitution.stage == "harden"
    with observe(model.eval()) as statistics:
        model(X[0])
    assert substitution.scheduler.targets == suggest_targets(statistics, 30.0)


def test_calibration_leaves_running_means_and_modes_alone():
    model = make_model()
    model.insert(1, nn.BatchNorm1d(8))
    model[1].eval()
    before = copy.deepcopy(model)
    make(model, start=0, calibration=lambda model: model(X[0]))
    assert torch.equal(model[1].running_mean, before[1].running_mean)
    assert [module.training for module in model] == [module.training for module in before]


# --- validation ------------------------------------------------------------------------------------------------------


def test_validation_scores_both_networks_and_does_not_count_for_the_targets():
    model, optimizer, substitution = make()
    twin, its_optimizer, plain = make()
    run(model, optimizer, substitution, end=5)
    run(twin, its_optimizer, plain, end=5)
    model[2].eval()
    score = substitution.validate(lambda model: loss_of(model.eval()))
    assert [module.training for module in model] == [True, True, False, True, True, True]
    model[2].train()
    copied = copy.deepcopy(model)
    assert score.as_is == loss_of(copied).item()
    to_relu_(copied)
    assert score.as_relu == loss_of(copied).item()
    run(model, optimizer, substitution, 5, ONSET)
    run(twin, its_optimizer, plain, 5, ONSET)
    assert substitution.scheduler.targets == plain.scheduler.targets


def test_the_report_has_the_metric_at_every_stage():
    options = {"evaluate": loss_of, "higher_is_better": False, "metric_name": "loss", "follow": False}
    model, optimizer, substitution = make(**options)
    run(model, optimizer, substitution, end=SWAP - 1)
    with pytest.raises(RuntimeError, match="nothing is swapped yet: the swap is at step 18, this is 17"):
        substitution.report()
    train_step(model, optimizer, SWAP - 1)
    before = loss_of(model).item()  # λ is at its target since step 15
    with relu_substituted(model):
        swapped = loss_of(model).item()
    substitution.step()
    assert substitution.report().metrics == {"before": pytest.approx(before), "swapped": pytest.approx(swapped)}
    run(model, optimizer, substitution, SWAP)
    report = substitution.report()
    assert report.metrics["recovered"] == loss_of(model).item()
    assert (report.metric_name, report.higher_is_better) == ("loss", False)
    assert report.substituted == ("1", "4")


def test_without_an_evaluation_the_report_has_that_of_the_last_validations():
    model, optimizer, substitution = make()
    run(model, optimizer, substitution, end=15)
    last = substitution.validate(loss_of)
    run(model, optimizer, substitution, 15, 20)
    assert substitution.report().metrics == {"before": last.as_is, "swapped": last.as_relu}
    recovered = substitution.validate(loss_of)
    assert substitution.report().metrics["recovered"] == recovered.as_is == recovered.as_relu


def test_the_best_relu_network_is_kept_once_the_targets_are_reached():
    model, optimizer, substitution = make(keep_best=True, higher_is_better=False, tolerance_db=25.0)
    kept = []
    for step in range(STEPS):
        run(model, optimizer, substitution, step, step + 1)
        substitution.validate(loss_of)
        kept.append(substitution.best.best)
    first = next(step for step, best in enumerate(kept) if best is not None)
    assert first > ONSET
    scores = [best.score for best in kept[first:]]
    assert scores == sorted(scores, reverse=True)
    _, _, resumed = make(keep_best=True, higher_is_better=False, tolerance_db=25.0)
    resumed.load_state_dict(copy.deepcopy(substitution.state_dict()))
    assert resumed.best.best == substitution.best.best
    for each in (substitution, resumed):
        each.best.load_()
        assert loss_of(each.best._model).item() == pytest.approx(each.best.best.score)


def test_a_capped_site_is_asked_for_what_its_cap_reaches():
    model, optimizer, substitution = make(keep_best=True, higher_is_better=False, cap=2.5, follow=False)
    with pytest.warns(HardnessCapWarning):
        run(model, optimizer, substitution, end=ONSET)
    required = substitution.best.tolerance_db
    assert all(5 < value < 30 for value in required.values())


def test_hardening_starts_when_lambda_and_metric_have_settled():
    settled = Settled(patience=2, hardness_tolerance=0.5, metric_tolerance=0.5, latest=0.4)
    model, optimizer, substitution = make(start=settled, recover=2)
    run(model, optimizer, substitution, end=4)
    for expected in ("learn", "learn", "harden"):
        substitution.validate(lambda model: 1.0)
        assert substitution.stage == expected
    assert substitution.scheduler.onset_step == 4
    # one whole window, of 4 steps
    assert all(histogram.count == 4 * 16 * 8 for histogram in substitution.statistics.values())
    assert substitution.scheduler.targets == suggest_targets(substitution.statistics, 30.0)
    # At the latest, where nobody reports:
    model, optimizer, substitution = make(start=settled, recover=2)
    run(model, optimizer, substitution, end=9)
    assert substitution.stage == "learn"
    run(model, optimizer, substitution, 9, 10)
    assert substitution.stage == "harden" and substitution.scheduler.onset_step == 10


def test_a_rate_by_loss_is_told_the_validation():
    rate = AllowedLoss(0.1)
    for higher_is_better, sign in ((False, 1.0), (True, -1.0)):
        model, optimizer, substitution = make(rate=rate, higher_is_better=higher_is_better)
        run(model, optimizer, substitution, end=ONSET)
        substitution.validate(lambda model, sign=sign: sign * 1.0)
        run(model, optimizer, substitution, ONSET, ONSET + 1)
        before = hardness(model)
        substitution.validate(lambda model, sign=sign: sign * 1.2)  # too much worse
        run(model, optimizer, substitution, ONSET + 1, ONSET + 2)
        assert hardness(model) == before


# --- the swap --------------------------------------------------------------------------------------------------------


def weights_of(model):
    return site_weights(model, lambda model: nn.functional.cross_entropy(model.eval()(X[0]), Y[0]))


def relu_at_4(model):
    """1 where the last site computes ReLU: a metric to which the other site does nothing."""
    with torch.no_grad():
        model(X.flatten(0, 1))
    return float(model[4](torch.tensor(-1e-3)) == 0)


PARTLY = {"max_loss": 0.5, "evaluate": relu_at_4, "higher_is_better": False}
CORRECTED = {"correction": "bias", "calibration": calibrate, "evaluate": loss_of, "higher_is_better": False}


def test_what_the_swap_evaluates_leaves_random_numbers_and_modes_alone():
    def evaluate(model):
        torch.rand(3)
        return loss_of(model.train())

    model, optimizer, substitution = make(**{**CORRECTED, "evaluate": evaluate})
    run(model, optimizer, substitution, end=SWAP - 1)
    model[2].eval()
    before = torch.get_rng_state()
    substitution.step()
    assert torch.equal(torch.get_rng_state(), before) and substitution.stage == "recover"
    assert [module.training for module in model] == [True, True, False, True, True, True]


def test_what_runs_unobserved_does_not_count():
    model, optimizer, substitution = make()
    run(model, optimizer, substitution, end=4)
    counts = [histogram.count for histogram in substitution.statistics.values()]
    with substitution.unobserved(), substitution.unobserved():
        model(X[0])
    assert [histogram.count for histogram in substitution.statistics.values()] == counts == [2 * 16 * 8] * 2
    model(X[0])
    assert [histogram.count for histogram in substitution.statistics.values()] == [3 * 16 * 8] * 2


@pytest.mark.parametrize(("every", "calls"), [(1, 4), (2, 2), (3, 2), (4, 1), (100, 1)])
def test_every_nth_call_is_observed_and_at_least_one_before_the_targets(every, calls):
    model, optimizer, substitution = make(every=every)
    run(model, optimizer, substitution, end=4)
    substitution.validate(loss_of)  # between which nothing counts, and no call
    run(model, optimizer, substitution, 4, ONSET)
    assert substitution.statistics["1"].count == calls * 16 * 8


def test_the_swap_is_that_of_to_relu_with_the_same_options():
    model, optimizer, substitution = make(**CORRECTED, tolerance_db=5.0, follow=False)
    run(model, optimizer, substitution, end=SWAP - 1)
    train_step(model, optimizer, SWAP - 1)
    other = copy.deepcopy(model)
    options = {key: value for key, value in CORRECTED.items() if key != "calibration"}
    expected = to_relu_(other, **options, calibrate=calibrate)
    substitution.step()
    assert substitution.report() == expected
    assert {"before", "swapped", "corrected"} == substitution.report().metrics.keys()
    assert same_weights(model, other) and model.training


def test_a_gelu_network_is_swapped_before_the_first_step_and_recovers_for_all_of_them():
    options = {**CORRECTED, "distillation": Distillation(), "activation_l1": 0.1, "weights": weights_of}
    model, optimizer, substitution = make(**options)
    before, gelu = loss_of(model).item(), copy.deepcopy(model)
    report = substitution.swap()
    assert substitution.stage == "recover" and substitution.swap_step == 0
    assert report.metrics["before"] == before and set(report.metrics) == {"before", "swapped", "corrected"}
    expected = {name: weight.cost for name, weight in weights_of(gelu).items()}
    assert {site.name: site.predicted_cost for site in report.sites} == pytest.approx(expected, rel=1e-2)
    assert all(site.measured_ser_db is not None for site in report.sites)
    factors = []
    for step in range(STEPS):
        factors.append(substitution._penalty.factor)
        run(model, optimizer, substitution, step, step + 1)
    assert factors == pytest.approx([0.1 * step / STEPS for step in range(STEPS)])
    assert substitution.report().metrics["recovered"] == loss_of(model).item() < report.metrics["swapped"]
    with pytest.raises(RuntimeError, match="the sites are ReLU already, since step 0"):
        substitution.swap()


def test_a_swap_before_its_time_resumes_too():
    model, optimizer, substitution = make(distillation=Distillation(), activation_l1=0.1)
    run(model, optimizer, substitution, end=9)
    substitution.swap()
    state = copy.deepcopy([x.state_dict() for x in (substitution, model, optimizer)])
    run(model, optimizer, substitution, 9, 14)
    resumed, its_optimizer, again = make(distillation=Distillation(), activation_l1=0.1)
    for each, its_state in zip((again, resumed, its_optimizer), state, strict=True):
        each.load_state_dict(its_state)
    assert again.swap_step == 9 and again.stage == "recover"
    run(resumed, its_optimizer, again, 9, 14)
    assert same_weights(resumed, model)
    assert_same(again.state_dict(), substitution.state_dict())


def test_several_optimizers_lose_their_lambda():
    model = make_model()
    halves = [torch.optim.SGD(model[:3].parameters(), lr=0.1), torch.optim.SGD(model[3:].parameters(), lr=0.1)]
    substitution = Substitution(model, halves, **PLAN)
    substitution.swap()
    left = [parameter for each in halves for group in each.param_groups for parameter in group["params"]]
    assert set(left) == set(model.parameters()) and len(left) == 6


def test_a_site_that_costs_too_much_stays_and_keeps_its_lambda_in_the_optimizer():
    model, optimizer, substitution = make(**PARTLY, keep_best=True, activation_l1=0.1, tolerance_db=10.0)
    run(model, optimizer, substitution, end=SWAP)
    report = substitution.report()
    assert (report.substituted, report.left) == (("1",), ("4",))
    assert list(find_sites(model)) == ["4"] and model[4].is_frozen
    assert optimizer.param_groups[1]["params"] == [model[4].raw_hardness]
    before = hardness(model)
    run(model, optimizer, substitution, SWAP, SWAP + 2)
    assert hardness(model) == before
    score = substitution.validate(relu_at_4)
    assert (score.as_is, score.as_relu) == (0.0, 1.0)
    assert substitution.best.best.step == SWAP + 2


# --- recovery --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: torch.compile(model, backend="eager")])
def test_the_extra_loss_is_that_of_the_teacher_and_of_the_activations(wrap):
    model = make_model()
    optimizer = torch.optim.AdamW(param_groups(model, lr=0.01))
    wrapped = wrap(model)
    distillation = Distillation(weight=0.5, temperature=2.0)
    substitution = Substitution(wrapped, optimizer, **PLAN, distillation=distillation, activation_l1=0.3)
    assert substitution.extra_loss().item() == 0.0
    for step in range(SWAP):
        if step == SWAP - 1:
            train_step(wrapped, optimizer, step)
            teacher = Teacher(model)
        else:
            train_step(wrapped, optimizer, step, substitution.extra_loss)
        substitution.step()
    train_step(wrapped, optimizer, SWAP, substitution.extra_loss)
    substitution.step()

    model.eval()
    logits = wrapped(X[0])
    extra = substitution.extra_loss()
    with torch.no_grad():
        relu, x = [], X[0]
        for module in model:
            x = module(x)
            if isinstance(module, nn.ReLU):
                relu.append(x.mean())
    expected = 0.5 * distillation_loss(logits, teacher(X[0]), 2.0) + 0.3 * (1 / 6) * sum(relu)
    torch.testing.assert_close(extra, expected)
    assert extra.requires_grad
    with pytest.raises(RuntimeError, match="no forward with gradient since the last"):
        substitution.extra_loss()
    with torch.no_grad():
        wrapped(X[0])
    with pytest.raises(RuntimeError, match="no forward with gradient since the last"):
        substitution.extra_loss()


def test_after_the_training_no_hook_is_left():
    model, optimizer, substitution = make(distillation=Distillation(), activation_l1=0.1)
    run(model, optimizer, substitution, end=STEPS - 1)
    assert model._forward_hooks and model[1]._forward_hooks
    copy.deepcopy(model)  # an average of weights makes copies
    run(model, optimizer, substitution, STEPS - 1)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert substitution.extra_loss().item() == 0.0


def test_a_compiled_model_is_not_compiled_for_every_step():
    counter = CompileCounterWithBackend("eager")
    model = make_model()
    optimizer = torch.optim.AdamW(param_groups(model, lr=0.01))
    compiled = torch.compile(model, backend=counter)
    substitution = Substitution(compiled, optimizer, **PLAN, keep_best=True, higher_is_better=False)
    frames = []
    for step in range(0, STEPS, 3):
        run(compiled, optimizer, substitution, step, step + 3)
        substitution.validate(loss_of)
        frames.append(counter.frame_count)
    # Trained observed and not, evaluated observed and as ReLU; then the ReLU network, trained and evaluated.
    assert frames[0] == frames[SWAP // 3 - 2] <= 4 and frames[-1] == frames[-2] <= 6


# --- resuming --------------------------------------------------------------------------------------------------------


PROTOCOLS = {
    "plain": {},
    "everything": {
        "evaluate": loss_of,
        "higher_is_better": False,
        "distillation": Distillation(0.5, 2.0),
        "activation_l1": 0.1,
        "keep_best": True,
        "tolerance_db": 20.0,
    },
    "settled": {"start": Settled(patience=1, metric_tolerance=0.5, hardness_tolerance=0.5, latest=8), "recover": 4},
    "calibration": {"calibration": calibrate},
    "no recovery": {"recover": 0},
    "every third": {"every": 3},
    "rate": {"rate": AllowedLoss(0.01), "higher_is_better": False},
    "partly swapped": PARTLY,
    "corrected": CORRECTED,
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_run_resumed_at_any_step_equals_an_unbroken_one_to_the_bit(name):
    options = PROTOCOLS[name]
    model, optimizer, substitution = make(**options)
    checkpoints, losses = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a rate that has to go on
        for step in range(STEPS):
            checkpoints.append(io.BytesIO())
            state = {
                "substitution": substitution.state_dict(),
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            torch.save(state, checkpoints[-1])
            losses += run(model, optimizer, substitution, step, step + 1, validate=loss_of)
        for begin, file in enumerate(checkpoints):
            file.seek(0)
            state = torch.load(file, weights_only=True)
            resumed, its_optimizer, again = make(**options)
            again.load_state_dict(state["substitution"])
            resumed.load_state_dict(state["model"])
            its_optimizer.load_state_dict(state["optimizer"])
            assert again.stage == state["substitution"]["stage"]
            # One more step, and the rest from some: whatever differs shows in the state after it.
            end = STEPS if begin % 5 == 0 else begin + 1
            assert run(resumed, its_optimizer, again, begin, end, validate=loss_of) == losses[begin:end]
            if end == STEPS:
                assert same_weights(resumed, model)
                assert again.state_dict().keys() == substitution.state_dict().keys()
                assert_same(again.state_dict(), substitution.state_dict())
                assert_same(its_optimizer.state_dict(), optimizer.state_dict())


def assert_same(ours, theirs):
    if isinstance(theirs, torch.Tensor):
        assert torch.equal(ours.nan_to_num(), theirs.nan_to_num())
    elif isinstance(theirs, dict):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert_same(ours[key], value)
    elif isinstance(theirs, (list, tuple)):
        assert len(ours) == len(theirs)
        for mine, other in zip(ours, theirs, strict=True):
            assert_same(mine, other)
    else:
        assert ours == theirs


def states_by_stage():
    model, optimizer, substitution = make()
    states = {}
    for step in range(STEPS):
        states.setdefault(substitution.stage, copy.deepcopy(substitution.state_dict()))
        run(model, optimizer, substitution, step, step + 1)
    return states | {"done": copy.deepcopy(substitution.state_dict())}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"total_steps": 25}, "total_steps differs: the state has 24, this protocol 25"),
        ({"start": 0.3}, "start differs: the state has 0.25, this protocol 0.3"),
        ({"recover": 5}, "swap_step differs: the state has 18, this protocol 19"),
        ({"tolerance_db": 40.0}, "tolerance_db differs: the state has 30.0, this protocol 40.0"),
        ({"schedule": "linear"}, "schedule differs: the state has 'geometric', this protocol 'linear'"),
        ({"distillation": Distillation()}, r"distillation differs: the state has None, this protocol \[1.0, 1.0\]"),
        ({"activation_l1": 1.0}, "activation_l1 differs"),
        ({"keep_best": True, "higher_is_better": True}, "higher_is_better differs"),
    ],
)
@pytest.mark.parametrize("stage", ["harden", "recover"])
def test_a_checkpoint_of_another_plan_is_refused_and_nothing_is_changed(options, words, stage):
    state = states_by_stage()[stage]
    model, optimizer, substitution = make(**options)
    before, own = copy.deepcopy(model), copy.deepcopy(substitution.state_dict())
    with pytest.raises(ValueError, match=words):
        substitution.load_state_dict(state)
    assert same_weights(model, before) and substitution.stage == "learn"
    assert_same(substitution.state_dict(), own)
    assert len(optimizer.param_groups[1]["params"]) == 2


def test_a_checkpoint_of_another_model_is_refused():
    state = states_by_stage()["harden"]
    model = nn.Sequential(nn.Linear(4, 8), LambdaGELU(), nn.Linear(8, 2))
    _, _, substitution = make(model)
    with pytest.raises(ValueError, match=r"sites differs: the state has \{'1': 1, '4': 1\}, this protocol \{'1': 1\}"):
        substitution.load_state_dict(state)
    assert not model[1].is_frozen
    with pytest.raises(ValueError, match="state_dict lacks plan"):
        substitution.load_state_dict({key: value for key, value in state.items() if key != "plan"})
    with pytest.raises(ValueError, match="statistics of another model"):
        _, _, other = make()
        present = {**state["present"], "sites": {"1": state["present"]["sites"]["1"]}}
        other.load_state_dict({**state, "present": present})
    assert other.stage == "learn"


def test_a_checkpoint_from_before_the_swap_does_not_fit_a_relu_network():
    states = states_by_stage()
    model, optimizer, substitution = make()
    run(model, optimizer, substitution)
    for stage in ("learn", "harden"):
        with pytest.raises(
            ValueError, match=f"the state is of stage '{stage}', before the swap, but the model is a ReLU"
        ):
            substitution.load_state_dict(states[stage])
        assert substitution.stage == "done"
    substitution.load_state_dict(states["recover"])  # back to the swap
    assert substitution.stage == "recover"
    options = {"distillation": Distillation(), "activation_l1": 0.1}
    model, optimizer, substitution = make(**options)
    run(model, optimizer, substitution, end=SWAP)
    state = copy.deepcopy(substitution.state_dict())
    run(model, optimizer, substitution, SWAP)
    substitution.load_state_dict(state)  # with its hooks, once each
    assert [len(module._forward_hooks) for module in (model, model[1], model[4])] == [1, 1, 1]
    run(model, optimizer, substitution, SWAP)


def test_a_checkpoint_of_another_teacher_is_refused():
    options = {"distillation": Distillation()}
    model, optimizer, substitution = make(**options)
    run(model, optimizer, substitution, end=SWAP)
    state = substitution.state_dict()
    state["teacher"] = {key: value for key, value in state["teacher"].items() if key != "0.weight"}
    other, _, again = make(**options)
    before = copy.deepcopy(other)
    with pytest.raises(ValueError, match=r"the teacher of the state is of another model: [\s\S]*0\.weight"):
        again.load_state_dict(state)
    assert same_weights(other, before) and again.stage == "learn"


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::lambda_gelu.HardnessCapWarning")
def test_targets_without_data_are_refused_by_name_and_the_training_may_go_on():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.unused = make_model(), LambdaGELU()
            self.uses_all = False

        def forward(self, x):
            y = self.body(x)
            return self.unused(y) if self.uses_all else y

    def due(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        substitution = Substitution(model, optimizer, **PLAN)
        for _ in range(ONSET - 1):
            substitution.step()
        return substitution

    def refused(model, substitution, words):
        before = copy.deepcopy(model)
        state = copy.deepcopy(substitution.state_dict())
        with pytest.raises(ValueError, match=words):
            substitution.step()
        assert same_weights(model, before) and substitution.stage == "learn"
        assert_same(substitution.state_dict(), state)

    model = make_model()
    substitution = due(model)
    refused(model, substitution, "targets: there is no calibration data")
    with torch.no_grad():
        model(X[0])
    substitution.step()
    assert substitution.stage == "harden"

    model = Branches()
    substitution = due(model)
    model(X[0])
    refused(model, substitution, "never executed while it was observed: unused")
    model.uses_all = True
    model(X[0])
    substitution.step()
    assert substitution.stage == "harden"

    model = make_model()
    substitution = due(model)
    model(X[0] * math.nan)
    refused(model, substitution, r"activations that are NaN or infinite at 1 \(128\), 4 \(128\)")
    substitution.recalibrate()
    refused(model, substitution, "targets: there is no calibration data")
    model(X[0])
    substitution.step()
    assert substitution.stage == "harden"


def test_an_onset_that_fails_leaves_lambda_learned():
    settled = Settled(patience=1, hardness_tolerance=0.5, metric_tolerance=0.5, latest=0.4)
    model, _, substitution = make(start=settled, recover=2)
    substitution.validate(lambda model: 1.0)
    raw = [site.raw_hardness.detach().clone() for site in find_sites(model).values()]
    state = copy.deepcopy(substitution.state_dict())
    with pytest.raises(ValueError, match="targets: there is no calibration data"):
        substitution.validate(lambda model: 1.0)
    assert substitution.stage == "learn" and not any(site.is_frozen for site in find_sites(model).values())
    assert all(torch.equal(a, b.raw_hardness) for a, b in zip(raw, find_sites(model).values(), strict=True))
    assert_same(substitution.state_dict(), state)
    model(X[0])
    substitution.validate(lambda model: 1.0)
    assert substitution.stage == "harden"


@pytest.mark.parametrize(
    ("targets", "error", "words"),
    [
        (lambda statistics: {"1": 5.0}, ValueError, r"unknown \[\], missing \['4'\]; the sites are \['1', '4'\]"),
        (lambda statistics: {"1": 5.0, "4": 5.0, "7": 5.0}, ValueError, r"unknown \['7'\], missing \[\]"),
        (lambda statistics: {"1": 5.0, "4": -1.0}, ValueError, "target of '4' must be finite and positive"),
        (lambda statistics: {"1": 5.0, "4": [1.0, 2.0]}, ValueError, "target of '4' must have 1 or 1 values, got 2"),
        (lambda statistics: None, TypeError, "must be a float, got NoneType"),
    ],
)
def test_targets_of_ones_own_that_do_not_fit_are_refused_and_lambda_stays_learned(targets, error, words):
    model = make_model()
    with pytest.raises(error, match=words):
        make(model, start=0, calibration=calibrate, targets=targets)
    assert not any(site.is_frozen for site in find_sites(model).values())
    model, optimizer, substitution = make(model, targets=targets)
    run(model, optimizer, substitution, end=ONSET - 1)
    state = copy.deepcopy(substitution.state_dict())
    with pytest.raises(error, match=words):
        substitution.step()
    assert substitution.stage == "learn" and not any(site.is_frozen for site in find_sites(model).values())
    assert_same(substitution.state_dict(), state)


def test_a_score_without_statistics_is_no_news_where_the_best_is_kept():
    settled = Settled(patience=1, hardness_tolerance=0.5, metric_tolerance=0.5, latest=0.4)
    _, _, substitution = make(start=settled, recover=2, keep_best=True, higher_is_better=False)
    state = copy.deepcopy(substitution.state_dict())
    with pytest.raises(ValueError, match="statistics are needed while the model has sites"):
        substitution.record(ShadowScore(1.0, 1.0))
    assert_same(substitution.state_dict(), state)


def test_a_last_evaluation_that_fails_can_be_made_again():
    def evaluate(model):
        if fails:
            raise KeyError("lost")
        return loss_of(model)

    fails = False
    model, optimizer, substitution = make(evaluate=evaluate)
    run(model, optimizer, substitution, end=STEPS - 1)
    train_step(model, optimizer, STEPS - 1)
    fails = True
    with pytest.raises(KeyError):
        substitution.step()
    assert substitution.stage == "recover" and "recovered" not in substitution.report().metrics
    fails = False
    substitution.step()
    assert substitution.stage == "done" and substitution.report().metrics["recovered"] == loss_of(model).item()


def test_what_is_validated_with_gradients_is_no_part_of_the_extra_loss():
    model, optimizer, substitution = make(distillation=Distillation(), activation_l1=0.5)
    run(model, optimizer, substitution, end=SWAP + 1)
    model.eval()  # no dropout, so that one forward is as the other
    model(X[0])
    expected = substitution.extra_loss().item()
    model(X[0])
    substitution.validate(lambda model: model(X[1]).mean())
    assert substitution.extra_loss().item() == expected > 0


def test_a_step_that_is_not_observed_is_refused():
    model, optimizer, substitution = make()
    run(model, optimizer, substitution, end=4)
    state = copy.deepcopy(substitution.state_dict())
    with substitution.unobserved():
        for refused in (substitution.step, substitution.recalibrate):
            with pytest.raises(RuntimeError, match=r"\(\) inside unobserved\(\): leave that context first"):
                refused()
    assert_same(substitution.state_dict(), state)


def test_a_swap_that_fails_is_not_made():
    def evaluate(model):
        if fails:
            raise KeyError("lost")
        return loss_of(model)

    fails = True
    model, optimizer, substitution = make(evaluate=evaluate)
    run(model, optimizer, substitution, end=SWAP - 1)
    train_step(model, optimizer, SWAP - 1)
    before = copy.deepcopy(model)
    with pytest.raises(KeyError):
        substitution.step()
    assert same_weights(model, before) and substitution.stage == "harden" and substitution.statistics is not None
    assert len(optimizer.param_groups[1]["params"]) == 2
    fails = False
    substitution.step()
    assert substitution.stage == "recover" and optimizer.param_groups[1]["params"] == []


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"total_steps": 0}, ValueError, "total_steps must be at least 1, got 0"),
        ({"total_steps": 24.0}, TypeError, "total_steps must be an int, got float"),
        ({"start": 1.0}, ValueError, "start"),
        ({"start": 24}, ValueError, "start as a step must be from 0 to 23, got 24"),
        ({"start": "soon"}, TypeError, r"start must be a fraction \(float\) or a step \(int\), got str"),
        ({"recover": -1}, ValueError, "recover must be from 0 to 23 steps, got -1"),
        ({"recover": 24}, ValueError, "recover must be from 0 to 23 steps, got 24"),
        ({"recover": 1.0}, ValueError, "recover as a fraction must be from 0 to below 1, got 1.0"),
        ({"recover": True}, TypeError, "recover must be a fraction"),
        ({"recover": 12}, ValueError, "harden=0.5 has λ at its target at step 15, after the swap at step 12"),
        ({"calibrate": 0}, ValueError, "calibrate must be from 1 to 23 steps, got 0"),
        ({"calibrate": 0.0}, ValueError, "calibrate as a fraction"),
        ({"every": 0}, ValueError, "every must be at least 1, got 0"),
        ({"every": 2.0}, TypeError, "every must be an int, got float"),
        ({"tolerance_db": 0.0}, ValueError, "tolerance_db must be finite and positive, got 0.0"),
        ({"tolerance_db": -30}, ValueError, "tolerance_db must be finite and positive, got -30"),
        ({"tolerance_db": math.nan}, ValueError, "tolerance_db must be finite and positive, got nan"),
        ({"tolerance_db": "30"}, TypeError, "tolerance_db must be a float, got str"),
        ({"cap": math.inf}, ValueError, "cap must be finite and positive, got inf"),
        ({"harden": 1.5}, ValueError, "harden must be above 0 and at most 1, got 1.5"),
        ({"per": "neuron"}, ValueError, "per must be 'layer' or 'channel', got 'neuron'"),
        ({"per": "channel"}, ValueError, "per='channel' needs λ per channel at every site, and there is one λ at 1, 4"),
        ({"schedule": "sudden"}, ValueError, "schedule"),
        ({"correction": "weights"}, ValueError, "correction must be 'none' or 'bias', got 'weights'"),
        ({"correction": "bias"}, ValueError, "correction need evaluate: the metric decides"),
        ({"correction": "bias", "evaluate": loss_of}, ValueError, "higher_is_better must be given"),
        (
            {"correction": "bias", "evaluate": loss_of, "higher_is_better": False},
            ValueError,
            "correction='bias' needs calibration",
        ),
        ({"max_loss": 1.0}, ValueError, "max_loss need evaluate"),
        ({"max_loss": -1.0, "evaluate": loss_of}, ValueError, "max_loss must not be negative, got -1.0"),
        ({"max_loss": math.nan, "evaluate": loss_of}, ValueError, "max_loss must be finite, got nan"),
        ({"evaluate": "loss"}, TypeError, "evaluate must be a function, got str"),
        ({"calibration": X[0]}, TypeError, "calibration must be a function, got Tensor"),
        ({"targets": {"1": 5.0}}, TypeError, "targets must be a function, got dict"),
        ({"weights": {}}, TypeError, "weights must be a function, got dict"),
        ({"rate": AllowedLoss(0.1)}, ValueError, "higher_is_better must be given: rate compare scores"),
        ({"keep_best": True}, ValueError, "higher_is_better must be given: keep_best compare scores"),
        ({"higher_is_better": "yes"}, TypeError, "higher_is_better must be a bool or None, got str"),
        ({"distillation": 0.5}, TypeError, "distillation must be a Distillation, got float"),
        ({"activation_l1": 0.0}, ValueError, "activation_l1 must be finite and positive, got 0.0"),
        ({"activation_l1": 0.1, "recover": 0}, ValueError, "need a recovery, but recover is 0"),
    ],
)
def test_a_plan_without_sense_is_refused_and_nothing_is_changed(options, error, words):
    model = make_model()
    before = copy.deepcopy(model)
    with pytest.raises(error, match=words):
        make(model, **options)
    assert same_weights(model, before) and not any(site.is_frozen for site in find_sites(model).values())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(site._observers == () for site in find_sites(model).values())


def test_a_model_that_cannot_be_swapped_is_refused():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="optimizer has no parameter of Sequential: it was made for another model"):
        Substitution(make_model(), optimizer, **PLAN)
    for wrong, name in ((0.1, "float"), ([optimizer, model], "Sequential"), (model.parameters(), "Parameter")):
        with pytest.raises(TypeError, match=f"optimizer must be an optimizer, several, or None, got {name}"):
            Substitution(model, wrong, **PLAN)
    with pytest.raises(ValueError, match="the model itself is a LambdaGELU"):
        Substitution(LambdaGELU(), **PLAN)
    with pytest.raises(ValueError, match=r"1 is a LambdaGELU inside its own torch\.compile"):
        Substitution(nn.Sequential(nn.Linear(2, 2), torch.compile(LambdaGELU())), **PLAN)
    to_relu_(model)
    with pytest.raises(ValueError, match=r"Sequential has no LambdaGELU module, but 2 nn\.ReLU: substituted already"):
        Substitution(model, optimizer, **PLAN)


def test_a_validation_needs_an_evaluation_and_where_it_decides_a_finite_one():
    _, _, substitution = make()
    with pytest.raises(ValueError, match="evaluate must be given here or to the constructor"):
        substitution.validate()
    assert math.isnan(substitution.validate(lambda model: math.nan).as_is)
    _, _, substitution = make(start=Settled(latest=0.4), recover=2)
    with pytest.raises(ValueError, match="metric must be finite, got nan"):
        substitution.validate(lambda model: math.nan)
