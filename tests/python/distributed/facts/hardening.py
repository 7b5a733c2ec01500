"""Onset, pace and targets that follow from what a run sees: the ranks decide the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from group import Group, fact
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from facts.training import EXAMPLES, HIDDEN, assert_same_on_every_rank, batches, make_model, make_optimizer
from lambda_gelu import AllowedLoss, HardnessScheduler, Remaining, Settled

STEPS = 14
NEW_TARGETS = {"1": 7.0, "3": [8.0 + channel for channel in range(HIDDEN)]}


def run(model: nn.Module, part: slice, reduced: Callable[[Tensor], Tensor]) -> tuple[Tensor, dict[str, Any]]:
    """λ after every step, and the scheduler's last state."""
    optimizer = make_optimizer(model)
    scheduler = HardnessScheduler(
        model,
        STEPS,
        start=Settled(patience=1, hardness_tolerance=0.2, metric_tolerance=0.3, latest=0.6),
        end=Remaining(0.8),
        rate=AllowedLoss(1e-3, waiting=0.4),
        target=6.0,
        schedule="cosine",
    )
    trace = []
    for step in range(STEPS):
        x, y = (tensor[part] for tensor in batches()[step % len(batches())])
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
        with torch.no_grad():  # afterwards FSDP2 holds the root's parameters in full
            loss = (model(x) - y).square().mean()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that λ went on against the loss
            scheduler.step(reduced(loss))
        if step == STEPS // 2:
            scheduler.set_targets(NEW_TARGETS)
        trace.append(torch.cat(list(scheduler.get_last_hardness().values())))
    return torch.stack(trace), scheduler.state_dict()


@fact(2, 3)
def a_metric_that_the_ranks_share_makes_them_decide_the_same(group: Group) -> None:
    def mean(loss: Tensor) -> Tensor:
        distributed.all_reduce(loss, group=group.process_group)
        return loss / group.size

    expected, reference = run(make_model(), slice(None), lambda loss: loss)
    assert 0 < reference["onset"] < int(0.6 * STEPS)  # it has settled before the latest step
    assert reference["pace"]["forced"] > 0  # it has waited, and longer than it may
    assert (expected[-1] == torch.tensor([7.0, *NEW_TARGETS["3"]])).all()
    for wrap in (
        lambda model: DistributedDataParallel(model, process_group=group.process_group),
        lambda model: fully_shard(model, mesh=group.mesh),
    ):
        actual, state = run(wrap(make_model()), group.part(EXAMPLES), mean)
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=0)
        assert_same_on_every_rank(group, actual)
        states: list[Any] = [None] * group.size
        distributed.all_gather_object(states, state, group=group.process_group)
        assert all(other == state for other in states)
        assert (state["onset"], state["pace"]["gone"]) == (reference["onset"], reference["pace"]["gone"])
