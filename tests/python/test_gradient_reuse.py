"""Backward writes dx into the incoming gradient where nobody else can see it, and only there.

Each case is run with reuse and without: the gradients must have the same bits, and whatever Python still holds of the
incoming gradient must be what it was.
"""

import contextlib

import pytest
import torch
from torch import nn
from torch.autograd.graph import register_multi_grad_hook, save_on_cpu, saved_tensors_hooks

from lambda_gelu.functional import (
    gradient_reuse_count,
    gradient_reuse_enabled,
    lambda_gelu,
    set_gradient_reuse,
    softplus_lambda_gelu,
)

pytestmark = pytest.mark.usefixtures("device")


@pytest.fixture(autouse=True)
def _reuse():
    torch.manual_seed(0)
    set_gradient_reuse(True)
    yield
    set_gradient_reuse(True)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(8, 16), nn.Linear(16, 4)
        self.raw_hardness = nn.Parameter(torch.zeros(1))

    def activation(self, x):
        return softplus_lambda_gelu(self.inner(x), self.raw_hardness, temperature=0.1)

    def forward(self, x):
        return self.outer(self.activation(x))


@pytest.fixture
def network():
    return Network()


@pytest.fixture
def x():
    return torch.randn(32, 8)


def run(network, loss, reuse):
    """The gradients of network's parameters and the number of reuses."""
    set_gradient_reuse(reuse)
    network.zero_grad()
    before = gradient_reuse_count()
    loss().backward()
    return [p.grad for p in network.parameters()], gradient_reuse_count() - before


def reuses(network, loss):
    expected, none = run(network, loss, reuse=False)
    actual, count = run(network, loss, reuse=True)
    assert none == 0
    for a, b in zip(actual, expected, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)
    return count


# --- where it happens ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(32, 8), (4, 32, 8), (2, 4, 32, 8)], ids=str)
def test_in_a_multilayer_perceptron(network, shape):
    x = torch.randn(shape)
    assert reuses(network, lambda: network(x).pow(2).sum()) == 1


def test_once_for_every_layer_of_a_deep_network(x):
    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.hardness = nn.Linear(8, 8), nn.Parameter(torch.full((8,), 1.5))

        def forward(self, x):
            return lambda_gelu(self.linear(x), self.hardness, channel_dim=-1)

    network = nn.Sequential(*[Layer() for _ in range(5)], nn.Linear(8, 3))
    assert reuses(network, lambda: nn.functional.cross_entropy(network(x), torch.zeros(32, dtype=torch.long))) == 5


def test_under_autocast(network, x, device):
    def loss():
        with torch.autocast(device, dtype=torch.bfloat16):
            return network(x).float().pow(2).sum()

    assert reuses(network, loss) == 1


def test_with_gradient_accumulation_and_an_optimizer(network, x):
    def train(reuse):
        set_gradient_reuse(reuse)
        torch.manual_seed(1)
        model = Network()
        optimizer = torch.optim.AdamW(model.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            for part in x.split(16):
                model(part).pow(2).sum().backward()
            optimizer.step()
        return list(model.parameters())

    before = gradient_reuse_count()
    trained = train(True)
    assert gradient_reuse_count() - before == 6
    assert all(torch.equal(a, b) for a, b in zip(trained, train(False), strict=True))


def test_twice_with_retain_graph(network, x):
    loss = network(x).pow(2).sum()
    before = gradient_reuse_count()
    parameters = list(network.parameters())
    first = torch.autograd.grad(loss, parameters, retain_graph=True)
    second = torch.autograd.grad(loss, parameters)
    assert gradient_reuse_count() - before == 2
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_it_can_be_switched_off(network, x):
    set_gradient_reuse(False)
    assert not gradient_reuse_enabled()
    before = gradient_reuse_count()
    network(x).pow(2).sum().backward()
    assert gradient_reuse_count() == before


# --- where somebody sees the gradient --------------------------------------------------------------------------------


class Kept:
    """Gradients that a hook has kept, each with a copy of what it was."""

    def __init__(self):
        self.pairs = []

    def keep(self, gradient):
        self.pairs.append((gradient, gradient.clone()))

    def assert_unchanged(self):
        assert self.pairs
        for kept, copy in self.pairs:
            assert torch.equal(kept, copy)


KEEPING_HOOKS = {
    "tensor hook": lambda y, keep: y.register_hook(keep),
    "node prehook": lambda y, keep: y.grad_fn.register_prehook(lambda grads: keep(grads[0])),
    "node hook": lambda y, keep: y.grad_fn.register_hook(lambda inputs, outputs: keep(outputs[0])),
    "multi-grad hook": lambda y, keep: register_multi_grad_hook((y,), lambda grads: keep(grads[0])),
    "multi-grad hook, any": lambda y, keep: register_multi_grad_hook((y,), keep, mode="any"),
    "a view": lambda y, keep: y.register_hook(lambda g: keep(g.view(-1)[3:9])),
    "NumPy": lambda y, keep: y.register_hook(lambda g: keep(torch.from_numpy(g.numpy()))),
    "storage": lambda y, keep: y.register_hook(
        lambda g: keep(g.new_empty(0).set_(g.untyped_storage(), 0, g.shape, g.stride()))
    ),
    "detached": lambda y, keep: y.register_hook(lambda g: keep(g.detach())),
    "DLPack": lambda y, keep: y.register_hook(lambda g: keep(torch.from_dlpack(g))),
}


@pytest.mark.parametrize("way", KEEPING_HOOKS)
def test_what_a_hook_keeps_does_not_change(network, x, way, on_cuda):
    if way == "NumPy":
        pytest.importorskip("numpy")
        if on_cuda:
            pytest.skip("NumPy cannot look at the memory of a GPU")
    kept = Kept()

    def loss():
        y = network.activation(x)
        KEEPING_HOOKS[way](y, kept.keep)
        return network.outer(y).pow(2).sum()

    assert reuses(network, loss) == 0
    kept.assert_unchanged()


def test_what_a_module_hook_keeps_does_not_change(network, x):
    class Activation(nn.Module):
        def forward(self, x):
            return softplus_lambda_gelu(x, network.raw_hardness, temperature=0.1)

    kept = Kept()
    activation = Activation()
    activation.register_full_backward_hook(lambda module, inputs, outputs: kept.keep(outputs[0]))
    assert reuses(network, lambda: network.outer(activation(network.inner(x))).pow(2).sum()) == 0
    kept.assert_unchanged()


def test_retained_gradient(network, x):
    gradients = []
    for reuse in (False, True):
        set_gradient_reuse(reuse)
        y = network.activation(x)
        y.retain_grad()
        network.outer(y).pow(2).sum().backward()
        gradients.append(y.grad)
    assert torch.equal(*gradients)


def test_gradient_of_the_output_itself(network, x):
    gradients = []
    for reuse in (False, True):
        set_gradient_reuse(reuse)
        y = network.activation(x)
        gradients.append(torch.autograd.grad(network.outer(y).pow(2).sum(), (y, network.inner.weight)))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("operation", [lambda y: y, lambda y: y + 1, lambda y: y.view(-1).view(32, 16)])
def test_a_gradient_that_the_user_supplies_stays(network, x, operation):
    mine = torch.randn(32, 16)
    copy = mine.clone()
    before = gradient_reuse_count()
    operation(network.activation(x)).backward(mine)
    torch.autograd.backward([operation(network.activation(x))], [mine])
    torch.autograd.grad(operation(network.activation(x)), network.inner.weight, grad_outputs=mine)
    assert gradient_reuse_count() == before
    assert torch.equal(mine, copy)


@pytest.mark.only("cpu")
def test_memory_of_numpy_stays(network, x):
    """A tensor over a NumPy array may be the last reference to its storage, but not to its memory."""
    np = pytest.importorskip("numpy")
    mine = np.random.default_rng(0).standard_normal((32, 16)).astype(np.float32)
    copy = mine.copy()

    def loss():
        y = network.activation(x)
        y.register_hook(lambda g: torch.from_numpy(mine))
        return network.outer(y).pow(2).sum()

    assert reuses(network, loss) == 0
    assert np.array_equal(mine, copy)


def test_a_gradient_that_a_custom_function_keeps(network, x):
    kept = Kept()

    class Keep(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return y.view_as(y)

        @staticmethod
        def backward(ctx, g):
            result = g * 2
            kept.keep(result)
            return result

    assert reuses(network, lambda: network.outer(Keep.apply(network.activation(x))).pow(2).sum()) == 0
    kept.assert_unchanged()


CONSUMERS = {
    "sum (expanded gradient)": lambda y: y.sum(),
    "mean of rows (expanded)": lambda y: y.mean(0).pow(2).sum(),
    "view": lambda y: y.view(-1).pow(2).sum(),
    "transposed": lambda y: y.t().contiguous().pow(2).sum(),
    "slices": lambda y: y[:, :8].pow(2).sum() + y[:, 8:].exp().sum(),
    "split": lambda y: sum(part.pow(2).sum() for part in y.split(4, dim=1)),
    "several": lambda y: y.pow(2).sum() + y.sin().sum() + (y * y).sum(),
    "itself twice": lambda y: (y + y).pow(2).sum(),
    "residual": lambda y: (y + y.exp()).pow(2).sum(),
    "stacked": lambda y: torch.stack([y, y]).pow(2).sum(),
    "indexed": lambda y: y[torch.tensor([0, 0, 1])].pow(2).sum(),
    "in place afterwards": lambda y: (y * 1).mul_(2).add_(y).pow(2).sum(),
    "another activation": lambda y: lambda_gelu(y, 2.0).pow(2).sum(),
}


@pytest.mark.parametrize("consumer", CONSUMERS)
def test_consumers_of_the_output(network, x, consumer):
    reuses(network, lambda: CONSUMERS[consumer](network.activation(x)))


def test_one_gradient_for_two_activations(network, x):
    """The backward of an addition hands one tensor to both of its inputs."""
    reuses(network, lambda: (network.activation(x) + network.activation(2 * x)).pow(2).sum())


def test_an_input_with_strides_of_its_own(network, x):
    hidden = [
        lambda: network.inner(x).t(),
        lambda: network.inner(x)[:, ::2],
        lambda: network.inner(x).chunk(2, 1)[1],
        lambda: network.inner(x[:1]).expand(32, 16),
        lambda: network.inner(x).view(2, 4, 4, 16).contiguous(memory_format=torch.channels_last),
    ]
    for make in hidden:
        reuses(network, lambda make=make: lambda_gelu(make(), 2.0).pow(2).sum())


# --- where autograd does more than one backward ----------------------------------------------------------------------


def test_not_with_create_graph(network, x):
    second = []
    for reuse in (False, True):
        set_gradient_reuse(reuse)
        before = gradient_reuse_count()
        first = torch.autograd.grad(network(x).pow(2).sum(), list(network.parameters()), create_graph=True)
        assert gradient_reuse_count() == before
        penalty = sum(g.pow(2).sum() for g in first)
        second.append(torch.autograd.grad(penalty, list(network.parameters()), allow_unused=True))
    for a, b in zip(*second, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


@pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
def test_not_under_functional_transforms(strategy):
    x = torch.randn(6)
    before = gradient_reuse_count()
    jacobian = torch.func.jacrev if strategy == "reverse-mode" else torch.func.jacfwd
    torch.func.vmap(jacobian(lambda x: lambda_gelu(x * 1, 2.0) * 1))(x.expand(3, 6))
    torch.func.hessian(lambda x: lambda_gelu(x * 1, 2.0).pow(2).sum())(x)
    torch.autograd.functional.jacobian(lambda x: lambda_gelu(x * 1, 2.0) * 1, x, vectorize=True)
    assert gradient_reuse_count() == before


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_in_anomaly_mode(network, x):
    with torch.autograd.detect_anomaly(check_nan=True):
        reuses(network, lambda: network(x).pow(2).sum())


@pytest.mark.parametrize(
    "hooks",
    [
        lambda: saved_tensors_hooks(lambda t: t, lambda t: t),
        lambda: saved_tensors_hooks(torch.clone, lambda t: t),
        save_on_cpu,
    ],
    ids=["same tensor", "copy", "save_on_cpu"],
)
def test_with_saved_tensor_hooks(network, x, hooks):
    def loss():
        with hooks():
            return network(x).pow(2).sum()

    reuses(network, loss)


def test_with_checkpointing(network, x):
    for reentrant in (False, True):

        def loss(reentrant=reentrant):
            inner = x.clone().requires_grad_()
            hidden = torch.utils.checkpoint.checkpoint(network.activation, inner, use_reentrant=reentrant)
            return network.outer(hidden).pow(2).sum()

        reuses(network, loss)


class Tagged(torch.Tensor):
    """A subclass in Python with the default __torch_function__."""


def test_not_of_a_subclass_with_a_dispatch_of_its_own(network, x):
    from torch.testing._internal.two_tensor import TwoTensor  # noqa: PLC0415 (a wrapper with __torch_dispatch__)

    inner = TwoTensor(torch.randn(32, 16), torch.randn(32, 16)).requires_grad_()
    before = gradient_reuse_count()
    (lambda_gelu(inner, torch.ones(1)) * 1).pow(2).sum().backward()
    # The wrapper's own gradient is never written to; its two plain parts run below autograd.
    assert gradient_reuse_count() == before
    for part in ("a", "b"):
        plain = getattr(inner.detach(), part).clone().requires_grad_()
        lambda_gelu(plain, torch.ones(1)).pow(2).sum().backward()
        torch.testing.assert_close(getattr(inner.grad, part), plain.grad)


def test_of_a_subclass_without_a_dispatch_of_its_own(network, x):
    reuses(network, lambda: network(x.as_subclass(Tagged)).pow(2).sum().as_subclass(torch.Tensor))


def test_not_under_a_dispatch_mode(network, x):
    from torch.utils._python_dispatch import TorchDispatchMode  # noqa: PLC0415

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), kwargs=None):
            assert not function._schema.name.endswith("lambda_gelu_backward_")
            return function(*arguments, **(kwargs or {}))

    before = gradient_reuse_count()
    with Mode():
        network(x).pow(2).sum().backward()
    assert gradient_reuse_count() == before


def compiled_autograd(backend):
    return torch._dynamo.compiled_autograd._enable(torch.compile(backend=backend))


@pytest.mark.parametrize("compiled", ["forward", "backward", "both"])
def test_compiled(network, x, compiled):
    torch._dynamo.reset()
    expected, _ = run(network, lambda: network(x).pow(2).sum(), reuse=False)
    forward = network if compiled == "backward" else torch.compile(network, backend="aot_eager")
    for _ in range(2):
        with contextlib.nullcontext() if compiled == "forward" else compiled_autograd("aot_eager"):
            actual, _ = run(network, lambda: forward(x).pow(2).sum(), reuse=True)
        torch.testing.assert_close(actual, expected)
    torch._dynamo.reset()


def test_hooks_see_the_gradient_under_compiled_autograd(network, x):
    torch._dynamo.reset()
    kept = Kept()

    def loss():
        y = network.activation(x)
        y.register_hook(kept.keep)
        return network.outer(y).pow(2).sum()

    with compiled_autograd("eager"):
        loss().backward()
    kept.assert_unchanged()
    torch._dynamo.reset()
