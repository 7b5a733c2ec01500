"""The whole protocol where ranks share the parameters: targets, swap and recovery are as in one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from group import Group, fact
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from facts.training import EXAMPLES, assert_same_on_every_rank, batches, make_model, make_optimizer, whole
from lambda_gelu import BestSubstituted, Substitution, find_sites

STEPS = 14
PLAN: dict[str, Any] = {"total_steps": STEPS, "start": 3, "harden": 0.4, "calibrate": 2, "recover": 5, "cap": 1e4}


def run(model: nn.Module, part: slice, group: Any) -> tuple[Substitution, torch.Tensor, torch.optim.Optimizer]:
    """The protocol, λ of every site after every step before the swap, and the optimizer."""
    optimizer = make_optimizer(model)
    substitution = Substitution(model, optimizer, **PLAN, higher_is_better=False, keep_best=True, group=group)
    trace = []
    for step in range(STEPS):
        x, y = (tensor[part] for tensor in batches()[step % len(batches())])
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
        with torch.no_grad():
            substitution.validate(lambda model: model(batches()[0][0]).square().mean())
            with substitution.unobserved():
                model(x)  # afterwards FSDP2 holds the root's parameters in full, also where the swap comes next
        substitution.step()
        if substitution.stage in ("learn", "harden"):
            trace.append(torch.cat([site.hardness.detach() for site in find_sites(model).values()]))
    return substitution, torch.stack(trace), optimizer


@fact(2, 3)
def the_protocol_under_fsdp2_is_that_of_one_process(group: Group) -> None:
    reference = make_model()
    alone = distributed.new_group([group.rank], use_local_synchronization=True)
    expected, trace, _ = run(reference, slice(None), alone)
    sharded = make_model()
    fully_shard(sharded, mesh=group.mesh)
    actual, its_trace, optimizer = run(sharded, group.part(EXAMPLES), group.process_group)
    torch.testing.assert_close(its_trace, trace, rtol=1e-6, atol=0)
    assert_same_on_every_rank(group, its_trace)
    assert actual.report().substituted == expected.report().substituted == ("1", "3")
    assert [len(g["params"]) for g in optimizer.param_groups] == [6, 0]
    for (name, parameter), other in zip(sharded.named_parameters(), reference.named_parameters(), strict=True):
        assert name == other[0]
        torch.testing.assert_close(whole(parameter), other[1], rtol=1e-5, atol=1e-8)
    assert isinstance(actual.best, BestSubstituted) and actual.best.best is not None
    assert expected.best is not None and expected.best.best is not None
    assert actual.best.best.step == expected.best.best.step


@fact(2)
def the_protocol_refuses_a_model_inside_ddp(group: Group) -> None:
    model = DistributedDataParallel(make_model(), process_group=group.process_group)
    with pytest.raises(ValueError, match="1 is inside DistributedDataParallel, which cannot change"):
        Substitution(model, make_optimizer(model), **PLAN, group=group.process_group)
    assert not any(site.is_frozen for site in find_sites(model).values())
    distributed.barrier(group=group.process_group)
