"""The operators on DTensors: the same numbers as on tensors, and no communication that the mathematics does not ask."""

from __future__ import annotations

import copy
import itertools

import torch
from group import Group, fact
from torch import Tensor
from torch.distributed.tensor import (
    DTensor,
    Partial,
    Placement,
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
)
from torch.distributed.tensor.debug import CommDebugMode

import lambda_gelu
from lambda_gelu import LambdaGELU

SHAPE = (4, 5, 2)  # no dimension is divided evenly by 3, and one is shorter than that
OP = torch.ops.lambda_gelu.lambda_gelu


def data(channels: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(SHAPE, dtype=torch.double), torch.rand(channels).double() + 1, torch.randn(SHAPE).double()


def placed(tensor: Tensor, group: Group, placement: Placement) -> DTensor:
    if isinstance(placement, Partial):
        weights = torch.arange(1, group.size + 1, dtype=tensor.dtype)
        part = tensor * (weights / weights.sum())[group.rank]
        result = DTensor.from_local(part, group.mesh, [placement], run_check=False)
    else:
        result = distribute_tensor(tensor, group.mesh, [placement])
    return result.detach()


def assert_same(actual: DTensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual.full_tensor(), expected, rtol=1e-12, atol=1e-12)


@fact(2, 3)
def every_placement_gives_the_numbers_of_plain_tensors(group: Group) -> None:
    placements = [Replicate(), Partial(), *map(Shard, range(len(SHAPE)))]
    for channels, temperature in itertools.product((1, SHAPE[1]), (None, 0.7)):
        x, hardness, g = data(channels)
        rx, rh = x.clone().requires_grad_(), hardness.clone().requires_grad_()
        expected = OP(rx, rh, 1, temperature)
        expected.backward(g)
        for x_placement, h_placement in itertools.product(placements, (Replicate(), Shard(0))):
            dx = placed(x, group, x_placement).requires_grad_()
            dh = placed(hardness, group, h_placement).requires_grad_()
            y = OP(dx, dh, 1, temperature)
            assert y.grad_fn.name() == "LambdaGeluBackward"
            assert not any(isinstance(placement, Partial) for placement in y.placements)  # it is not linear
            assert_same(y.detach(), expected.detach())
            y.backward(placed(g, group, y.placements[0]))
            assert_same(dx.grad, rx.grad)
            assert_same(dh.grad, rh.grad)


@fact(2, 3)
def a_sharded_input_needs_no_communication_beside_a_hardness_that_fits(group: Group) -> None:
    # Per channel λ are sharded along with the channels, else λ is replicated. Sizes are those that no rank lacks.
    x, g = torch.randn(6, 6, 6), torch.randn(6, 6, 6)
    for channels, dim in itertools.product((1, 6), range(-3, 3)):
        fits = Shard(0) if channels > 1 and dim % 3 == 1 else Replicate()
        dx, dg = (placed(tensor, group, Shard(dim)) for tensor in (x, g))
        dh = placed(torch.rand(channels) + 1, group, fits).requires_grad_()
        dx.requires_grad_()
        with CommDebugMode() as communication:
            y = OP(dx, dh, -2)
            y.backward(dg)
        assert communication.get_total_counts() == 0
        assert y.placements == dx.grad.placements == (Shard(dim % 3),)
        assert dh.grad.placements == ((Shard(0),) if fits.is_shard() else (Partial(),))


@fact(2, 3)
def a_gradient_that_is_partial_stays_so_since_backward_is_linear_in_it(group: Group) -> None:
    x, hardness, g = data(1)
    arguments = (placed(g, group, Partial()), placed(x, group, Replicate()), placed(hardness, group, Replicate()))
    with CommDebugMode() as communication:
        dx, dh = torch.ops.lambda_gelu.lambda_gelu_backward(*arguments)
    assert communication.get_total_counts() == 0
    assert dx.placements == dh.placements == (Partial(),)
    for actual, expected in zip((dx, dh), torch.ops.lambda_gelu.lambda_gelu_backward(g, x, hardness), strict=True):
        assert_same(actual, expected)


@fact(2, 3)
def ranks_without_an_element_take_part(group: Group) -> None:
    x = torch.randn(1, 4, dtype=torch.double)
    for count, channel_dim in ((1, 0), (4, 1)):
        hardness = torch.rand(count, dtype=torch.double) + 1
        dx, dh = placed(x, group, Shard(0)).requires_grad_(), placed(hardness, group, Shard(0)).requires_grad_()
        assert dx.to_local().shape[0] == (group.rank == 0)
        y = OP(dx, dh, channel_dim)
        y.sum().backward()
        rx, rh = x.clone().requires_grad_(), hardness.clone().requires_grad_()
        OP(rx, rh, channel_dim).sum().backward()
        assert_same(dx.grad, rx.grad)
        assert_same(dh.grad, rh.grad)


@fact(2, 3)
def second_order_gradients_agree(group: Group) -> None:
    for channels, placement in itertools.product((1, SHAPE[1]), (Shard(0), Shard(1))):
        x, hardness, _ = data(channels)

        def second(x, hardness):
            gradients = torch.autograd.grad(OP(x, hardness).sum(), (x, hardness), create_graph=True)
            return torch.autograd.grad(sum(gradient.square().sum() for gradient in gradients), (x, hardness))

        placements = (placement, Replicate())
        arguments = [placed(tensor, group, to) for tensor, to in zip((x, hardness), placements, strict=True)]
        actual = second(*(argument.requires_grad_() for argument in arguments))
        expected = second(x.requires_grad_(), hardness.requires_grad_())
        for a, e in zip(actual, expected, strict=True):
            assert_same(a, e)


@fact(2)
def a_distributed_module_learns_and_hardens(group: Group) -> None:
    site = LambdaGELU(SHAPE[1], init_hardness=1.5).double()
    plain, x = copy.deepcopy(site), data(1)[0]
    distribute_module(site, group.mesh)
    assert isinstance(site.hardness_override, DTensor)

    def agree() -> None:
        for each in (site, plain):
            each.raw_hardness.grad = None
        y = site(placed(x, group, Shard(0)))
        assert_same(y.detach(), plain(x).detach())
        y.square().sum().backward()
        plain(x).square().sum().backward()
        assert_same(site.raw_hardness.grad, plain.raw_hardness.grad)
        assert torch.equal(site.hardness, plain.hardness)

    agree()
    for change in (
        lambda each: each.freeze_hardness(),
        lambda each: each.set_hardness(3.0),
        lambda each: each.hardness_override.fill_(4.0),
        lambda each: each.unfreeze_hardness(),
    ):
        for each in (site, plain):
            change(each)
        assert site.is_frozen == plain.is_frozen
        agree()


@fact(2)
def one_compiled_graph_takes_dtensors(group: Group) -> None:
    x, hardness, g = data(SHAPE[1])
    compiled = torch.compile(
        lambda x, h: lambda_gelu.lambda_gelu(x, h) * 2, fullgraph=True, backend="aot_eager", dynamic=False
    )
    dx, dh = placed(x, group, Shard(1)).requires_grad_(), placed(hardness, group, Shard(0)).requires_grad_()
    y = compiled(dx, dh)
    y.backward(placed(g, group, Shard(1)))
    rx, rh = x.requires_grad_(), hardness.requires_grad_()
    (lambda_gelu.lambda_gelu(rx, rh) * 2).backward(g)
    assert_same(dx.grad, rx.grad)
    assert_same(dh.grad, rh.grad)
