"""observe on several ranks: together they count what one process counts, and every rank has the same sums."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from group import Group, fact
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn.parallel import DistributedDataParallel

from facts.tensor_parallel import Block, make, plan
from facts.training import EXAMPLES, HIDDEN, assert_same_on_every_rank, batches, make_model
from lambda_gelu import LambdaGELU, Statistics, observe, site_weights, suggest_targets


def observed(model: nn.Module, inputs: list[Tensor], **options: object) -> Statistics:
    with observe(model, **options) as statistics:
        for x in inputs:
            model(x).sum().backward()
    return statistics


def assert_equal_counts(group: Group, actual: Statistics, expected: Statistics, copies: int = 1) -> None:
    assert list(actual) == list(expected)
    for name, histogram in expected.items():
        assert torch.equal(actual[name].counts, copies * histogram.counts), name
        torch.testing.assert_close(actual[name].moments, copies * histogram.moments, rtol=1e-12, atol=1e-12)
        assert_same_on_every_rank(group, actual[name].moments)  # to the bit, or λ would drift apart


@fact(2, 3)
def the_ranks_together_have_the_statistics_of_all_examples(group: Group) -> None:
    inputs = [x for x, _ in batches()]
    parts = [x[group.part(EXAMPLES)] for x in inputs]
    wraps: list[Callable[[nn.Module], nn.Module]] = [
        lambda model: DistributedDataParallel(model, process_group=group.process_group),
        lambda model: torch.compile(
            DistributedDataParallel(model, process_group=group.process_group), backend="aot_eager"
        ),
        lambda model: fully_shard(model, mesh=group.mesh),
    ]
    for options in ({}, {"per": "channel"}):
        expected = observed(make_model(), inputs, **options)
        for wrap in wraps:
            statistics = observed(wrap(make_model()), parts, **options)
            alone = {name: histogram.count for name, histogram in statistics.items()}
            assert statistics.all_reduce(group.process_group) is statistics
            assert_equal_counts(group, statistics, expected)
            assert [histogram.count for histogram in statistics.values()] == [group.size * n for n in alone.values()]
            assert suggest_targets(statistics) == pytest.approx(suggest_targets(expected), rel=1e-9)


@fact(2)
def a_rank_that_does_not_reach_a_site_adds_nothing(group: Group) -> None:
    x = batches()[0][0]
    statistics = {}
    for rank in range(2):  # what rank 0 and 1 observe
        model = nn.ModuleDict({"all": LambdaGELU(), "first": LambdaGELU()})
        with observe(model, per="channel") as statistics[rank]:
            model["all"](x)
            if rank == 0:
                model["first"](x)
    assert statistics[1]["first"].num_channels == 0
    mine = statistics[group.rank].snapshot().all_reduce(group.process_group)
    assert mine.never_executed == ()
    assert_equal_counts(group, mine, statistics[0].merge(statistics[1]))


@fact(2)
def ranks_that_observe_other_sites_or_channels_are_refused_everywhere(group: Group) -> None:
    x = batches()[0][0]
    for per_rank, message in [
        (({"per": "layer"}, {"per": "channel"}), "rank 1 observed"),
        (({"per": "channel", "channel_dim": 0}, {"per": "channel", "channel_dim": 1}), "channels on the ranks"),
    ]:
        statistics = observed(make_model(), [x], **per_rank[group.rank])
        before = statistics.state_dict()
        with pytest.raises(ValueError, match=message):
            statistics.all_reduce(group.process_group)
        assert torch.equal(statistics["1"].counts, before["sites"]["1"]["counts"])


@fact(2, 3)
def a_tensor_parallel_site_counts_the_channels_of_this_rank(group: Group) -> None:
    inputs = [x for x, _ in batches()]
    for count, hidden in ((1, 6), (6, 6), (HIDDEN + 2, HIDDEN + 2)):
        for options in ({}, {"per": "channel", "channel_dim": -1}):
            expected = observed(make(Block, count, -1, hidden), inputs, **options)
            model = parallelize_module(make(Block, count, -1, hidden), group.mesh, plan(local=hidden == 6))
            statistics = observed(model, inputs, **options)
            assert statistics["activation"].num_channels == expected["activation"].num_channels
            statistics.all_reduce(group.process_group)
            assert_equal_counts(group, statistics, expected)


@fact(2)
def site_weights_refuse_ddp_and_say_what_to_do(group: Group) -> None:
    x = batches()[0][0]
    model = DistributedDataParallel(make_model(), process_group=group.process_group)
    with pytest.raises(ValueError, match=r"inside DistributedDataParallel.*give its \.module"):
        site_weights(model, lambda each: each(x).square().mean())
    assert site_weights(model.module, lambda each: each(x).square().mean()).keys() == {"1", "3"}
    model(x).sum().backward()  # and it waits for nothing
    model(x).sum().backward()
