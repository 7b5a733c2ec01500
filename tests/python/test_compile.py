"""torch.compile: what is compiled computes what runs without, in either mode, and is compiled once.

Most tests take the backends "eager" and "aot_eager", which compile in a moment: Inductor takes seconds for a graph.
"""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lambda_gelu
from lambda_gelu import HardnessScheduler, LambdaGELU, compiler
from lambda_gelu.rules import decomposition

OP = torch.ops.lambda_gelu.lambda_gelu.default
OP_BACKWARD = torch.ops.lambda_gelu.lambda_gelu_backward.default
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    lambda_gelu.set_compile_mode("auto")
    torch._dynamo.reset()


@pytest.fixture(params=["fuse", "opaque"])
def mode(request):
    lambda_gelu.set_compile_mode(request.param)
    return request.param


def functional(x, hardness):
    return lambda_gelu.lambda_gelu(x, hardness)


def softplus(x, raw_hardness):
    return lambda_gelu.softplus_lambda_gelu(x, raw_hardness, temperature=0.3)


def gradients(function, *inputs):
    """The output and the gradients of a weighted sum of it."""
    inputs = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    output = function(*inputs)
    weight = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).reshape(output.shape)
    return output.detach(), *torch.autograd.grad(output, inputs, weight)


def assert_same(actual, expected, **tolerance):
    for one, other in zip(actual, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerance)
        assert one.stride() == other.stride()


def compilations():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def generated(function):
    """What Inductor wrote for one call."""
    from torch._inductor.utils import run_and_get_code  # noqa: PLC0415

    return run_and_get_code(function)[1]


def calls_kernel(code):
    return "torch.ops.lambda_gelu.lambda_gelu" in code


# --- the formulas, without a compiler --------------------------------------------------------------------------------


def exact(z):
    """Φ(z) and φ(z) for z in float64, to 1e-13 relative."""
    bell = torch.exp(-z * z / 2)
    tail = torch.special.erfcx(z.abs() * 0.5**0.5) * bell / 2
    return torch.where(z < 0, tail, 1 - tail), bell * (2 * torch.pi) ** -0.5


@pytest.mark.parametrize("hardness", [1.0, 1.3, 1.693, 3.0, 8.0, 80.0, 100.0])
def test_the_formula_keeps_the_negative_tail_in_float32(hardness):
    lam = torch.tensor([hardness])
    x = torch.linspace(-13, 8, 200_002, dtype=torch.float64).div(lam.double()).float()
    z = x.double() * lam.double()
    gate, bell = exact(z)
    y = decomposition.forward(x, lam).double()
    dx, dlam = decomposition.backward(torch.ones_like(x), x, lam)
    error = (y / (x.double() * gate) - 1).abs()
    slope = gate + z * bell
    slope_error = (dx.double() - slope).abs()
    assert error.max() < 3e-5
    assert error[z > -2].max() < 1e-6
    assert slope_error.max() < 3e-7
    assert (slope_error / slope.abs())[z < -1].max() < 3e-5
    assert abs(dlam.item() / (x.double() ** 2 * bell).sum().item() - 1) < 2e-6


def test_the_formula_keeps_the_negative_tail_in_float64():
    mpmath = pytest.importorskip("mpmath")
    x = torch.linspace(-21.8, 5, 400, dtype=torch.float64)
    lam = torch.tensor([1.693], dtype=torch.float64)
    y = decomposition.forward(x, lam)
    slope, _ = decomposition.backward(torch.ones_like(x), x, lam)
    with mpmath.workdps(40):
        for value, got, got_slope in zip(x.tolist(), y.tolist(), slope.tolist(), strict=True):
            z = mpmath.mpf(value) * lam.item()
            gate = mpmath.erfc(-z / mpmath.sqrt(2)) / 2
            allowed = 1 + z * z  # the rounding of z², which the exponential multiplies
            assert abs(got / (value * gate) - 1) < 5e-16 * allowed
            assert abs(got_slope - (gate + z * mpmath.npdf(z))) < 5e-16 * allowed * (gate + abs(z) * mpmath.npdf(z))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("hardness", [1e-30, 1e-3, 1.0, 100.0, 1e30, float("inf"), float("nan")])
def test_the_formula_treats_special_values_as_the_kernel(hardness, dtype):
    lam = torch.tensor([hardness], dtype=dtype)
    largest = torch.finfo(dtype).max
    x = torch.tensor([0.0, -0.0, 1.0, -1.0, 1e30, -1e30, largest, -largest, torch.inf, -torch.inf, torch.nan])
    x = x.to(dtype)
    torch.testing.assert_close(decomposition.forward(x, lam), OP(x, lam), equal_nan=True, rtol=2e-6, atol=0)
    for part in (x[:-1], x[-1:]):  # NaN would hide the others in the sum
        actual = decomposition.backward(torch.ones_like(part), part, lam)
        expected = OP_BACKWARD(torch.ones_like(part), part, lam)
        torch.testing.assert_close(actual, expected, equal_nan=True, rtol=1e-5, atol=1e-6)
    if hardness >= 1:
        assert decomposition.backward(torch.ones(10, dtype=dtype), x[:-1], lam)[1].isfinite().all()


@pytest.mark.parametrize("temperature", [None, 0.1, 3.0])
@pytest.mark.parametrize("hardness_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_formula_agrees_with_the_kernel(dtype, hardness_dtype, temperature):
    torch.manual_seed(0)
    for shape, count, dim in [
        ((7, 5, 3), 1, 1),
        ((7, 5, 3), 5, 1),
        ((7, 5), 5, -1),
        ((5,), 5, 0),
        ((), 1, 1),
        ((0, 5), 5, 1),
    ]:
        x, g = torch.randn(shape, dtype=dtype) * 2, torch.randn(shape, dtype=dtype)
        hardness = torch.rand(count, dtype=hardness_dtype) + (0 if temperature else 0.5)
        args = (hardness, dim, temperature)
        expected = (OP(x, *args), *OP_BACKWARD(g, x, *args))
        actual = (decomposition.forward(x, *args), *decomposition.backward(g, x, *args))
        for one, other in zip(actual, expected, strict=True):
            assert one.dtype == other.dtype
            kept = torch.float32 if one.dtype == torch.float64 != dtype else one.dtype  # what it was computed in
            rtol = {torch.float32: 3e-6, torch.float64: 1e-13, torch.bfloat16: 8e-3, torch.float16: 1e-3}[kept]
            torch.testing.assert_close(one, other, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize(
    "x",
    [
        torch.randn(2, 4, 3, 3).contiguous(memory_format=torch.channels_last),
        torch.randn(3, 4, 2).permute(2, 1, 0),
        torch.randn(4, 1).expand(4, 4),
        torch.randn(2, 8, 3)[:, ::2],
        torch.randn(1, 4, 1, 1),
    ],
    ids=["channels_last", "permuted", "expanded", "sliced", "ones"],
)
def test_the_formula_has_the_strides_of_the_kernel(x, count):
    hardness = torch.full((count,), 1.5)
    grad = torch.ones(()).expand(x.shape)
    assert decomposition.forward(x, hardness).stride() == OP(x, hardness).stride()
    assert decomposition.backward(grad, x, hardness)[0].stride() == OP_BACKWARD(grad, x, hardness)[0].stride()


# --- one graph, whatever the shapes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dynamic", [False, True, None])
@pytest.mark.parametrize("count", [1, 6])
@pytest.mark.parametrize("function", [functional, softplus])
def test_functions_compile_to_one_graph(function, count, dynamic):
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (5, 7, 9):
        x, hardness = torch.randn(rows, 6), torch.rand(count) + 0.5
        assert_same(gradients(compiled, x, hardness), gradients(function, x, hardness), rtol=0, atol=0)
    assert compilations() == {False: 3, True: 1, None: 2}[dynamic]


def test_a_float_hardness_that_changes_breaks_no_graph():
    compiled, x = torch.compile(functional, fullgraph=True, backend="aot_eager"), torch.randn(5)
    for hardness in (1.5, 2.5, 3.5):  # a variable of the graph from the second on
        assert torch.equal(compiled(x, hardness), functional(x, hardness))
    with pytest.raises(Exception, match="hardness must be finite and positive"):
        compiled(x, -1.0)


def _through(function, raw_hardness, x):
    x = x.clone().requires_grad_()
    y = function(x)
    return y.detach(), *torch.autograd.grad(y.sin().sum(), (x, raw_hardness))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("count", [1, 6])
def test_a_module_compiles_to_one_graph(count, dynamic, training):
    module = LambdaGELU(count, init_hardness=torch.linspace(1.5, 3, count))
    compiled = torch.compile(nn.Sequential(module), fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for rows in (5, 7):
        x = torch.randn(rows, 6)
        if training:
            actual, expected = (_through(function, module.raw_hardness, x) for function in (compiled, module))
            assert_same(actual, expected, rtol=1e-6, atol=1e-6)
        else:
            with torch.inference_mode():
                torch.testing.assert_close(compiled(x), module(x), rtol=0, atol=0)
    assert compilations() == (1 if dynamic else 2)


def test_both_modes_agree_with_eager_for_shapes_known_late(mode):
    def block(x, bias, one, many):
        return functional(x + bias, one) * bias + softplus(x, many)

    compiled = torch.compile(block, fullgraph=True, dynamic=True)
    for rows in (64, 37):
        inputs = torch.randn(rows, 48) * 2, torch.randn(48), torch.tensor([1.5]), torch.rand(48)
        assert_same(gradients(compiled, *inputs), gradients(block, *inputs), rtol=1e-5, atol=2e-5)
    assert compilations() == 1


def test_the_formula_compiles_to_one_loop_forward_and_one_backward():
    lambda_gelu.set_compile_mode("fuse")
    compiled = torch.compile(softplus, fullgraph=True, dynamic=False)
    x, raw = torch.randn(64, 64, requires_grad=True), torch.zeros(1, requires_grad=True)
    codes = generated(lambda: compiled(x, raw).backward(torch.ones(64, 64)))
    assert len(codes) == 2
    for code in codes:
        assert not calls_kernel(code)
        assert code.count(".exp2()") == 1  # one loop, without a remainder for this size


def test_transforms_compile():
    lambda_gelu.set_compile_mode("fuse")
    x, tangent, hardness = torch.randn(5, 3), torch.randn(5, 3), torch.tensor([1.5])

    def transformed(x, tangent, hardness):
        gradient = torch.func.grad(lambda x, hardness: functional(x, hardness).sum(), argnums=(0, 1))
        per_sample = torch.func.vmap(gradient, (0, None))(x, hardness)
        return per_sample, torch.func.jvp(lambda x: functional(x, hardness), (x,), (tangent,))

    actual = torch.compile(transformed, fullgraph=True)(x, tangent, hardness)
    torch.testing.assert_close(actual, transformed(x, tangent, hardness), rtol=1e-5, atol=1e-6)


# --- no compilation from step to step --------------------------------------------------------------------------------


def network(per_channel=False):
    torch.manual_seed(0)
    count = 12 if per_channel else 1
    return nn.Sequential(nn.Linear(6, 12), LambdaGELU(count), nn.Linear(12, 12), LambdaGELU(count), nn.Linear(12, 3))


def train(model, forward, *, phases):
    """Steps through learning, hardening and the end; the losses."""
    optimizer = torch.optim.AdamW(lambda_gelu.param_groups(model, lr=0.05, weight_decay=0.01))
    scheduler = HardnessScheduler(model, total_steps=8, start=0.4, target=20.0)
    x, target = torch.randn(16, 6, generator=torch.Generator().manual_seed(1)), torch.arange(16) % 3
    losses = []
    for _ in range(10):
        phases.add(scheduler.phase)
        optimizer.zero_grad()
        loss = F.cross_entropy(forward(x), target)
        loss.backward()
        optimizer.step()
        if scheduler.phase != "done":
            scheduler.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_compiled_training_step_is_compiled_once_while_the_schedule_moves_the_hardness(per_channel):
    expected_model, model, phases = network(per_channel), network(per_channel), set()
    expected = train(expected_model, expected_model, phases=phases)
    assert phases == {"learn", "harden", "done"}
    compiled = torch.compile(model, fullgraph=True, dynamic=False, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        losses = train(model, compiled, phases=phases)
    assert compilations() == 1
    assert losses == pytest.approx(expected, rel=1e-5)
    for (name, actual), wanted in zip(model.state_dict().items(), expected_model.state_dict().values(), strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-6, equal_nan=True, msg=name)


def test_a_whole_step_with_backward_and_optimizer_compiles_once():
    model = network()
    optimizer = torch.optim.SGD(lambda_gelu.param_groups(model, lr=0.05), momentum=0.9)
    scheduler = HardnessScheduler(model, total_steps=6, start=0.5, target=20.0)
    x, target = torch.randn(16, 6), torch.arange(16) % 3

    @torch.compile(backend="aot_eager")
    def step(x, target):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        return loss

    first = step(x, target).item()
    step(x, target)  # the momentum buffers exist from here on
    before = compilations()
    while scheduler.phase != "done":
        scheduler.step()
        last = step(x, target).item()
    assert compilations() == before
    assert last < first
    assert model[1].hardness.item() == pytest.approx(20)


def test_compiled_code_follows_a_frozen_hardness_and_leaves_its_gradient_zero(mode):
    module = LambdaGELU()
    compiled = torch.compile(module, fullgraph=True, dynamic=False)
    x = torch.randn(64)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for hardness in (None, 1.2, 7.0, 0.3):
            if hardness is not None:
                module.freeze_hardness()
                module.set_hardness(hardness)
            module.raw_hardness.grad = None
            y = compiled(x)
            y.sum().backward()
            torch.testing.assert_close(y, module(x), rtol=2e-6, atol=1e-6)
            assert (module.raw_hardness.grad == 0) == module.is_frozen
        module.set_hardness(3.0)
        module.unfreeze_hardness()
        compiled(x).sum().backward()
        assert module.raw_hardness.grad != 0
    assert compilations() == 1


def test_the_hardness_is_read_in_compiled_code_without_compiling_again():
    module = LambdaGELU(2, init_hardness=1.5)
    compiled = torch.compile(lambda x: x * module.hardness, fullgraph=True, backend="aot_eager")
    x = torch.ones(2)
    assert compiled(x).tolist() == [1.5, 1.5]
    module.freeze_hardness()
    module.set_hardness(4.0)
    assert compiled(x).tolist() == [4.0, 4.0]
    module.hardness_override.fill_(5.0)  # by something else
    assert compiled(x).tolist() == [5.0, 5.0]
    assert compilations() == 1


def test_a_raw_hardness_that_is_nan_leaves_a_frozen_site_alone_in_compiled_code():
    module = LambdaGELU(3)
    module.freeze_hardness()
    with torch.no_grad():
        module.raw_hardness.fill_(torch.nan)
    compiled, x = torch.compile(module, fullgraph=True, backend="aot_eager"), torch.randn(4, 3)
    y = compiled(x)
    y.sum().backward()
    assert torch.equal(y, module(x))
    assert module.raw_hardness.grad.tolist() == [0, 0, 0]


def test_substitution_takes_effect_in_compiled_code():
    module, x = LambdaGELU(), torch.randn(8)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    compiled(x)
    with lambda_gelu.relu_substituted(module):
        assert torch.equal(compiled(x), torch.relu(x))
    assert torch.equal(compiled(x), module(x))


# --- the modes -------------------------------------------------------------------------------------------------------


def test_switching_the_mode_gives_new_code_in_the_same_process():
    compiled, x = torch.compile(LambdaGELU(), fullgraph=True), torch.randn(1000)
    found = []
    for mode in ("fuse", "opaque", "fuse"):
        lambda_gelu.set_compile_mode(mode)
        assert lambda_gelu.compile_mode() == mode
        (code,) = generated(lambda: compiled(x).detach_())
        found.append(calls_kernel(code))
    assert found == [False, True, False]


def test_auto_chooses_by_size_within_one_process():
    low, high = compiler.KERNEL_ELEMENTS["cpu"]
    for count in (low - 16, low):
        with torch.no_grad():
            (code,) = generated(lambda: torch.compile(LambdaGELU(), dynamic=False)(torch.randn(count)))  # noqa: B023
        assert calls_kernel(code) == (low <= count < high)


SCRIPT = """
import sys, torch, lambda_gelu
from torch._dynamo.utils import counters
from torch._inductor.utils import run_and_get_code
x, hardness = torch.linspace(-3, 3, 512), torch.tensor([1.5])
compiled = torch.compile(lambda_gelu.lambda_gelu, dynamic=False)
for mode in sys.argv[1:]:
    lambda_gelu.set_compile_mode(mode)
    y, codes = run_and_get_code(compiled, x, hardness)
    torch.testing.assert_close(y, lambda_gelu.lambda_gelu(x, hardness), rtol=2e-6, atol=1e-6)
    kernel = ["torch.ops.lambda_gelu" in code for code in codes]
    print(mode, "found" if counters["aot_autograd"]["autograd_cache_hit"] else "written", kernel)
    counters.clear()
"""


def test_modes_do_not_share_code_through_the_caches_on_disk(tmp_path):
    # without precompiled headers: they would be compiled anew for a new folder
    env = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0"}

    def run(*modes):
        call = [sys.executable, "-c", SCRIPT, *modes]
        done = subprocess.run(call, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    assert run("opaque") == ["opaque written [True]"]
    assert run("opaque", "fuse") == ["opaque found [True]", "fuse written [False]"]


@pytest.mark.parametrize(
    ("mode", "error", "words"),
    [
        ("fast", ValueError, 'mode must be "auto", "fuse" or "opaque", got \'fast\''),
        (None, TypeError, "mode must be a str, got NoneType"),
    ],
)
def test_other_modes_are_refused_and_change_nothing(mode, error, words):
    lambda_gelu.set_compile_mode("opaque")
    with pytest.raises(error) as caught:
        lambda_gelu.set_compile_mode(mode)
    assert str(caught.value) == words
    assert lambda_gelu.compile_mode() == "opaque"


def test_the_tag_of_the_caches_keeps_what_others_wrote_there():
    config = torch.compiler.config
    with config.patch(cache_key_tag="mine"):
        lambda_gelu.set_compile_mode("fuse")
        lambda_gelu.set_compile_mode("fuse")
        assert config.cache_key_tag == f"mine|lambda_gelu-fuse-{decomposition.VERSION}"
        lambda_gelu.set_compile_mode("opaque")
        assert config.cache_key_tag == "mine"


def test_without_the_private_table_of_torch_the_kernel_is_called(monkeypatch):
    from torch._inductor import decomposition as inductor  # noqa: PLC0415

    monkeypatch.delattr(inductor, "select_decomp_table")
    with pytest.raises(RuntimeError, match=r'mode "fuse" is not available: torch .* has no table of decompositions'):
        lambda_gelu.set_compile_mode("fuse")
    assert lambda_gelu.compile_mode() == "auto"
    assert compiler.prepare() is False


def test_whatever_the_private_functions_of_torch_raise_the_other_way_is_taken(monkeypatch):
    from torch._inductor import decomposition as inductor  # noqa: PLC0415
    from torch._inductor import lowering  # noqa: PLC0415

    def moved(*_, **__):
        raise AssertionError

    monkeypatch.setattr(lowering, "make_fallback", moved)
    monkeypatch.delitem(lowering.lowerings, OP, raising=False)
    assert compiler._has_fallback(OP) is False
    monkeypatch.setattr(inductor, "select_decomp_table", moved)
    assert compiler.prepare() is False
    assert "lambda_gelu" not in torch.compiler.config.cache_key_tag


def test_without_the_mark_of_dynamo_the_module_still_compiles_to_one_graph(monkeypatch):
    monkeypatch.delattr(compiler.prepare, "_dynamo_marked_constant")
    module, x = LambdaGELU(), torch.randn(8)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x))


def test_importing_the_package_imports_no_compiler():
    code = "import sys, lambda_gelu; print([m for m in ('torch._dynamo', 'torch._inductor') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
