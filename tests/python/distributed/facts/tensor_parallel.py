"""HardnessParallel: an MLP whose features or sequence is spread over the ranks learns the λ of one process."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from group import Group, fact
from optimizers import IMPLEMENTATIONS
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

import lambda_gelu
from facts import training
from facts.training import assert_same_on_every_rank, assert_trains_as_in_one_process, steps_on_dtensors, whole
from lambda_gelu import HardnessScheduler, LambdaGELU
from lambda_gelu.integrations.tensor_parallel import HardnessParallel


class Block(nn.Module):
    def __init__(self, num_parameters: int, channel_dim: int, hidden: int):
        super().__init__()
        self.norm = nn.LayerNorm(training.FEATURES)
        self.up = nn.Linear(training.FEATURES, hidden)
        self.activation = LambdaGELU(num_parameters, init_hardness=1.5, channel_dim=channel_dim)
        self.down = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.activation(self.up(self.norm(x))))


class SequenceBlock(nn.Module):
    """Norm and activation on each rank's part of the sequence, as in sequence parallelism."""

    def __init__(self, num_parameters: int):
        super().__init__()
        self.entry = nn.Identity()
        self.norm = nn.LayerNorm(training.FEATURES)
        self.activation = LambdaGELU(num_parameters, init_hardness=1.5, channel_dim=-1)
        self.down = nn.Linear(training.FEATURES, 1)

    def forward(self, x: Tensor) -> Tensor:
        sequence = self.entry(x.unsqueeze(0))  # of the examples
        return self.down(self.activation(self.norm(sequence))).squeeze(0)


def make(kind: type[nn.Module], *arguments: Any) -> nn.Module:
    torch.manual_seed(1)
    return kind(*arguments).double()


def plan(*, local: bool) -> dict[str, ParallelStyle]:
    return {
        "up": ColwiseParallel(use_local_output=local),
        "activation": HardnessParallel(use_local_output=local),
        "down": RowwiseParallel(),
    }


def in_columns(group: Group, *, local: bool = True) -> Callable[[nn.Module], nn.Module]:
    return lambda model: parallelize_module(model, group.mesh, plan(local=local))


@fact(2, 3)
def one_hardness_is_learned_in_a_tensor_parallel_mlp(group: Group) -> None:
    model = assert_trains_as_in_one_process(group, make(Block, 1, -1, 6), in_columns(group))
    assert model.activation.raw_hardness.placements == (Replicate(),)
    assert type(model.activation.hardness_override) is Tensor


@fact(2, 3)
def a_hardness_per_channel_is_sharded_along_with_the_features(group: Group) -> None:
    model = assert_trains_as_in_one_process(group, make(Block, 6, -1, 6), in_columns(group))
    assert model.activation.raw_hardness.to_local().numel() == 6 // group.size


@fact(2, 3)
def features_that_are_not_divided_evenly_need_no_care(group: Group) -> None:
    model = assert_trains_as_in_one_process(group, make(Block, 7, -1, 7), in_columns(group, local=False))
    assert model.activation.raw_hardness.placements == (Shard(0),)


@fact(2)
def channels_counted_from_the_front_are_replicated(group: Group) -> None:
    model = assert_trains_as_in_one_process(group, make(Block, 6, 1, 6), in_columns(group))
    assert model.activation.raw_hardness.placements == (Replicate(),)


@fact(2, 3)
def a_sequence_parallel_site_sums_the_gradients_of_all_positions(group: Group) -> None:
    sequence_plan = {
        "entry": PrepareModuleInput(input_layouts=Replicate(), desired_input_layouts=Shard(1)),
        "norm": SequenceParallel(use_local_output=True),
        "activation": HardnessParallel(input_layouts=Shard(1)),
        "down": RowwiseParallel(input_layouts=Shard(1)),
    }
    for num_parameters in (1, training.FEATURES):
        model = assert_trains_as_in_one_process(
            group,
            make(SequenceBlock, num_parameters),
            lambda model: parallelize_module(model, group.mesh, sequence_plan),
        )
        assert model.activation.raw_hardness.placements == (Replicate(),)


@fact(2)
def sgd_steps_right_on_a_gradient_that_is_spread_over_the_ranks(group: Group) -> None:
    def sgd(model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(lambda_gelu.param_groups(model, lr=0.05, lr_multiplier=0.5), momentum=0.9)

    for num_parameters in (1, 6):
        assert_trains_as_in_one_process(group, make(Block, num_parameters, -1, 6), in_columns(group), optimizer=sgd)


@fact(2)
def one_graph_of_a_tensor_parallel_mlp_learns_and_hardens(group: Group) -> None:
    graphs = []

    def counted(graph: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, example_inputs)

    def compiled(model: nn.Module) -> nn.Module:
        return torch.compile(in_columns(group)(model), backend=counted, fullgraph=True)

    for num_parameters in (1, 6):
        torch._dynamo.reset()
        graphs.clear()
        assert_trains_as_in_one_process(group, make(Block, num_parameters, -1, 6), compiled)
        assert len(graphs) == 1


@fact(2, 3)
def hardness_is_read_set_frozen_and_freed_as_in_one_process(group: Group) -> None:
    def states(model: nn.Module) -> Tensor:
        site, seen = model.activation, []
        for value in (3.0, torch.linspace(2, 7, 6, dtype=torch.double)):
            site.set_hardness(value)
            seen.append(site.hardness.detach())
            site.freeze_hardness()
            site.set_hardness(0.5)
            seen.append(site.hardness)
            site.set_hardness(value)
            site.unfreeze_hardness()
            seen += [site.hardness.detach(), whole(site.raw_hardness.detach()).clone()]
        return torch.stack(seen)

    model = make(Block, 6, -1, 6)
    assert torch.equal(states(in_columns(group)(copy.deepcopy(model))), states(model))
    assert "hardness=" not in repr(in_columns(group)(model).activation)  # it would wait for the other ranks


@fact(2)
def an_average_of_a_tensor_parallel_model_is_hardened_with_it(group: Group) -> None:
    def averages(model: nn.Module) -> Tensor:
        average = AveragedModel(model, avg_fn=get_ema_avg_fn(0.5))
        seen = []

        def update(_: int) -> None:
            average.update_parameters(model)
            seen.append(average.module.activation.hardness.detach())

        training.train(model, after_step=update)
        assert average.module.activation.is_frozen
        return torch.stack(seen)

    for num_parameters in (1, 6):
        model = make(Block, num_parameters, -1, 6)
        expected = averages(copy.deepcopy(model))
        assert (expected[-1] == 6.0).all()
        torch.testing.assert_close(averages(in_columns(group)(model)), expected, rtol=1e-9, atol=0)


@fact(2)
def every_rank_starts_from_the_hardness_of_the_first(group: Group) -> None:
    model = make(Block, 6, -1, 6)
    lambda_gelu.init_hardness_(model, "increasing", 1.5 + group.rank, 3.0)
    in_columns(group)(model)
    assert model.activation.hardness.tolist() == [1.5] * 6
    frozen = make(Block, 6, -1, 6)
    frozen.activation.freeze_hardness()
    frozen.activation.set_hardness(2.0 + group.rank)
    in_columns(group)(frozen)
    assert frozen.activation.is_frozen and frozen.activation.hardness.tolist() == [2.0] * 6


@fact(2)
def a_plain_hardness_between_parallel_layers_is_warned_of(group: Group) -> None:
    without_style = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    model = parallelize_module(make(Block, 1, -1, 6), group.mesh, without_style)
    for use in (lambda: lambda_gelu.param_groups(model, lr=0.1), lambda: HardnessScheduler(model, 3)):
        with pytest.warns(UserWarning, match=r"λ of activation .*HardnessParallel"):
            use()
    # What it is warned of: the ranks' gradients, and so their λ, differ.
    model(training.batches()[0][0]).sum().backward()
    with pytest.raises(AssertionError):
        assert_same_on_every_rank(group, model.activation.raw_hardness.grad)
    parallel = in_columns(group)(make(Block, 1, -1, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lambda_gelu.param_groups(parallel, lr=0.1)
        HardnessScheduler(parallel, 3)


@fact(2)
def the_style_refuses_other_modules_and_a_second_time(group: Group) -> None:
    block = make(Block, 1, -1, 6)
    with pytest.raises(TypeError, match="HardnessParallel is for LambdaGELU, got Linear"):
        parallelize_module(block, group.mesh, {"up": HardnessParallel()})
    in_columns(group)(block)
    with pytest.raises(TypeError, match="DTensor already"):
        parallelize_module(block, group.mesh, {"activation": HardnessParallel()})


@fact(2)
def a_tensor_parallel_network_becomes_relu(group: Group) -> None:
    block = make(Block, 6, -1, 6)
    reference = copy.deepcopy(block)
    in_columns(group)(block)
    x = training.batches()[0][0]
    with lambda_gelu.relu_substituted(block), lambda_gelu.relu_substituted(reference):
        during, expected = block(x), reference(x)
    torch.testing.assert_close(during, expected)
    assert lambda_gelu.to_relu_(block).sites == lambda_gelu.to_relu_(reference).sites
    torch.testing.assert_close(block(x), expected)


@fact(3)
def it_composes_with_fully_shard_in_a_mesh_of_two_dimensions(group: Group) -> None:
    for shape in ((3, 1), (1, 3)):
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=("data", "tensor"))
        share = training.EXAMPLES // shape[0]
        first = mesh.get_local_rank("data") * share

        def wrap(model: nn.Module, mesh: DeviceMesh = mesh) -> nn.Module:
            parallelize_module(model, mesh["tensor"], plan(local=True))
            return fully_shard(model, mesh=mesh["data"])

        for num_parameters in (1, 6):
            model = make(Block, num_parameters, -1, 6)
            wrapped = assert_trains_as_in_one_process(group, model, wrap, slice(first, first + share))
            assert wrapped.activation.raw_hardness.device_mesh.ndim == 2
            wrapped.activation.unfreeze_hardness()
            values = torch.linspace(2, 3, num_parameters, dtype=torch.double)
            wrapped.activation.set_hardness(values)
            torch.testing.assert_close(wrapped.activation.hardness.detach(), values, rtol=1e-15, atol=0)


@fact(2)
def no_optimizer_moves_a_frozen_parallel_hardness(group: Group) -> None:
    for name, options in IMPLEMENTATIONS:
        if not steps_on_dtensors(name, options):
            continue
        for num_parameters in (1, 6):
            layers = nn.Linear(4, 6), LambdaGELU(num_parameters, channel_dim=-1), nn.Linear(6, 1)
            model = nn.Sequential(*layers)
            parallelize_module(model, group.mesh, dict(zip("012", plan(local=True).values(), strict=True)))
            training.assert_no_step_moves_a_frozen_hardness(model, name, options)
