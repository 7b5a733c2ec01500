"""The operator through Python: derivatives, layouts, determinism."""

import itertools
import pathlib

import pytest
import torch
from references import double, hardness_of, reference, reference_softplus
from torch.autograd import gradcheck, gradgradcheck

import lambda_gelu
from lambda_gelu import _C, softplus_lambda_gelu

forward = torch.ops.lambda_gelu.lambda_gelu
backward = torch.ops.lambda_gelu.lambda_gelu_backward
backward_inplace = torch.ops.lambda_gelu.lambda_gelu_backward_

ALL_DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
EVERY_MODE = {
    "check_forward_ad": True,
    "check_batched_grad": True,
    "check_batched_forward_grad": True,
    "check_undefined_grad": True,
}


pytestmark = pytest.mark.usefixtures("device")
on_the_cpu = pytest.mark.only("cpu")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


LAYOUTS = {
    "contiguous": lambda: torch.randn(4, 6, 5, 3),
    "channels_last": lambda: torch.randn(4, 6, 5, 3).contiguous(memory_format=torch.channels_last),
    "permuted": lambda: torch.randn(5, 3, 4, 6).permute(2, 3, 0, 1),
    "chunk": lambda: torch.randn(4, 12, 5, 3).chunk(2, 1)[1],
    "chunk of channels_last": lambda: (
        torch.randn(4, 12, 5, 3).contiguous(memory_format=torch.channels_last).chunk(2, 1)[0]
    ),
    "every second": lambda: torch.randn(4, 6, 5, 6)[..., ::2],
    "expanded": lambda: torch.randn(4, 1, 5, 1).expand(4, 6, 5, 3),
    "sizes of 1": lambda: torch.randn(1, 6, 1, 3).contiguous(memory_format=torch.channels_last),
    "empty": lambda: torch.randn(4, 6, 0, 3),
}


# --- derivatives -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [None, 0.6])
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("learned", [(True, True), (True, False), (False, True)])
def test_gradients(count, temperature, learned):
    x, hardness = double(3, 4, 2, requires_grad=learned[0]), hardness_of(count, learned[1])

    def f(x, hardness):
        return forward(x, hardness, 1, temperature)

    assert gradcheck(f, (x, hardness), **EVERY_MODE)
    assert gradgradcheck(f, (x, hardness), check_batched_grad=True, check_fwd_over_rev=True)


@pytest.mark.parametrize("temperature", [None, 0.6])
@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("learned", [m for m in itertools.product([True, False], repeat=3) if any(m)])
def test_gradients_of_the_backward_op(count, temperature, learned):
    arguments = [double(3, 4, 2), double(3, 4, 2), hardness_of(count)]
    arguments = [t.detach().requires_grad_(m) for t, m in zip(arguments, learned, strict=True)]

    def f(g, x, hardness):
        return backward(g, x, hardness, 1, temperature)

    assert gradcheck(f, arguments, **EVERY_MODE)
    assert gradgradcheck(f, arguments, check_fwd_over_rev=True)


@pytest.mark.parametrize(("count", "channel_dim"), [(1, 1), (4, 1), (4, -2), (3, 0), (2, -1)])
@pytest.mark.parametrize("layout", ["transposed", "strided"])
def test_gradients_of_strided_inputs(layout, count, channel_dim):
    if layout == "transposed":
        x = torch.randn(2, 4, 3, dtype=torch.float64).transpose(0, 2).requires_grad_()
    else:
        x = torch.randn(6, 8, 4, dtype=torch.float64)[::2, ::2, ::2].requires_grad_()
    assert not x.is_contiguous()

    def f(x, hardness):
        return lambda_gelu.lambda_gelu(x, hardness, channel_dim=channel_dim)

    assert gradcheck(f, (x, hardness_of(count)), **EVERY_MODE)
    assert gradgradcheck(f, (x, hardness_of(count)))


@pytest.mark.parametrize(
    ("shape", "count"), [((0,), 1), ((0, 4), 4), ((3, 0, 2), 1), ((3, 4, 0), 4), ((3, 0), 0), ((), 1)], ids=str
)
def test_gradients_of_empty_and_dimensionless_inputs(shape, count):
    x, hardness = double(*shape), hardness_of(count)
    assert gradcheck(lambda_gelu.lambda_gelu, (x, hardness))
    assert gradgradcheck(lambda_gelu.lambda_gelu, (x, hardness))
    dx, dh = torch.autograd.grad(lambda_gelu.lambda_gelu(x, hardness).sum(), (x, hardness))
    assert dx.shape == x.shape
    assert dh.shape == hardness.shape
    assert x.numel() or not dh.any()


@pytest.mark.parametrize("temperature", [None, 0.6])
def test_third_order(temperature):
    def gradients(x, hardness):
        y = forward(x, hardness, 1, temperature).sum()
        return torch.autograd.grad(y, (x, hardness), create_graph=True)

    assert gradgradcheck(gradients, (double(3, 2), hardness_of(2)))


@pytest.mark.parametrize("x_dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("hardness_dtype", ALL_DTYPES, ids=str)
def test_dtypes_of_every_order_and_tangent(x_dtype, hardness_dtype):
    x = torch.randn(4, 3).to(x_dtype).requires_grad_()
    hardness = (torch.rand(3) + 1).to(hardness_dtype).requires_grad_()
    y = lambda_gelu.lambda_gelu(x, hardness)
    first = torch.autograd.grad(y.float().sum(), (x, hardness), create_graph=True)
    second = torch.autograd.grad(sum(t.double().sum() for t in first), (x, hardness))
    tangent = torch.func.jvp(lambda_gelu.lambda_gelu, (x.detach(), hardness.detach()), (x.detach(), hardness.detach()))[
        1
    ]
    assert y.dtype == tangent.dtype == x.dtype
    assert [t.dtype for t in (*first, *second)] == [x.dtype, hardness.dtype] * 2
    tolerance = 4 * max(torch.finfo(t.dtype).eps for t in (x, hardness))
    exact = x.detach().double().requires_grad_(), hardness.detach().double().requires_grad_()
    expected = torch.autograd.grad(reference(*exact).sum(), exact, create_graph=True)
    for actual, of_reference in (
        (first, expected),
        (second, torch.autograd.grad(sum(e.sum() for e in expected), exact)),
    ):
        for a, e in zip(actual, of_reference, strict=True):
            torch.testing.assert_close(a.double(), e.detach(), rtol=tolerance, atol=4 * tolerance)


def test_autocast_needs_no_cast(device):
    layer, hardness = torch.nn.Linear(4, 4), torch.ones(1, requires_grad=True)
    with torch.autocast(device, dtype=torch.bfloat16):
        y = lambda_gelu.lambda_gelu(layer(torch.randn(3, 4)), hardness)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert hardness.grad.dtype == layer.weight.grad.dtype == torch.float32


# --- layouts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_and_strides_in_every_layout(layout, dtype):
    x = LAYOUTS[layout]().to(dtype) if dtype != torch.float32 else LAYOUTS[layout]()
    tolerance = {"rtol": 2 * torch.finfo(dtype).eps, "atol": 1e-6 if dtype != torch.float64 else 1e-15}
    for channel_dim in range(-4, 4):
        hardness = torch.rand(x.size(channel_dim), dtype=torch.float64) + 0.5
        y = lambda_gelu.lambda_gelu(x, hardness, channel_dim=channel_dim)
        torch.testing.assert_close(y.double(), reference(x, hardness, channel_dim), **tolerance)
        assert y.stride() == torch.empty_like(x).stride()
        if x.numel():
            assert y.stride() == torch.nn.functional.gelu(x).stride()
        meta = forward(torch.empty_like(x, device="meta"), hardness.to("meta"), channel_dim)
        assert meta.stride() == y.stride()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout):
    """Schema, autograd registration, fake tensors and AOT dispatch, as torch.compile needs them."""
    x = LAYOUTS[layout]()
    for hardness in (torch.rand(1) + 1, torch.rand(6) + 1):
        torch.library.opcheck(forward.default, (x.detach().requires_grad_(), hardness.requires_grad_()))
    torch.library.opcheck(backward_inplace.default, (torch.randn_like(x), x.detach(), hardness.detach()))
    torch.library.opcheck(backward.default, (torch.randn(x.shape), x.detach().requires_grad_(), hardness, 1, 0.5))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_opcheck_in_16_bits_without_gradients(dtype):
    x = torch.randn(4, 6).to(dtype)
    torch.library.opcheck(forward.default, (x, torch.ones(6), -1))
    torch.library.opcheck(backward.default, (x, x, torch.ones(1)))
    torch.library.opcheck(backward_inplace.default, (x.clone(), x, torch.ones(1), 1, 0.5))


MORE_THAN_INT32 = 2**31 + 11


def free_memory():
    """In bytes; what the page cache holds counts as free."""
    try:
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


@on_the_cpu  # test_cuda.py has its own: what is on the device takes a device's memory
@pytest.mark.skipif(free_memory() < 16 * 2**30, reason="needs 16 GiB of free memory")
def test_more_than_2_to_the_31_elements():
    x = torch.zeros(MORE_THAN_INT32, dtype=torch.bfloat16)
    places = torch.tensor([0, 2**30 + 1, 2**31 - 1, 2**31, 2**31 + 1, MORE_THAN_INT32 - 1])
    values = torch.tensor([1.0, -0.5, 2.0, -1.5, 0.75, -0.25], dtype=torch.bfloat16)
    x[places] = values
    hardness = torch.tensor([1.5])

    y = lambda_gelu.lambda_gelu(x, hardness)
    expected = lambda_gelu.lambda_gelu(values, hardness)
    assert torch.equal(y[places], expected)
    assert torch.count_nonzero(y) == len(places)

    expected_dx, expected_dh = backward(expected, values, hardness)
    dh = backward_inplace(y, x, hardness)  # into y: fresh memory costs most of the time
    assert torch.equal(y[places], expected_dx)
    assert torch.count_nonzero(y) == len(places)
    torch.testing.assert_close(dh, expected_dh)


# --- determinism -----------------------------------------------------------------------------------------------------


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@on_the_cpu
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "count"), [((1_000_003,), 1), ((4001, 77), 77), ((7, 33, 61, 5), 33)], ids=str)
def test_the_same_bits_on_any_number_of_threads_and_on_every_run(threads, dtype, shape, count):
    x, g = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    hardness = torch.rand(count) + 1
    results = []
    for number in (1, 2, 3, 4, 4, 2):
        threads(number)
        results.append((lambda_gelu.lambda_gelu(x, hardness), *backward(g, x, hardness)))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.fixture
def cpu_target():
    yield _C.set_cpu_target
    _C.set_cpu_target("")


@on_the_cpu
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "count"), [((1_000_003,), 1), ((4001, 77), 77), ((7, 33, 61, 5), 33)], ids=str)
def test_the_same_gradient_bits_on_every_target_for_any_number_of_threads(threads, cpu_target, dtype, shape, count):
    x, g = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    hardness = torch.rand(count) + 1
    for target in _C.cpu_targets():
        cpu_target(target)
        results = []
        for number in (1, 3, 4, 1):
            threads(number)
            results.append(backward(g, x, hardness))
        for result in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True)), target


# --- temperature -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("temperature", [0.03, 0.1, 1.0])
def test_softplus_lambda_gelu(count, temperature):
    x = torch.randn(9, 5, dtype=torch.float64, requires_grad=True)
    raw = (0.2 * torch.randn(count, dtype=torch.float64)).requires_grad_()
    y = softplus_lambda_gelu(x, raw, temperature=temperature)
    expected = reference_softplus(x, raw, temperature)
    torch.testing.assert_close(y, expected, rtol=1e-13, atol=1e-14)
    gradients = torch.autograd.grad(y.sin().sum(), (x, raw))
    torch.testing.assert_close(gradients, torch.autograd.grad(expected.sin().sum(), (x, raw)), rtol=1e-11, atol=1e-12)


def test_a_float_is_a_hardness_of_one_element():
    x = torch.randn(5, 3)
    assert torch.equal(lambda_gelu.lambda_gelu(x, 1.7), lambda_gelu.lambda_gelu(x, torch.tensor([1.7])))
    assert torch.equal(lambda_gelu.lambda_gelu(x, 2), lambda_gelu.lambda_gelu(x, 2.0))
    x = x.double()
    exact = torch.tensor([1.7], dtype=torch.float64)
    assert torch.equal(lambda_gelu.lambda_gelu(x, 1.7), lambda_gelu.lambda_gelu(x, exact))
