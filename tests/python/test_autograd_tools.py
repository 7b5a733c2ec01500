"""What people do with a graph: checkpointing, hooks, compiled autograd, threads, anomaly mode, higher orders."""

import gc
import itertools
import threading
import weakref

import pytest
import torch
from references import double, hardness_of, reference, reference_softplus
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.utils import checkpoint as checkpointing
from torch.utils._python_dispatch import TorchDispatchMode

import lambda_gelu
from lambda_gelu import LambdaGELU

pytestmark = pytest.mark.usefixtures("device")

forward = torch.ops.lambda_gelu.lambda_gelu
backward = torch.ops.lambda_gelu.lambda_gelu_backward


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def dynamo():
    """With an empty cache before and after."""
    torch._dynamo.reset()
    yield torch._dynamo
    torch._dynamo.reset()


def network(count=1, *, frozen=False):
    net = nn.Sequential(nn.Linear(4, 6), LambdaGELU(count), nn.Linear(6, 2)).double()
    if frozen:
        net[1].freeze_hardness()
        net[1].set_hardness(2.5)
    return net


def gradients_of(net, run):
    net.zero_grad()
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4).requires_grad_()
    run(net, x).pow(2).sum().backward()
    return [x.grad, *(parameter.grad for parameter in net.parameters())]


class CountCalls(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "lambda_gelu":
            self.calls.append(function._opname)
        return function(*args, **(kwargs or {}))


# --- derivatives of the module ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("count", [1, 3])
def test_gradients_of_a_module(count, frozen):
    site = LambdaGELU(count, dtype=torch.float64)
    if frozen:
        site.freeze_hardness()

    def f(x, raw):
        return torch.func.functional_call(site, {"raw_hardness": raw}, (x,))

    arguments = (double(2, 3), (torch.randn(count, dtype=torch.float64) * 0.1).requires_grad_())
    assert gradcheck(f, arguments, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(f, arguments, check_batched_grad=True, check_fwd_over_rev=True)


LARGE = [1e30, -1e30, 3e38, -3e38, float("inf"), float("-inf")]


@pytest.mark.parametrize("temperature", [None, 0.1])
@pytest.mark.parametrize("value", LARGE)
def test_every_order_is_finite_for_inputs_of_any_size(value, temperature):
    x = torch.tensor([value, 0.5], requires_grad=True)
    hardness = torch.tensor([1.5], requires_grad=True)
    derivatives = [forward(x, hardness, 1, temperature)]
    for _ in range(3):
        finite = [d[d.isfinite()].sum() for d in derivatives]  # f(inf) is inf, and all that follows is finite
        derivatives = torch.autograd.grad(sum(finite), (x, hardness), create_graph=True)
        assert all(d.isfinite().all() for d in derivatives)
    direction = torch.autograd.grad(derivatives[1].sum(), x, allow_unused=True)[0]
    assert direction.isfinite().all()


@pytest.mark.parametrize("temperature", [None, 0.1])
@pytest.mark.parametrize("value", LARGE)
def test_every_derivative_at_a_large_input_has_its_limit(value, temperature):
    """f is x or 0 there: dx is 1 or 0, and every other derivative of any order is 0."""
    hardness = torch.tensor([1.5])
    one = torch.ones(1)

    def f(x, h):
        return backward(one, x, h, 1, temperature)

    x = torch.tensor([value])
    dx, dh = f(x, hardness)
    assert (dx.item(), dh.item()) == (float(value > 0), 0.0)
    second = torch.func.jacrev(f, argnums=(0, 1))(x, hardness)
    third = torch.func.jacfwd(torch.func.jacrev(f, argnums=(0, 1)), argnums=(0, 1))(x, hardness)
    assert not any(tensor.any() for tensor in torch.utils._pytree.tree_leaves((second, third)))


# --- checkpointing and saved tensors ---------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant, frozen):
    net = network(6, frozen=frozen)
    expected = gradients_of(net, lambda net, x: net(x))
    with CountCalls() as count:
        actual = gradients_of(net, lambda net, x: checkpointing.checkpoint(net, x, use_reentrant=reentrant))
    assert count.calls.count("lambda_gelu") == 2  # forward, and again in backward
    assert all(map(torch.equal, actual, expected))


@pytest.mark.parametrize("policy", ["MUST_SAVE", "PREFER_RECOMPUTE", "a list"])
def test_selective_checkpointing_knows_the_operator(policy):
    net = network(6)
    expected = gradients_of(net, lambda net, x: net(x))
    saves = policy != "PREFER_RECOMPUTE"
    if policy == "a list":
        chosen = [forward.default]
    else:

        def chosen(context, function, *args, **kwargs):
            policies = checkpointing.CheckpointPolicy
            return getattr(policies, policy) if function is forward.default else policies.PREFER_RECOMPUTE

    def run(net, x):
        return checkpointing.checkpoint(
            net, x, use_reentrant=False, context_fn=lambda: checkpointing.create_selective_checkpoint_contexts(chosen)
        )

    with CountCalls() as count:
        actual = gradients_of(net, run)
    assert count.calls.count("lambda_gelu") == (1 if saves else 2)
    assert all(map(torch.equal, actual, expected))


@pytest.mark.parametrize("temperature", [None, 0.5])
def test_input_and_hardness_are_all_that_is_saved(temperature):
    x, hardness = double(3, 4), hardness_of(4)
    packed = []

    def pack(tensor):
        packed.append(tensor.shape)
        return tensor.detach().cpu().numpy()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda array: torch.from_numpy(array).to(x.device)):
        y = forward(x, hardness, 1, temperature)
    assert packed == [x.shape, hardness.shape]
    f = reference if temperature is None else lambda x, h: reference_softplus(x, h, temperature)
    actual = torch.autograd.grad(y.sum(), (x, hardness))
    torch.testing.assert_close(actual, torch.autograd.grad(f(x, hardness).sum(), (x, hardness)))


def test_what_the_backward_saves_may_lie_elsewhere_too():
    x, hardness = double(3, 4), hardness_of(4)

    def second(f):
        first = torch.autograd.grad(f(x, hardness).sin().sum(), (x, hardness), create_graph=True)
        return torch.autograd.grad(sum(gradient.cos().sum() for gradient in first), (x, hardness))

    with torch.autograd.graph.save_on_cpu():
        actual = second(lambda_gelu.lambda_gelu)
    torch.testing.assert_close(actual, second(reference))


def test_save_on_cpu():
    net = network(6)
    expected = gradients_of(net, lambda net, x: net(x))
    with torch.autograd.graph.save_on_cpu():
        actual = gradients_of(net, lambda net, x: net(x))
    assert all(map(torch.equal, actual, expected))


def test_writes_to_saved_tensors_can_be_allowed():
    x, hardness = double(3, 4), hardness_of(4)
    expected = torch.autograd.grad(reference(x, hardness).sum(), (x, hardness))
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        copy = x.clone()
        y = lambda_gelu.lambda_gelu(copy, hardness)
        copy.fill_(0)
        actual = torch.autograd.grad(y.sum(), (x, hardness))
    torch.testing.assert_close(actual, expected)


# --- the graph -------------------------------------------------------------------------------------------------------


def test_names_edges_and_hooks():
    x, hardness = double(3, 4), hardness_of(4)
    (expected,) = torch.autograd.grad(reference(x, hardness).sum(), hardness)
    called = []
    y = lambda_gelu.lambda_gelu(x, hardness)
    node = y.grad_fn
    assert node.name() == "LambdaGeluBackward"
    assert [edge.name() for edge, _ in node.next_functions] == ["torch::autograd::AccumulateGrad"] * 2
    y.register_hook(lambda grad: called.append("tensor") or grad * 2)
    node.register_prehook(lambda grads: called.append("before"))
    node.register_hook(lambda inputs, outputs: called.append(("after", len(inputs), len(outputs))))
    x.register_post_accumulate_grad_hook(lambda tensor: called.append("accumulated"))
    torch.autograd.graph.register_multi_grad_hook((x, hardness), lambda grads: called.append(("both", len(grads))))
    y.retain_grad()
    node.metadata["note"] = 1
    assert y.grad_fn.metadata == {"note": 1}
    y.sum().backward()
    assert called[:3] == ["tensor", "before", ("after", 2, 1)]
    assert set(called[3:]) == {"accumulated", ("both", 2)}
    assert torch.equal(y.grad, torch.full_like(y, 2))
    torch.testing.assert_close(hardness.grad, 2 * expected)
    x, hardness = double(3, 4), hardness_of(4)
    (dx,) = torch.autograd.grad(lambda_gelu.lambda_gelu(x, hardness).sum(), x, create_graph=True)
    assert dx.grad_fn.name() == "LambdaGeluBackwardBackward"


def test_gradient_edges():
    x, hardness = double(3, 4), hardness_of(4)
    y = lambda_gelu.lambda_gelu(x * 2, hardness)
    edge = torch.autograd.graph.get_gradient_edge(y)
    actual = torch.autograd.grad(edge, (x, hardness), torch.ones_like(y))
    torch.testing.assert_close(actual, torch.autograd.grad(reference(x * 2, hardness).sum(), (x, hardness)))


@pytest.mark.parametrize("frozen", [False, True])
def test_full_backward_hooks_of_a_module(frozen):
    net = network(frozen=frozen)
    seen = []
    net[1].register_full_backward_pre_hook(lambda module, grads: seen.append(grads[0].shape))
    net[1].register_full_backward_hook(lambda module, inputs, outputs: seen.append((inputs[0].shape, outputs[0].shape)))
    net(double(3, 4)).sum().backward()
    assert seen == [(3, 6), ((3, 6), (3, 6))]


def test_the_graph_is_kept_and_freed_as_asked():
    x, hardness = double(3, 4), hardness_of(4)
    y = lambda_gelu.lambda_gelu(x, hardness).sum()
    y.backward(retain_graph=True)
    once = x.grad.clone()
    y.backward()
    assert torch.equal(x.grad, 2 * once)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.backward()
    (dx,) = torch.autograd.grad(lambda_gelu.lambda_gelu(x, hardness).sum(), x, create_graph=True)
    dx.sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        dx.sum().backward()


@pytest.mark.parametrize("which", [0, 1])
def test_a_write_to_what_was_saved_is_noticed(which):
    tensors = [double(3, 4) * 1, hardness_of(4) * 1]
    y = lambda_gelu.lambda_gelu(*tensors)
    with torch.no_grad():
        tensors[which].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.only("cpu")
def test_what_was_saved_is_released_by_backward():
    memory = pytest.importorskip("numpy").ones(1000)
    alive = weakref.ref(memory)
    x = torch.from_numpy(memory)
    y = lambda_gelu.lambda_gelu(x, hardness_of(1))
    node = y.grad_fn  # outlives the backward
    del x, memory
    gc.collect()
    assert alive() is not None
    y.sum().backward()
    gc.collect()
    assert alive() is None
    assert node.name() == "LambdaGeluBackward"


def test_only_the_gradients_that_are_asked_for_are_returned():
    x, hardness = double(3, 4), hardness_of(4)
    y = lambda_gelu.lambda_gelu(x, hardness)
    expected = torch.autograd.grad(reference(x, hardness).sum(), (x, hardness))
    for index, tensor in enumerate((x, hardness)):
        (actual,) = torch.autograd.grad(y.sum(), tensor, retain_graph=True)
        torch.testing.assert_close(actual, expected[index])
    unused = torch.zeros(1, requires_grad=True)
    assert torch.autograd.grad(y.sum(), unused, allow_unused=True) == (None,)


def test_undefined_gradients_stand_for_zero():
    class NoGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return None

    x, hardness = double(3, 4), hardness_of(4)
    y = NoGradient.apply(lambda_gelu.lambda_gelu(x, hardness))
    assert torch.autograd.grad(y.sum(), (x, hardness), allow_unused=True) == (None, None)
    both = torch.autograd.grad(lambda_gelu.lambda_gelu(x, hardness).sum(), (x, hardness), create_graph=True)
    second = torch.autograd.grad(NoGradient.apply(both[0]).sum() + both[1].sum(), (x, hardness))
    expected = torch.autograd.grad(reference(x, hardness).sum(), hardness, create_graph=True)[0].sum()
    torch.testing.assert_close(second, torch.autograd.grad(expected, (x, hardness)))


@pytest.mark.only("cpu")
def test_a_long_chain_is_freed_without_recursion():
    x = torch.randn(2, requires_grad=True)
    for _ in range(50_000):
        x = lambda_gelu.lambda_gelu(x, 1.0)
    del x  # one stack frame per node would end the process


@pytest.mark.parametrize("second_order", [False, True])
def test_threads_share_a_retained_graph(second_order):
    x, hardness = double(50, 4, 20), hardness_of(4)
    outputs = [lambda_gelu.lambda_gelu(x, hardness)]
    if second_order:
        outputs = torch.autograd.grad(outputs[0].sin().sum(), (x, hardness), create_graph=True)
    loss = sum(output.sin().sum() for output in outputs)
    expected = torch.autograd.grad(loss, (x, hardness), retain_graph=True)
    results, errors = [], []

    def work():
        try:
            results.extend(torch.autograd.grad(loss, (x, hardness), retain_graph=True) for _ in range(10))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(results) == 80
    for result in results:
        torch.testing.assert_close(result, expected)


def test_anomaly_mode_names_the_forward():
    x, hardness = double(3, 4), hardness_of(4)
    with pytest.warns(UserWarning, match="Anomaly Detection"), torch.autograd.detect_anomaly(check_nan=True):
        lambda_gelu.lambda_gelu(x, hardness).sum().backward()
        y = lambda_gelu.lambda_gelu(x * torch.nan, hardness)
        with (
            pytest.warns(UserWarning, match=r"Error detected in LambdaGeluBackward[\s\S]*test_anomaly_mode"),
            pytest.raises(RuntimeError, match="LambdaGeluBackward' returned nan values"),
        ):
            y.sum().backward()


def test_without_gradients_no_graph_is_made():
    x, hardness = double(3, 4), hardness_of(4)
    with torch.no_grad():
        assert lambda_gelu.lambda_gelu(x, hardness).grad_fn is None
    assert lambda_gelu.lambda_gelu(x.detach(), hardness.detach()).grad_fn is None
    assert LambdaGELU().requires_grad_(False)(x.float().detach()).grad_fn is None


def test_deterministic_algorithms_raise_nothing():
    x, hardness = double(3, 4), hardness_of(4)
    torch.use_deterministic_algorithms(True)
    try:
        first = torch.autograd.grad(lambda_gelu.lambda_gelu(x, hardness).sum(), (x, hardness), create_graph=True)
        torch.autograd.grad(sum(f.sum() for f in first), (x, hardness))
    finally:
        torch.use_deterministic_algorithms(False)


# --- compiled autograd -----------------------------------------------------------------------------------------------


def compiled_backward(dynamo, backend):
    return dynamo.compiled_autograd._enable(torch.compile(backend=backend, fullgraph=True, dynamic=False))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("temperature", [None, 0.5])
def test_compiled_autograd_for_every_choice_of_gradients(dynamo, backend, temperature):
    dynamo.utils.counters.clear()

    def run(learned):
        torch.manual_seed(1)
        tensors = [torch.randn(5, 4), torch.randn(4, 6), torch.rand(6) + 1]
        tensors = [t.requires_grad_(needed) for t, needed in zip(tensors, learned, strict=True)]
        y = torch.relu(forward(tensors[0] @ tensors[1], tensors[2], 1, temperature) * 2)
        return tensors, y

    for learned in (m for m in itertools.product([True, False], repeat=3) if any(m)):
        expected, y = run(learned)
        y.backward(torch.cos(y.detach()))
        actual, y = run(learned)
        with compiled_backward(dynamo, backend):
            y.backward(torch.cos(y.detach()))
        for a, e in zip(actual, expected, strict=True):
            assert (a.grad is None) == (e.grad is None)
            assert e.grad is None or torch.equal(a.grad, e.grad)
    assert dynamo.utils.counters["compiled_autograd"]["captures"] >= 1


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_autograd_of_the_second_order(dynamo, backend):
    x, hardness = double(3, 4), hardness_of(4)

    def first(f):
        return torch.autograd.grad(f(x, hardness).sin().sum(), (x, hardness), create_graph=True)

    actual, expected = first(lambda_gelu.lambda_gelu), first(reference)
    with compiled_backward(dynamo, backend):
        actual = torch.autograd.grad(sum(a.sin().sum() for a in actual), (x, hardness))
    expected = torch.autograd.grad(sum(e.sin().sum() for e in expected), (x, hardness))
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("compiled_forward", [False, True])
def test_compiled_autograd_trains_a_module_without_another_capture_for_another_hardness(
    dynamo, compiled_forward, frozen
):
    dynamo.utils.counters.clear()
    net = network(6, frozen=frozen)
    forward_of = torch.compile(net, backend="aot_eager", fullgraph=True) if compiled_forward else net
    for step in range(4):
        net[1].set_hardness(1.5 + step)
        expected = gradients_of(net, lambda net, x: net(x))
        with compiled_backward(dynamo, "aot_eager"):
            actual = gradients_of(net, lambda net, x: forward_of(x))
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a, e)
        assert bool(net[1].raw_hardness.grad.any()) == (not frozen)
    assert dynamo.utils.counters["compiled_autograd"]["captures"] == 1


def test_compiled_autograd_within_a_compiled_step(dynamo):
    net = network(6)
    expected = gradients_of(net, lambda net, x: net(x))
    net.zero_grad()
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(3, 4).requires_grad_()

    @torch.compile(backend="aot_eager")
    def step(x):
        net(x).pow(2).sum().backward()

    with dynamo.config.patch(compiled_autograd=True):
        step(x)
    for actual, gradient in zip((x, *net.parameters()), expected, strict=True):
        torch.testing.assert_close(actual.grad, gradient)


def test_compiled_autograd_with_saved_tensor_hooks(dynamo):
    x, hardness = double(3, 4), hardness_of(4)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t + 1, lambda t: t - 1):
        y = lambda_gelu.lambda_gelu(x, hardness)
    with compiled_backward(dynamo, "aot_eager"):
        actual = torch.autograd.grad(y.sum(), (x, hardness))
    torch.testing.assert_close(actual, torch.autograd.grad(reference(x, hardness).sum(), (x, hardness)))
