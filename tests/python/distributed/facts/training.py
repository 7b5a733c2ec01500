"""The run that every engine has to repeat: what it trains, on which data, and what becomes of λ."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from group import Group
from optimizers import OPTIMIZERS
from torch import Tensor, distributed, nn
from torch.distributed.tensor import DTensor

import lambda_gelu
from lambda_gelu import HardnessScheduler, LambdaGELU

EXAMPLES, FEATURES, HIDDEN = 12, 4, 5  # 2 and 3 ranks share the examples evenly, and the hidden channels unevenly
STEPS, SWITCH = 6, 3


def make_model(**options: Any) -> nn.Sequential:
    """A site with one λ, or whatever the options say, and one with a λ per channel. In float64: sums differ little."""
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(FEATURES, HIDDEN),
        LambdaGELU(init_hardness=1.5, **options),
        nn.Linear(HIDDEN, HIDDEN),
        LambdaGELU(HIDDEN, init_hardness=2.5, channel_dim=-1),
        nn.Linear(HIDDEN, 1),
    ).double()


def batches() -> list[tuple[Tensor, Tensor]]:
    """Inputs and targets of every step, the same wherever it is called."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(STEPS, EXAMPLES, FEATURES, generator=generator, dtype=torch.double)
    return [(batch, batch.sin().sum(1, keepdim=True)) for batch in x]


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(lambda_gelu.param_groups(model, lr=0.02, lr_multiplier=2.0, weight_decay=0.1))


def make_scheduler(model: nn.Module) -> HardnessScheduler:
    return HardnessScheduler(model, STEPS, start=SWITCH / STEPS, target=6.0)


def train(
    model: nn.Module,
    part: slice = slice(None),
    *,
    optimizer: Callable[[nn.Module], torch.optim.Optimizer] = make_optimizer,
    steps: range = range(STEPS),
    after_step: Callable[[int], None] = lambda step: None,
) -> Tensor:
    """λ of all sites and channels after every step, shape (STEPS, 1 + HIDDEN)."""
    its_optimizer, scheduler = optimizer(model), make_scheduler(model)
    trace = []
    for step in steps:
        x, y = (tensor[part] for tensor in batches()[step])
        its_optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        its_optimizer.step()
        scheduler.step()
        trace.append(torch.cat(list(scheduler.get_last_hardness().values())).double())
        after_step(step)
    return torch.stack(trace)


def assert_learned_and_hardened(trace: Tensor) -> None:
    """Otherwise an engine that never moves λ would pass for one that moves it rightly."""
    steps = trace.diff(dim=0)
    assert (steps[: SWITCH - 1] != 0).all(), "λ was not learned"
    assert (steps[SWITCH - 1 :] > 0.1).all(), "λ was not hardened"
    assert (trace[-1] == 6.0).all()


def steps_on_dtensors(name: str, options: dict[str, Any]) -> bool:
    """Whether torch's optimizer does, whatever the parameters: torch 2.13 lacks rules for these."""
    return name != "Adafactor" and not (name.startswith("SGD") and "fused" in options)


def assert_no_step_moves_a_frozen_hardness(
    model: nn.Module, name: str, options: dict[str, Any], part: slice = slice(None), frozen_from: int = 1
) -> None:
    """Three steps of an optimizer of optimizers.py, the sites frozen before step `frozen_from`."""
    optimizer = OPTIMIZERS[name](lambda_gelu.param_groups(model, lr=0.05), **options)
    sites = lambda_gelu.find_sites(model)
    dtype = next(model.parameters()).dtype
    for step, (x, _) in enumerate(batches()[:3]):
        if step == frozen_from:
            for site in sites.values():
                site.freeze_hardness()
            frozen = {site_name: site.hardness for site_name, site in sites.items()}
        optimizer.zero_grad()
        model(x[part].to(dtype)).square().mean().backward()
        optimizer.step()
    for site_name, site in sites.items():
        assert torch.equal(site.hardness, frozen[site_name]), (name, options)


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_same_on_every_rank(group: Group, values: Tensor) -> None:
    everyone = [torch.empty_like(values) for _ in range(group.size)]
    distributed.all_gather(everyone, values, group=group.process_group)
    assert all(torch.equal(values, other) for other in everyone)


def assert_trains_as_in_one_process(
    group: Group, model: nn.Module, wrap: Callable[[nn.Module], nn.Module], part: slice = slice(None), **options: Any
) -> nn.Module:
    """Trains `model` plainly on all examples, and wrapped on this rank's part; λ and weights must be the same.

    Not to the bit: the ranks' sums have another order. A relative error of 1e-9 is what 6 steps make of some 1e-16,
    where Adam divides by small gradients. Between the ranks λ is the same to the bit.

    Returns:
        what `wrap` returned, trained.
    """
    reference = copy.deepcopy(model)
    expected = train(reference, **options)
    assert_learned_and_hardened(expected)
    wrapped = wrap(model)
    actual = train(wrapped, part, **options)
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=0)
    assert (actual[-1] == 6.0).all()
    assert_same_on_every_rank(group, actual)
    for (name, parameter), other in zip(wrapped.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(
            whole(parameter), other, rtol=1e-8, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}"
        )
    return wrapped
