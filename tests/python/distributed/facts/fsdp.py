"""fully_shard (FSDP2): at 3 ranks a λ of shape (1,) leaves two of them without an element, and one of shape (5,) is
divided into 2, 2 and 1."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from group import Group, fact
from optimizers import IMPLEMENTATIONS
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

import lambda_gelu
from facts.training import (
    EXAMPLES,
    HIDDEN,
    STEPS,
    SWITCH,
    assert_no_step_moves_a_frozen_hardness,
    assert_same_on_every_rank,
    assert_trains_as_in_one_process,
    batches,
    make_model,
    make_optimizer,
    make_scheduler,
    steps_on_dtensors,
    train,
)
from lambda_gelu import LambdaGELU

Wrap = Callable[[nn.Module], nn.Module]


def whole_model(group: Group) -> Wrap:
    return lambda model: fully_shard(model, mesh=group.mesh)


def each_module(group: Group) -> Wrap:
    """Sites too: their λ is gathered on its own and given back after the forward."""

    def wrap(model: nn.Sequential) -> nn.Module:
        for module in model:
            fully_shard(module, mesh=group.mesh)
        return fully_shard(model, mesh=group.mesh)

    return wrap


def checkpoint_wrapped(group: Group) -> Wrap:
    def wrap(model: nn.Sequential) -> nn.Module:
        for index, module in enumerate(model):
            model[index] = fully_shard(checkpoint_wrapper(module), mesh=group.mesh)
        return fully_shard(model, mesh=group.mesh)

    return wrap


class Checkpointed(nn.Sequential):
    def forward(self, input: Tensor) -> Tensor:
        for module in self:
            input = checkpoint(module, input, use_reentrant=False)
        return input


@fact(1, 2, 3)
def a_sharded_hardness_is_learned_and_hardened(group: Group) -> None:
    for wrap in (whole_model(group), each_module(group)):
        model = assert_trains_as_in_one_process(group, make_model(), wrap, group.part(EXAMPLES))
        shards = [site.raw_hardness.to_local().numel() for site in lambda_gelu.find_sites(model).values()]
        assert shards == [int(group.rank == 0), [[5], [3, 2], [2, 2, 1]][group.size - 1][group.rank]]


@fact(2, 3)
def activations_that_are_computed_again_change_nothing(group: Group) -> None:
    for wrap in (checkpoint_wrapped(group), lambda model: each_module(group)(Checkpointed(*model))):
        assert_trains_as_in_one_process(group, make_model(), wrap, group.part(EXAMPLES))


@fact(2)
def compiled_layers_are_sharded_too(group: Group) -> None:
    def compiled(model: nn.Sequential) -> nn.Module:
        for module in model:
            module.compile(backend="aot_eager")  # the site's kernel; FSDP2's hooks break graphs
        return whole_model(group)(model)

    assert_trains_as_in_one_process(group, make_model(), compiled, group.part(EXAMPLES))


@fact(2)
def accumulated_gradients_are_those_of_one_sharded_batch(group: Group) -> None:
    expected = train(make_model())
    model = each_module(group)(make_model())
    optimizer, scheduler = make_optimizer(model), make_scheduler(model)
    trace = []
    for x, y in batches():
        halves = list(zip(x[group.part(EXAMPLES)].chunk(2), y[group.part(EXAMPLES)].chunk(2), strict=True))
        optimizer.zero_grad()
        for half, (inputs, targets) in enumerate(halves):
            model.set_requires_gradient_sync(half == 1)
            ((model(inputs) - targets).square().mean() / len(halves)).backward()
        optimizer.step()
        scheduler.step()
        trace.append(torch.cat(list(scheduler.get_last_hardness().values())))
    torch.testing.assert_close(torch.stack(trace), expected, rtol=1e-9, atol=0)


@fact(1, 2, 3)
def mixed_precision_leaves_the_schedule_exact_and_the_same_on_every_rank(group: Group) -> None:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for site_alone in (False, True):
        model = make_model().float()
        sites = lambda_gelu.find_sites(model)
        seen: dict[str, tuple[Tensor, Tensor]] = {}
        for name, site in sites.items():
            if site_alone:
                fully_shard(site, mesh=group.mesh)
            site.register_forward_hook(
                lambda _, args, output, name=name, seen=seen: seen.update({name: (args[0], output)})
            )
        fully_shard(model, mesh=group.mesh, mp_policy=policy)
        before = {name: site.raw_hardness.full_tensor().detach().clone() for name, site in sites.items()}

        def check(step: int, sites=sites, seen=seen, before=before, site_alone=site_alone) -> None:
            """What the forward of this step has used, against λ as it was then."""
            for name, site in sites.items():
                x, output = seen[name]
                assert x.dtype == output.dtype == torch.bfloat16
                if step < SWITCH:  # within the model's group s is rounded like any parameter, alone it is not
                    raw = before[name] if site_alone else before[name].bfloat16()
                    expected = lambda_gelu.softplus_lambda_gelu(
                        x, raw, temperature=site.temperature, channel_dim=site.channel_dim
                    )
                else:
                    expected = lambda_gelu.lambda_gelu(x, before[name], channel_dim=site.channel_dim)
                assert torch.equal(output, expected)
                assert site.raw_hardness.dtype == torch.float32
                now = site.hardness if site.is_frozen else site.raw_hardness.full_tensor()
                before[name] = now.detach().clone()

        trace = train(_InFloat(model), group.part(EXAMPLES), after_step=check)
        assert_same_on_every_rank(group, trace)
        assert (trace[:SWITCH].diff(dim=0) != 0).all() and (trace[-1] == 6.0).all()
        learned = trace[SWITCH - 1].tolist()  # λ at the switch, in float32: what the schedule starts from
        linear = [[a + (6.0 - a) * (k + 1) / (STEPS - SWITCH) for a in learned] for k in range(STEPS - SWITCH)]
        torch.testing.assert_close(trace[SWITCH:], torch.tensor(linear).double(), rtol=1e-7, atol=0)


class _InFloat(nn.Module):
    """Takes what training.batches() gives, and gives what its loss takes."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input: Tensor) -> Tensor:
        return self.model(input.float()).double()


@fact(3)
def no_optimizer_moves_a_frozen_sharded_hardness(group: Group) -> None:
    for name, options in IMPLEMENTATIONS:
        if not steps_on_dtensors(name, options):
            continue
        model = whole_model(group)(make_model())
        assert_no_step_moves_a_frozen_hardness(model, name, options, group.part(EXAMPLES))


@fact(1, 3)
def a_sharded_hardness_is_set_frozen_and_freed(group: Group) -> None:
    def states(model: nn.Module) -> Tensor:
        seen = []
        lambda_gelu.init_hardness_(model, "increasing", example_inputs=batches()[0][0])
        for site in lambda_gelu.find_sites(model).values():
            seen.append(site.hardness.detach().expand(HIDDEN))
            for value in (3.0, torch.linspace(2, 7, site.num_parameters, dtype=torch.double)):
                site.set_hardness(value)
                seen.append(site.hardness.detach().expand(HIDDEN))
                site.freeze_hardness()
                site.set_hardness(0.5)
                seen.append(site.hardness.expand(HIDDEN))
                site.set_hardness(value)
                site.unfreeze_hardness()
                seen.append(site.hardness.detach().expand(HIDDEN))
        return torch.stack(seen)

    sharded = whole_model(group)(make_model())
    assert "hardness=" not in repr(sharded[1])  # it would wait for the other ranks
    assert torch.equal(states(sharded), states(make_model()))


@fact(1, 2)
def what_is_gathered_after_an_evaluation_is_not_taken_for_the_parameter(group: Group) -> None:
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model = make_model(num_parameters=HIDDEN).float()
    raw = torch.tensor([0.1, 0.01, -0.1, 0.2, 0.03])
    model[1].raw_hardness.data.copy_(raw)
    expected = model[1].hardness.detach()
    scheduler = make_scheduler(fully_shard(model, mesh=group.mesh, mp_policy=policy))
    for _ in range(SWITCH - 1):
        scheduler.step()
    model(batches()[0][0].float())
    with pytest.raises(ValueError, match=r"raw_hardness is gathered here.*call reshard\(\) of the model first"):
        model[1].set_hardness(2.0)
    scheduler.step()  # the switch
    assert torch.equal(model[1].hardness, expected)
    model.reshard()
    model[1].unfreeze_hardness()
    assert torch.equal(model[1].raw_hardness.full_tensor(), raw)


@fact(2)
def a_scheduler_that_is_made_after_an_evaluation_warns_of_nothing(group: Group) -> None:
    model = make_model()
    for index in (0, 2, 4):  # the sites stay with the root, whose parameters the evaluation leaves gathered
        fully_shard(model[index], mesh=group.mesh)
    fully_shard(model, mesh=group.mesh)
    model(batches()[0][0])
    assert model[1].raw_hardness.numel() == 1 and not hasattr(model[1].raw_hardness, "full_tensor")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_scheduler(model)


@fact(2)
def a_sharded_network_becomes_relu_and_trains_on(group: Group) -> None:
    part = group.part(EXAMPLES)
    for wrap in (whole_model(group), each_module(group)):
        reference, model = make_model(), wrap(make_model())
        x = batches()[0][0]
        with lambda_gelu.relu_substituted(model), lambda_gelu.relu_substituted(reference):
            torch.testing.assert_close(model(x), reference(x))
        assert lambda_gelu.to_relu_(model).sites == lambda_gelu.to_relu_(reference).sites
        assert not any(isinstance(module, LambdaGELU) for module in model.modules())
        model.reshard()  # after an evaluation, as any optimizer needs it
        optimizers = [torch.optim.SGD(each.parameters(), lr=0.1) for each in (model, reference)]
        for step in range(2):
            for each, optimizer, its_part in zip((model, reference), optimizers, (part, slice(None)), strict=True):
                optimizer.zero_grad()
                each(batches()[step][0][its_part]).square().mean().backward()
                optimizer.step()
        torch.testing.assert_close(model(x), reference(x))
