"""param_groups: λ gets a group of its own, whatever the user's groups are."""

import copy
import math

import pytest
import torch
from torch import nn

from lambda_gelu import LambdaGELU, param_groups

pytestmark = pytest.mark.usefixtures("device")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8), LambdaGELU(), nn.LayerNorm(8), nn.Linear(8, 8), LambdaGELU(8), nn.Linear(8, 2, bias=False)
    )


def hardness_of(model):
    return {m.raw_hardness for m in model.modules() if isinstance(m, LambdaGELU)}


def parameters_in(groups):
    return [p for group in groups for p in group["params"]]


def timm_groups(model, weight_decay):
    """timm's rule (timm.optim.param_groups_weight_decay): biases and whatever has ndim <= 1 get no decay."""
    decay, no_decay = [], []
    for name, parameter in model.named_parameters():
        (no_decay if parameter.ndim <= 1 or name.endswith(".bias") else decay).append(parameter)
    return [{"params": no_decay, "weight_decay": 0.0}, {"params": decay, "weight_decay": weight_decay}]


def hugging_face_groups(model, weight_decay):
    """transformers' rule (Trainer.create_optimizer): everything but biases and normalization layers decays."""
    no_decay = {f"{n}.{p}" for n, m in model.named_modules() if isinstance(m, nn.LayerNorm) for p in ("weight", "bias")}
    no_decay |= {name for name, _ in model.named_parameters() if "bias" in name}
    return [
        {"params": [p for n, p in model.named_parameters() if n not in no_decay], "weight_decay": weight_decay},
        {"params": [p for n, p in model.named_parameters() if n in no_decay], "weight_decay": 0.0},
    ]


def assert_partition(groups, model):
    parameters = parameters_in(groups)
    assert len(parameters) == len(set(parameters))
    assert set(parameters) == set(model.parameters())
    (hardness,) = [group for group in groups if group.get("name") == "hardness"]
    assert set(hardness["params"]) == hardness_of(model)
    assert hardness["weight_decay"] == 0.0
    return hardness


def test_the_default_is_two_groups(model):
    groups = param_groups(model, lr=0.01, weight_decay=0.1, betas=(0.8, 0.9))
    assert assert_partition(groups, model)["lr"] == pytest.approx(0.1)
    assert [group["lr"] for group in groups] == [0.01, pytest.approx(0.1)]
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert all(group["betas"] == (0.8, 0.9) for group in groups)


def test_the_multiplier_scales_the_learning_rate_of_hardness_only(model):
    groups = param_groups(model, lr=0.5, lr_multiplier=3.0)
    assert [group["lr"] for group in groups] == [0.5, 1.5]


@pytest.mark.parametrize("rule", [timm_groups, hugging_face_groups])
def test_it_survives_the_rules_of_timm_and_hugging_face(model, rule):
    theirs = rule(model, 0.05)
    assert hardness_of(model) & set(parameters_in(theirs))  # their rule does catch λ
    groups = param_groups(model, lr=0.01, weight_decay=0.7, groups=theirs)
    assert assert_partition(groups, model)["lr"] == pytest.approx(0.1)
    others = {p: group for group in groups[:-1] for p in group["params"]}
    for group in theirs:
        for parameter in set(group["params"]) - hardness_of(model):
            assert others[parameter]["weight_decay"] == group["weight_decay"]
            assert others[parameter]["lr"] == 0.01


def test_the_users_lists_are_not_changed(model):
    theirs = timm_groups(model, 0.05)
    before = [{**group, "params": list(group["params"])} for group in theirs]
    groups = param_groups(model, lr=0.01, groups=theirs)
    groups[0]["params"].clear()
    groups[0]["weight_decay"] = 9.0
    assert [set(group) for group in theirs] == [set(group) for group in before]
    for group, expected in zip(theirs, before, strict=True):
        assert group["weight_decay"] == expected["weight_decay"]
        assert all(a is b for a, b in zip(group["params"], expected["params"], strict=True))


def test_generators_and_single_tensors_are_accepted(model):
    theirs = (group for group in [{"params": (p for p in model[:5].parameters())}, {"params": model[5].weight}])
    assert_partition(param_groups(model, lr=0.01, groups=theirs), model)


def test_the_users_options_win_and_unknown_ones_are_kept(model):
    theirs = [{"params": list(model.parameters()), "lr": 0.3, "weight_decay": 0.2, "lr_scale": 0.5}]
    first, hardness = param_groups(model, lr=0.01, weight_decay=0.1, groups=theirs, eps=1e-6)
    assert (first["lr"], first["weight_decay"], first["lr_scale"], first["eps"]) == (0.3, 0.2, 0.5, 1e-6)
    assert (hardness["lr"], hardness["eps"]) == (pytest.approx(0.1), 1e-6)
    assert "lr_scale" not in hardness


def test_groups_left_empty_are_dropped(model):
    theirs = [{"params": list(hardness_of(model))}, {"params": []}, {"params": [model[0].weight]}]
    groups = param_groups(model, lr=0.01, groups=theirs)
    assert [len(group["params"]) for group in groups] == [1, 2]


def test_hardness_is_included_where_no_group_lists_it_and_nothing_else_is_added(model):
    groups = param_groups(model, lr=0.01, groups=[{"params": [model[0].weight]}])
    assert set(parameters_in(groups)) == hardness_of(model) | {model[0].weight}


def test_named_parameters_stay_named(model):
    groups = param_groups(model, lr=0.01, groups=[{"params": model.named_parameters()}])
    assert [name for name, _ in groups[-1]["params"]] == ["1.raw_hardness", "4.raw_hardness"]
    optimizer = torch.optim.SGD(groups)
    assert optimizer.param_groups[-1]["param_names"] == ["1.raw_hardness", "4.raw_hardness"]


def test_a_shared_raw_hardness_is_listed_once():
    model = nn.Sequential(nn.Linear(2, 2), LambdaGELU(), LambdaGELU())
    model[2].raw_hardness = model[1].raw_hardness
    assert_partition(param_groups(model, lr=0.01), model)


@pytest.mark.parametrize("groups", [None, "timm"])
def test_weight_decay_never_moves_hardness(model, groups):
    groups = timm_groups(model, 0.5) if groups else None
    optimizer = torch.optim.AdamW(param_groups(model, lr=0.1, weight_decay=0.5, groups=groups))
    with torch.no_grad():
        for raw in hardness_of(model):
            raw.fill_(1.0)
    before = copy.deepcopy(model.state_dict())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, value in model.state_dict().items():
        if name.endswith("raw_hardness"):
            assert torch.equal(value, before[name])
    assert not torch.equal(model[0].weight, before["0.weight"])  # everything else did decay


def test_a_step_of_sgd_moves_hardness_by_the_multiplied_rate(model):
    optimizer = torch.optim.SGD(param_groups(model, lr=0.25, lr_multiplier=8.0))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = {p: p.detach().clone() for p in model.parameters()}
    optimizer.step()
    for parameter, value in before.items():
        step = 2.0 if parameter in hardness_of(model) else 0.25
        torch.testing.assert_close(value - parameter.detach(), torch.full_like(value, step))


def test_it_fits_every_optimizer_and_a_learning_rate_schedule(model):
    for optimizer_class in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop):
        optimizer = optimizer_class(param_groups(model, lr=0.1))
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        optimizer.step()
        scheduler.step()
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.5])


def test_a_schedule_that_sets_the_rate_needs_one_for_each_group(model):
    def highest_rates(max_lr):
        optimizer = torch.optim.SGD(param_groups(model, lr=0.1))
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr, total_steps=8, pct_start=0.25)
        highest = [0.0, 0.0]
        for _ in range(8):
            highest = [max(rate, group["lr"]) for rate, group in zip(highest, optimizer.param_groups, strict=True)]
            optimizer.step()
            scheduler.step()
        return highest

    assert highest_rates(0.1) == pytest.approx([0.1, 0.1])  # as documented: the multiplier is gone
    groups = param_groups(model, lr=0.1)
    assert highest_rates([group["lr"] for group in groups]) == pytest.approx([0.1, 1.0])


def test_bad_arguments_are_refused_in_words(model):
    weight = model[0].weight
    cases = [
        (ValueError, "Sequential has no LambdaGELU", {"model": nn.Sequential(nn.Linear(2, 2))}),
        (TypeError, "model must be a torch.nn.Module, got list", {"model": list(model.parameters())}),
        (TypeError, "lr must be a float, got str", {"lr": "a"}),
        (TypeError, "lr_multiplier must be a float, got NoneType", {"lr_multiplier": None}),
        (ValueError, "lr must be finite and not negative, got -1", {"lr": -1.0}),
        (ValueError, "lr must be finite and not negative, got nan", {"lr": math.nan}),
        (ValueError, "lr_multiplier must be finite and not negative", {"lr_multiplier": math.inf}),
        (ValueError, "weight_decay must be finite and not negative", {"weight_decay": -0.1}),
        (ValueError, "0.weight is listed twice", {"groups": [{"params": [weight]}, {"params": [weight]}]}),
        (ValueError, "0.weight is listed twice", {"groups": [{"params": [weight, weight]}]}),
        (ValueError, "a group has no 'params', only 'lr'", {"groups": [{"lr": 1.0}]}),
        (TypeError, "groups must be mappings", {"groups": [weight]}),
        (TypeError, "must hold tensors", {"groups": [{"params": ["weight"]}]}),
        (TypeError, "'params' must be ordered, got a set", {"groups": [{"params": {weight}}]}),
        (TypeError, "'params' must be ordered, got a set", {"groups": [{"params": frozenset({weight})}]}),
    ]
    for error, words, arguments in cases:
        with pytest.raises(error, match=words):
            param_groups(**{"model": model, "lr": 0.1, **arguments})
