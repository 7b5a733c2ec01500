"""The operator through Python: derivatives, layouts, refusals, determinism, transforms."""

import itertools
import math
import pathlib

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

import lambda_gelu
from lambda_gelu import _C, softplus_lambda_gelu

forward = torch.ops.lambda_gelu.lambda_gelu
backward = torch.ops.lambda_gelu.lambda_gelu_backward

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


def reference(x, hardness, channel_dim=1):
    """GELU(λx)/λ by PyTorch's own GELU, in double."""
    shape = [1] * x.dim()
    if hardness.numel() != 1:
        shape[channel_dim] = hardness.numel()
    hardness = hardness.double().reshape(shape)
    return torch.nn.functional.gelu(x.double() * hardness) / hardness


def reference_softplus(x, raw, temperature, channel_dim=1):
    return reference(x, 1 + torch.nn.functional.softplus(raw.double() / temperature), channel_dim)


def double(*shape, requires_grad=True):
    return torch.randn(shape, dtype=torch.float64).requires_grad_(requires_grad)


def hardness_of(count, requires_grad=True):
    return (torch.rand(count, dtype=torch.float64) + 0.5).requires_grad_(requires_grad)


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
@pytest.mark.parametrize("hardness_dtype", [torch.float32, torch.float64, None], ids=str)
def test_dtypes_of_every_order_and_tangent(x_dtype, hardness_dtype):
    x = torch.randn(4, 3).to(x_dtype).requires_grad_()
    hardness = (torch.rand(3) + 1).to(hardness_dtype or x_dtype).requires_grad_()
    y = lambda_gelu.lambda_gelu(x, hardness)
    first = torch.autograd.grad(y.float().sum(), (x, hardness), create_graph=True)
    second = torch.autograd.grad(sum(t.double().sum() for t in first), (x, hardness))
    tangent = torch.func.jvp(lambda_gelu.lambda_gelu, (x.detach(), hardness.detach()), (x.detach(), hardness.detach()))[
        1
    ]
    assert y.dtype == tangent.dtype == x.dtype
    assert [t.dtype for t in (*first, *second)] == [x.dtype, hardness.dtype] * 2


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
    torch.library.opcheck(backward.default, (torch.randn(x.shape), x.detach().requires_grad_(), hardness, 1, 0.5))


def test_opcheck_in_bfloat16_without_gradients():
    x = torch.randn(4, 6).bfloat16()
    torch.library.opcheck(forward.default, (x, torch.ones(6), -1))
    torch.library.opcheck(backward.default, (x, x, torch.ones(1)))


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
    dh = torch.ops.lambda_gelu.lambda_gelu_backward_(y, x, hardness)  # into y: fresh memory costs most of the time
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


# --- refusals --------------------------------------------------------------------------------------------------------

SUPPORTED = "input must be float32, float64, bfloat16 or float16, got "
REFUSED_INPUTS = {
    "int64": (lambda: torch.ones(2, 3, dtype=torch.int64), SUPPORTED + "int64"),
    "bool": (lambda: torch.ones(2, 3, dtype=torch.bool), SUPPORTED + "bool"),
    "complex": (lambda: torch.ones(2, 3, dtype=torch.complex64), SUPPORTED + "complex64"),
    "float8": (lambda: torch.ones(2, 3).to(torch.float8_e5m2), SUPPORTED + "float8_e5m2"),
    "sparse": (lambda: torch.ones(2, 3).to_sparse(), "input must be a dense tensor, got layout Sparse"),
    "sparse CSR": (lambda: torch.ones(2, 3).to_sparse_csr(), "input must be a dense tensor, got layout SparseCsr"),
    "quantized": (lambda: torch.quantize_per_tensor(torch.ones(2, 3), 0.1, 0, torch.quint8), SUPPORTED + "quint8"),
    "nested": (
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "input must be a dense tensor, got a nested tensor",
    ),
    "nested, jagged": (
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        "input must be a dense tensor, got a nested tensor",
    ),
    "MKL-DNN": (lambda: torch.ones(2, 3).to_mkldnn(), "input must be a dense tensor, got layout Mkldnn"),
    "None": (lambda: None, "input must be a "),
    "a list": (lambda: [1.0], "input must be a Tensor, got list"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", REFUSED_INPUTS)
def test_refuses_inputs(kind, on_cuda):
    if on_cuda and kind in ("quantized", "MKL-DNN"):
        pytest.skip("PyTorch has no such tensors there")
    make, message = REFUSED_INPUTS[kind]
    calls = [
        lambda x: lambda_gelu.lambda_gelu(x, 1.0),
        lambda x: lambda_gelu.lambda_gelu(x, torch.ones(1)),
        lambda x: softplus_lambda_gelu(x, torch.ones(1), temperature=0.1),
    ]
    for call in calls[:1] if kind == "a list" else calls:  # a list goes no further than torch's own check
        with pytest.raises(TypeError) as error:
            call(make())
        assert message in str(error.value)


REFUSED_HARDNESS = [
    (lambda: torch.ones(32), ValueError, "hardness must have 1 or 64 elements (input.size(1)), got 32"),
    (lambda: torch.ones(0), ValueError, "hardness must have 1 or 64 elements (input.size(1)), got 0"),
    (lambda: torch.ones(64, 1), ValueError, "hardness must have one dimension, got shape [64, 1]"),
    (lambda: torch.tensor(1.0), ValueError, "hardness must have one dimension, got shape []"),
    (lambda: torch.ones(64).half(), TypeError, "hardness must be float32, float64 or of input's dtype float32"),
    (lambda: torch.ones(64).long(), TypeError, "got int64"),
    (lambda: torch.ones(64).cfloat(), TypeError, "got complex64"),
    (lambda: torch.ones(64).to_sparse(), TypeError, "hardness must be a dense tensor, got layout Sparse"),
    (lambda: 0.0, ValueError, "hardness must be finite and positive, got 0.0"),
    (lambda: -2, ValueError, "hardness must be finite and positive, got -2"),
    (lambda: math.inf, ValueError, "hardness must be finite and positive, got inf"),
    (lambda: math.nan, ValueError, "hardness must be finite and positive, got nan"),
    (lambda: 1e39, ValueError, "hardness must be finite and positive in torch.float32, got 1e+39"),
    (lambda: 1e-60, ValueError, "hardness must be finite and positive in torch.float32, got 1e-60"),
    (lambda: "1", TypeError, "hardness must be a Tensor or a float, got str"),
    (lambda: True, TypeError, "hardness must be a Tensor or a float, got bool"),
]


@pytest.mark.parametrize(("make", "error", "message"), REFUSED_HARDNESS)
@pytest.mark.parametrize("meta", [False, True])
def test_refuses_hardness(make, error, message, meta):
    hardness = make()
    x = torch.ones(2, 64, 5)
    if meta:
        x = x.to("meta")
        hardness = hardness.to("meta") if isinstance(hardness, torch.Tensor) else hardness
    with pytest.raises(error) as refusal:
        lambda_gelu.lambda_gelu(x, hardness)
    assert message in str(refusal.value)


def test_refuses_a_hardness_on_another_device():
    here = torch.ones(1).device
    with pytest.raises(RuntimeError, match=f"hardness must be on input's device {here}, got meta"):
        lambda_gelu.lambda_gelu(torch.ones(2), torch.ones(1, device="meta"))
    with pytest.raises(RuntimeError, match=f"hardness must be on input's device meta, got {here}"):
        lambda_gelu.lambda_gelu(torch.ones(2, device="meta"), torch.ones(1))


@pytest.mark.parametrize("channel_dim", [3, -4, 100])
def test_refuses_channel_dim(channel_dim):
    x = torch.ones(2, 64, 5)
    message = rf"channel_dim must be in \[-3, 2\] for an input of shape \[2, 64, 5\], got {channel_dim}"
    with pytest.raises(ValueError, match=message):
        lambda_gelu.lambda_gelu(x, torch.ones(64), channel_dim=channel_dim)
    with pytest.raises(ValueError, match=message):
        softplus_lambda_gelu(x, torch.ones(64), temperature=1.0, channel_dim=channel_dim)


def test_refuses_several_hardnesses_for_an_input_without_dimensions():
    with pytest.raises(ValueError, match="hardness must have 1 element for an input without dimensions, got 3"):
        lambda_gelu.lambda_gelu(torch.tensor(1.0), torch.ones(3))


@pytest.mark.parametrize("temperature", [0.0, -0.1, math.inf, math.nan])
@pytest.mark.parametrize("meta", [False, True])
def test_refuses_temperature(temperature, meta):
    place = {"device": "meta"} if meta else {}
    with pytest.raises(ValueError, match=f"temperature must be finite and positive, got {temperature:g}"):
        softplus_lambda_gelu(torch.ones(2, **place), torch.ones(1, **place), temperature=temperature)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: torch.ones(3, 2), ValueError, r"grad_output must have input's shape \[2, 3\], got \[3, 2\]"),
        (lambda: torch.ones(6), ValueError, r"grad_output must have input's shape \[2, 3\], got \[6\]"),
        (lambda: torch.ones(2, 3).double(), TypeError, "grad_output must be of input's dtype float32, got float64"),
        (
            lambda: torch.ones(2, 3, device="meta"),
            RuntimeError,
            r"grad_output must be on input's device (cpu|cuda:\d), got meta",
        ),
    ],
)
def test_refuses_grad_output(make, error, message):
    with pytest.raises(error, match=message):
        backward(make(), torch.ones(2, 3), torch.ones(1))


def test_a_hardness_that_is_not_finite_and_positive_is_computed_with():
    """In a tensor it cannot be checked without reading it, which would synchronize a device."""
    x = torch.tensor([[-1.0, 2.0, 3.0]])
    y = lambda_gelu.lambda_gelu(x, torch.tensor([math.nan, math.inf, 1.0]))
    assert y[0, 0].isnan()
    assert y[0, 1] == 2
    torch.testing.assert_close(y[0, 2], torch.nn.functional.gelu(torch.tensor(3.0)))


# --- transforms ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 4])
def test_torch_func(count):
    x, hardness = double(3, 4, requires_grad=False), hardness_of(count, requires_grad=False)
    func = torch.func
    both = {"argnums": (0, 1)}
    transforms = [
        lambda f: func.grad(lambda x, h: f(x, h).pow(2).sum(), **both)(x, hardness),
        lambda f: func.jvp(f, (x, hardness), (torch.ones_like(x), torch.ones_like(hardness))),
        lambda f: func.jacrev(f, **both)(x, hardness),
        lambda f: func.jacfwd(f, **both)(x, hardness),
        lambda f: func.hessian(lambda x, h: f(x, h).pow(2).sum(), **both)(x, hardness),
    ]
    for transform in transforms:
        torch.testing.assert_close(transform(lambda_gelu.lambda_gelu), transform(reference))


@pytest.mark.filterwarnings("error")  # a missing rule warns and loops
@pytest.mark.parametrize("temperature", [None, 0.5])
@pytest.mark.parametrize("channel_dim", [0, 1, -1])
@pytest.mark.parametrize("dims", [(0, None), (-1, None), (None, 0), (None, 1), (0, 0), (1, 1)], ids=str)
@pytest.mark.parametrize("one", [True, False])
def test_vmap(dims, channel_dim, one, temperature):
    batch, shape = 3, [4, 5, 2]
    count = 1 if one else shape[channel_dim]

    def make(sizes, dim):
        size = list(sizes)
        if dim is not None:
            size.insert(dim if dim >= 0 else len(size) + 1 + dim, batch)
        return torch.rand(size, dtype=torch.float64) + 0.5

    def example(tensor, dim, i):
        return tensor if dim is None else tensor.select(dim, i)

    x, hardness, g = make(shape, dims[0]), make([count], dims[1]), make(shape, 0)

    def apply(x, hardness):
        return forward(x, hardness, channel_dim, temperature)

    def apply_backward(g, x, hardness):
        return backward(g, x, hardness, channel_dim, temperature)

    examples = [(example(x, dims[0], i), example(hardness, dims[1], i)) for i in range(batch)]
    torch.testing.assert_close(torch.vmap(apply, in_dims=dims)(x, hardness), torch.stack([apply(*e) for e in examples]))
    expected = zip(*(apply_backward(g[i], *e) for i, e in enumerate(examples)), strict=True)
    actual = torch.vmap(apply_backward, in_dims=(0, *dims))(g, x, hardness)
    torch.testing.assert_close(actual, tuple(torch.stack(e) for e in expected))


def test_vmap_refuses_channel_dim():
    with pytest.raises(ValueError, match=r"channel_dim must be in \[-1, 0\]"):
        torch.vmap(lambda x: forward(x, torch.ones(4), 1))(torch.ones(3, 4))


def test_per_example_gradients():
    hardness = hardness_of(1, requires_grad=False)
    x = double(5, 4, requires_grad=False)
    gradient = torch.func.grad(lambda h, x: lambda_gelu.lambda_gelu(x, h, channel_dim=0).sum())
    expected = torch.func.grad(lambda h, x: reference(x, h, 0).sum())
    actual = torch.vmap(gradient, in_dims=(None, 0))(hardness, x)
    torch.testing.assert_close(actual, torch.stack([expected(hardness, row) for row in x]))


def test_compiles_in_one_graph():
    def f(x, weight, hardness):
        return torch.relu(lambda_gelu.lambda_gelu(x @ weight, hardness) * 2)

    compiled = torch.compile(f, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (5, 7):
        arguments = [torch.randn(rows, 4), torch.randn(4, 8), torch.rand(8) + 1]
        results = []
        for function in (compiled, f):
            inputs = [t.clone().requires_grad_() for t in arguments]
            y = function(*inputs)
            results.append((y, *torch.autograd.grad(y.cos().sum(), inputs)))
        torch.testing.assert_close(*results)
