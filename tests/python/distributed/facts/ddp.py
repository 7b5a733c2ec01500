"""DistributedDataParallel, without find_unused_parameters."""

from __future__ import annotations

import itertools
from contextlib import nullcontext

import torch
from group import Group, fact
from optimizers import IMPLEMENTATIONS
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import lambda_gelu
from facts.training import (
    EXAMPLES,
    assert_no_step_moves_a_frozen_hardness,
    assert_same_on_every_rank,
    assert_trains_as_in_one_process,
    batches,
    make_model,
    make_optimizer,
    make_scheduler,
    train,
)


def wrap(group: Group, model: nn.Module, **options: bool) -> DistributedDataParallel:
    return DistributedDataParallel(model, process_group=group.process_group, **options)


@fact(2, 3)
def the_switch_from_learning_to_hardening_leaves_no_parameter_unused(group: Group) -> None:
    # DDP refuses the step after one in which a parameter had no gradient.
    for options in ({}, {"static_graph": True}, {"gradient_as_bucket_view": True}):
        part = group.part(EXAMPLES)
        assert_trains_as_in_one_process(group, make_model(), lambda m, o=options: wrap(group, m, **o), part)


@fact(2)
def a_compiled_model_is_synchronized_too(group: Group) -> None:
    def compiled(model: nn.Module) -> nn.Module:
        return torch.compile(wrap(group, model), backend="aot_eager")

    assert_trains_as_in_one_process(group, make_model(), compiled, group.part(EXAMPLES))


@fact(2)
def accumulated_gradients_are_those_of_one_batch(group: Group) -> None:
    expected = train(make_model())
    model = wrap(group, make_model())
    optimizer, scheduler = make_optimizer(model), make_scheduler(model)
    trace = []
    for x, y in batches():
        halves = list(zip(x[group.part(EXAMPLES)].chunk(2), y[group.part(EXAMPLES)].chunk(2), strict=True))
        optimizer.zero_grad()
        for half, (inputs, targets) in enumerate(halves):
            with model.no_sync() if half == 0 else nullcontext():
                ((model(inputs) - targets).square().mean() / len(halves)).backward()
        optimizer.step()
        scheduler.step()
        trace.append(torch.cat(list(scheduler.get_last_hardness().values())))
    torch.testing.assert_close(torch.stack(trace), expected, rtol=1e-9, atol=0)
    assert_same_on_every_rank(group, torch.stack(trace))


@fact(2)
def an_average_of_the_model_is_hardened_with_it(group: Group) -> None:
    def averages(model: nn.Module, inner: nn.Module, part: slice = slice(None)) -> Tensor:
        average = AveragedModel(inner, multi_avg_fn=get_ema_multi_avg_fn(0.5))
        seen = []

        def update(_: int) -> None:
            average.update_parameters(inner)
            seen.append(torch.cat([site.hardness.detach() for site in lambda_gelu.find_sites(average).values()]))

        train(model, part, after_step=update)
        return torch.stack(seen)

    plain, inner = make_model(), make_model()
    expected = averages(plain, plain)
    assert (expected[-1] == 6.0).all()
    actual = averages(wrap(group, inner), inner, group.part(EXAMPLES))
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=0)


@fact(2)
def no_optimizer_moves_a_frozen_hardness(group: Group) -> None:
    for (name, options), frozen_from in itertools.product(IMPLEMENTATIONS, (0, 1)):
        model = wrap(group, make_model())
        assert_no_step_moves_a_frozen_hardness(model, name, options, group.part(EXAMPLES), frozen_from)
