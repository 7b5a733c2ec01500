"""torch.func, vmap and forward mode: functions and modules against the same transform of PyTorch's own GELU."""

import copy
import itertools

import pytest
import torch
from references import double, hardness_of, reference, reference_softplus
from torch import nn
from torch.autograd import forward_ad

import lambda_gelu
from lambda_gelu import LambdaGELU, softplus_lambda_gelu

pytestmark = pytest.mark.usefixtures("device")

forward = torch.ops.lambda_gelu.lambda_gelu
backward = torch.ops.lambda_gelu.lambda_gelu_backward
BOTH = {"argnums": (0, 1)}
TEMPERATURE = 0.7


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


# --- torch.func ------------------------------------------------------------------------------------------------------


def function_of_hardness(x, hardness):
    return lambda_gelu.lambda_gelu(x, hardness)


def function_of_raw(x, raw):
    return softplus_lambda_gelu(x, raw, temperature=TEMPERATURE)


def learned_module(count):
    site = LambdaGELU(count, temperature=TEMPERATURE, dtype=torch.float64)
    return lambda x, raw: torch.func.functional_call(site, {"raw_hardness": raw}, (x,))


def frozen_module(count):
    site = LambdaGELU(count, dtype=torch.float64)
    site.freeze_hardness()
    return lambda x, override: torch.func.functional_call(site, {"hardness_override": override}, (x,))


def of_raw(x, raw):
    return reference_softplus(x, raw, TEMPERATURE)


SUBJECTS = {  # the function of input and hardness for a number of λ, and its reference
    "lambda_gelu": (lambda count: function_of_hardness, reference),
    "softplus_lambda_gelu": (lambda count: function_of_raw, of_raw),
    "a learned module": (learned_module, of_raw),
    "a frozen module": (frozen_module, reference),
}

func = torch.func
TRANSFORMS = {
    "grad": lambda f, x, h: func.grad(lambda x, h: f(x, h).pow(2).sum(), **BOTH)(x, h),
    "grad_and_value": lambda f, x, h: func.grad_and_value(lambda x, h: f(x, h).pow(2).sum(), **BOTH)(x, h),
    "vjp": lambda f, x, h: func.vjp(f, x, h)[1](torch.ones_like(x)),
    "jvp": lambda f, x, h: func.jvp(f, (x, h), (torch.cos(x), torch.cos(h))),
    "linearize": lambda f, x, h: func.linearize(f, x, h)[1](torch.cos(x), torch.cos(h)),
    "jacrev": lambda f, x, h: func.jacrev(f, **BOTH)(x, h),
    "jacrev in chunks": lambda f, x, h: func.jacrev(f, **BOTH, chunk_size=2)(x, h),
    "jacfwd": lambda f, x, h: func.jacfwd(f, **BOTH)(x, h),
    "hessian": lambda f, x, h: func.hessian(lambda x, h: f(x, h).pow(2).sum(), **BOTH)(x, h),
    "jacrev of jacrev": lambda f, x, h: func.jacrev(func.jacrev(lambda x, h: f(x, h).sum(), **BOTH), **BOTH)(x, h),
    "jacfwd of jacfwd": lambda f, x, h: func.jacfwd(func.jacfwd(f, **BOTH), **BOTH)(x, h),
    "jacrev of jacfwd": lambda f, x, h: func.jacrev(func.jacfwd(f, **BOTH), **BOTH)(x, h),
    "jvp of jvp": lambda f, x, h: func.jvp(
        lambda x, h: func.jvp(f, (x, h), (torch.cos(x), torch.cos(h)))[1], (x, h), (torch.sin(x), torch.sin(h))
    ),
    "grad of jvp": lambda f, x, h: func.grad(
        lambda x, h: func.jvp(f, (x, h), (torch.ones_like(x), torch.ones_like(h)))[1].sum(), **BOTH
    )(x, h),
    "jvp of grad": lambda f, x, h: func.jvp(
        func.grad(lambda x, h: f(x, h).pow(2).sum(), **BOTH), (x, h), (torch.cos(x), torch.cos(h))
    ),
    "grad of grad of grad": lambda f, x, h: func.grad(
        lambda x: func.grad(lambda x: func.grad(lambda x: f(x, h).sum())(x).sum())(x).sum()
    )(x),
    "jacobian, vectorized": lambda f, x, h: torch.autograd.functional.jacobian(f, (x, h), vectorize=True),
    "jacobian, forward mode": lambda f, x, h: torch.autograd.functional.jacobian(
        f, (x, h), vectorize=True, strategy="forward-mode"
    ),
}


@pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node")  # torch.func.linearize's own
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("subject", SUBJECTS)
def test_a_transform_gives_what_it_gives_of_the_reference(subject, transform, count):
    make, expected = SUBJECTS[subject]
    x, hardness = double(2, 3, requires_grad=False), hardness_of(count, requires_grad=False)
    apply = TRANSFORMS[transform]
    torch.testing.assert_close(apply(make(count), x, hardness), apply(expected, x, hardness))


def test_a_frozen_module_has_zero_derivatives_of_raw_hardness_under_every_transform():
    site = LambdaGELU(3, dtype=torch.float64)
    site.freeze_hardness()
    x, raw = double(2, 3, requires_grad=False), torch.zeros(3, dtype=torch.float64)

    def f(raw):
        return torch.func.functional_call(site, {"raw_hardness": raw}, (x,)).sum()

    for derivative in (func.grad(f), func.jacfwd(f), func.jacrev(f), func.hessian(f)):
        assert not derivative(raw).any()


# --- vmap ------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")  # a missing rule warns and loops
@pytest.mark.parametrize("temperature", [None, 0.5])
@pytest.mark.parametrize("channel_dim", [0, 1, -1])
@pytest.mark.parametrize("dims", [(0, None), (-1, None), (None, 0), (None, 1), (0, 0), (1, 1)], ids=str)
@pytest.mark.parametrize("one", [True, False])
@pytest.mark.parametrize("gradient_dim", [None, 0, 2])
def test_vmap(dims, channel_dim, one, temperature, gradient_dim):
    batch, shape = 3, [4, 5, 2]
    count = 1 if one else shape[channel_dim]

    def make(sizes, dim):
        size = list(sizes)
        if dim is not None:
            size.insert(dim if dim >= 0 else len(size) + 1 + dim, batch)
        return torch.rand(size, dtype=torch.float64) + 0.5

    def example(tensor, dim, i):
        return tensor if dim is None else tensor.select(dim, i)

    x, hardness, g = make(shape, dims[0]), make([count], dims[1]), make(shape, gradient_dim)

    def apply(x, hardness):
        return forward(x, hardness, channel_dim, temperature)

    def apply_backward(g, x, hardness):
        return backward(g, x, hardness, channel_dim, temperature)

    examples = [(example(x, dims[0], i), example(hardness, dims[1], i)) for i in range(batch)]
    torch.testing.assert_close(torch.vmap(apply, in_dims=dims)(x, hardness), torch.stack([apply(*e) for e in examples]))
    expected = zip(*(apply_backward(example(g, gradient_dim, i), *e) for i, e in enumerate(examples)), strict=True)
    actual = torch.vmap(apply_backward, in_dims=(gradient_dim, *dims))(g, x, hardness)
    torch.testing.assert_close(actual, tuple(torch.stack(e) for e in expected))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("chunk_size", [1, 2, None])
def test_nested_vmap_over_input_and_hardness(chunk_size):
    x, hardness = double(3, 5, 4, 2, requires_grad=False), hardness_of((2, 4), requires_grad=False)
    inner = torch.vmap(lambda_gelu.lambda_gelu, in_dims=(0, None), chunk_size=chunk_size)  # examples of (5, 4, 2)
    outer = torch.vmap(inner, in_dims=(None, 0))
    expected = torch.stack([torch.stack([reference(e, h) for e in x]) for h in hardness])
    torch.testing.assert_close(outer(x, hardness), expected)
    swapped = torch.vmap(torch.vmap(lambda_gelu.lambda_gelu, in_dims=(None, 0)), in_dims=(0, None))
    torch.testing.assert_close(swapped(x, hardness), expected.transpose(0, 1))


@pytest.mark.filterwarnings("error")
def test_vmap_of_what_has_few_dimensions_or_none():
    x, hardness = double(6, requires_grad=False), hardness_of(1, requires_grad=False)
    torch.testing.assert_close(torch.vmap(lambda v: forward(v, hardness))(x), reference(x, hardness))
    torch.testing.assert_close(
        torch.vmap(lambda v: forward(v, hardness, channel_dim=-1))(x[:, None]), reference(x, hardness)[:, None]
    )
    assert torch.vmap(lambda v: forward(v, hardness))(x[:1]).shape == (1,)
    assert torch.vmap(lambda v: forward(v, hardness))(x.new_empty(2, 0)).shape == (2, 0)
    float_hardness = torch.vmap(lambda v: lambda_gelu.lambda_gelu(v, 1.5))(x)
    torch.testing.assert_close(float_hardness, reference(x, torch.tensor([1.5], dtype=torch.float64)))


@pytest.mark.filterwarnings("error")
def test_levels_of_vmap_and_grad_that_do_not_nest_alike():
    x, hardness = double(3, 5, 4, requires_grad=False), hardness_of((3, 1), requires_grad=False)

    def outer_hardness(x, h):  # λ batched outside, x inside, differentiated in between
        return torch.vmap(lambda v: lambda_gelu.lambda_gelu(v, h))(x).sum()

    actual = torch.vmap(func.grad(outer_hardness, argnums=1), in_dims=(None, 0))(x[0], hardness)
    expected = torch.stack([func.grad(lambda h: reference(x[0], h).sum())(h) for h in hardness])
    torch.testing.assert_close(actual, expected)

    def unrelated(example):  # an unrelated vmap innermost
        def loss(h):
            return torch.vmap(lambda k: lambda_gelu.lambda_gelu(example, h).sum() * k)(torch.arange(3.0)).sum()

        return func.grad(loss)(hardness[0])

    expected = torch.stack([3 * func.grad(lambda h: reference(e, h).sum())(hardness[0]) for e in x])  # noqa: B023
    torch.testing.assert_close(torch.vmap(unrelated)(x), expected)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transform", ["jacfwd", "jacrev", "hessian"])
def test_vmap_of_second_order_transforms(transform):
    x, hardness = double(4, 3, requires_grad=False), hardness_of(3, requires_grad=False)

    def of(f):
        apply = getattr(func, transform)(lambda h, v: f(v, h, 0).pow(2).sum())
        return torch.vmap(apply, in_dims=(None, 0))(hardness, x)

    torch.testing.assert_close(of(forward), of(reference))


# --- modules ---------------------------------------------------------------------------------------------------------


def network(count, *, frozen=False):
    net = nn.Sequential(nn.Linear(4, 6), LambdaGELU(count, channel_dim=-1), nn.Linear(6, 2)).double()
    if frozen:
        net[1].freeze_hardness()
        net[1].set_hardness(2.5)
    return net


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("count", [1, 6])
def test_per_sample_gradients_of_a_network(count, frozen):
    net = network(count, frozen=frozen)
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    x, target = double(5, 4, requires_grad=False), double(5, 2, requires_grad=False)

    def loss(parameters, x, target):
        return (func.functional_call(net, parameters, (x.unsqueeze(0),)) - target).pow(2).sum()

    actual = torch.vmap(func.grad(loss), in_dims=(None, 0, 0))(parameters, x, target)
    for index in range(5):
        net.zero_grad()
        (net(x[index : index + 1]) - target[index]).pow(2).sum().backward()  # one by one, with the engine
        for name, parameter in net.named_parameters():
            torch.testing.assert_close(actual[name][index], parameter.grad)
    assert bool(actual["1.raw_hardness"].any()) == (not frozen)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [1, 4])
def test_per_sample_gradients_of_the_functions(count):
    hardness = hardness_of(count, requires_grad=False)
    x = double(5, 4, requires_grad=False)
    gradient = func.grad(lambda h, x: lambda_gelu.lambda_gelu(x, h, channel_dim=0).sum())
    expected = func.grad(lambda h, x: reference(x, h, 0).sum())
    actual = torch.vmap(gradient, in_dims=(None, 0))(hardness, x)
    torch.testing.assert_close(actual, torch.stack([expected(hardness, row) for row in x]))


@pytest.mark.parametrize("writes", range(4))
def test_functional_call_with_another_override_freezes_for_the_call(writes):
    """However often that tensor has been written to: it is another one."""
    site, x = LambdaGELU(), torch.linspace(-3, 3, 7)
    learned = site(x)
    override = torch.tensor([5.0])
    for _ in range(writes):
        override.fill_(5.0)
    y = func.functional_call(site, {"hardness_override": override}, (x,))
    assert torch.equal(y, lambda_gelu.lambda_gelu(x, 5.0))
    assert not site.is_frozen and torch.equal(site(x), learned)
    site.freeze_hardness()
    nothing = torch.full((1,), torch.nan)
    for _ in range(writes):
        nothing.fill_(torch.nan)
    raw = torch.tensor([0.4])
    y = func.functional_call(site, {"hardness_override": nothing, "raw_hardness": raw}, (x,))
    assert torch.equal(y, softplus_lambda_gelu(x, raw, temperature=0.1))
    assert site.is_frozen and torch.equal(site(x), learned)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("count", [1, 6])
def test_an_ensemble_of_stacked_networks(count, frozen):
    members = [network(count, frozen=frozen) for _ in range(3)]
    for number, member in enumerate(members):
        member[1].set_hardness(1.5 + number)
    parameters, buffers = func.stack_module_state(members)
    x = double(5, 4, requires_grad=False)

    def call(parameters, buffers, x):
        return func.functional_call(members[0], (parameters, buffers), (x,))

    y = torch.vmap(call, in_dims=(0, 0, None))(parameters, buffers, x)
    expected = torch.stack([member(x) for member in members])
    torch.testing.assert_close(y, expected)
    y.pow(2).sum().backward()
    expected.pow(2).sum().backward()
    for name, stacked in parameters.items():
        gradients = torch.stack([member.get_parameter(name).grad for member in members])
        torch.testing.assert_close(stacked.grad, gradients)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("count", [1, 4])
def test_an_ensemble_of_sites_of_which_some_are_frozen(count, frozen):
    sites = [LambdaGELU(count, init_hardness=1.5 + number) for number in range(4)]
    for site in sites[::2]:
        site.freeze_hardness()
        site.set_hardness(0.7)
    parameters, buffers = func.stack_module_state(sites)
    template, x = copy.deepcopy(sites[0 if frozen else 1]), torch.randn(5, 4)

    def call(parameters, buffers):
        return func.functional_call(template, (parameters, buffers), (x,))

    y = torch.vmap(call)(parameters, buffers)
    expected = torch.stack([site(x) for site in sites])
    torch.testing.assert_close(y, expected)
    y.pow(2).sum().backward()
    expected.pow(2).sum().backward()
    torch.testing.assert_close(parameters["raw_hardness"].grad, torch.stack([site.raw_hardness.grad for site in sites]))
    assert template.is_frozen == frozen


@pytest.mark.parametrize("frozen", [False, True])
def test_the_hessian_of_a_network(frozen):
    net = network(1, frozen=frozen)
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    x = double(5, 4, requires_grad=False)

    def of(net):
        return func.hessian(lambda p: func.functional_call(net, p, (x,)).pow(2).sum())(parameters)

    class Reference(nn.Module):
        def __init__(self):
            super().__init__()
            self.raw_hardness = nn.Parameter(net[1].raw_hardness.detach().clone())

        def forward(self, x):
            if frozen:
                return reference(x, torch.tensor([2.5], dtype=torch.float64)) + 0 * self.raw_hardness
            return reference_softplus(x, self.raw_hardness, net[1].temperature)

    actual, expected = of(net), of(nn.Sequential(net[0], Reference(), net[2]))
    for one, other in itertools.product(parameters, repeat=2):
        torch.testing.assert_close(actual[one][other], expected[one][other])


# --- forward mode ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", [(True, True), (True, False), (False, True)], ids=str)
@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("count", [1, 3])
def test_dual_numbers(count, subject, which):
    tensors = (double(2, 3, requires_grad=False), hardness_of(count, requires_grad=False))
    tangents = [torch.randn_like(tensor) for tensor in tensors]

    def tangent(f):
        with forward_ad.dual_level():
            arguments = [
                forward_ad.make_dual(tensor, tangent) if dual else tensor
                for tensor, tangent, dual in zip(tensors, tangents, which, strict=True)
            ]
            return forward_ad.unpack_dual(f(*arguments)).tangent

    make, expected = SUBJECTS[subject]
    torch.testing.assert_close(tangent(make(count)), tangent(expected))


def test_dual_numbers_of_parameters_through_a_network():
    net = network(6)
    x = double(5, 4, requires_grad=False)
    names = [name for name, _ in net.named_parameters()]
    tangents = {name: torch.randn_like(net.get_parameter(name)) for name in names}
    with forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(net.get_parameter(name).detach(), tangents[name]) for name in names}
        tangent = forward_ad.unpack_dual(func.functional_call(net, duals, (x,))).tangent
    step = 1e-6
    moved = [
        func.functional_call(net, {n: net.get_parameter(n).detach() + s * step * tangents[n] for n in names}, (x,))
        for s in (1, -1)
    ]
    torch.testing.assert_close(tangent, (moved[0] - moved[1]) / (2 * step), rtol=1e-6, atol=1e-7)


def test_reverse_over_dual_numbers():
    x, hardness = double(2, 3), hardness_of(3)

    def gradients(f):
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, torch.ones_like(x))
            tangent = forward_ad.unpack_dual(f(dual, hardness)).tangent
        return torch.autograd.grad(tangent.pow(2).sum(), (x, hardness))

    torch.testing.assert_close(gradients(lambda_gelu.lambda_gelu), gradients(reference))


def test_a_tangent_of_another_layout_is_read_right():
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    tangent = torch.randn(4, 3, 2, dtype=torch.float64).permute(2, 1, 0)
    hardness = hardness_of(3, requires_grad=False)

    def of(f):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(f(forward_ad.make_dual(x, tangent), hardness)).tangent

    torch.testing.assert_close(of(lambda_gelu.lambda_gelu), of(reference))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_tangents_and_transforms_of_16_bits_beside_a_float32_hardness(dtype):
    x, hardness = torch.randn(5, 3).to(dtype), torch.rand(3) + 1
    y, tangent = func.jvp(lambda_gelu.lambda_gelu, (x, hardness), (torch.ones_like(x), torch.ones_like(hardness)))
    expected = func.jvp(reference, (x.double(), hardness), (torch.ones(5, 3).double(), torch.ones(3)))[1]
    assert y.dtype == tangent.dtype == dtype
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(tangent.double(), expected, rtol=tolerance, atol=tolerance)
    gradient = func.grad(lambda h, v: lambda_gelu.lambda_gelu(v, h, channel_dim=0).float().sum())
    per_sample = torch.vmap(gradient, in_dims=(None, 0))(hardness, x)
    assert per_sample.dtype == torch.float32
    torch.testing.assert_close(
        per_sample.sum(0),
        func.grad(lambda h: reference(x.double(), h).sum())(hardness),
        rtol=tolerance,
        atol=tolerance,
    )
