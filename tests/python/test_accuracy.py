"""Accuracy of y, dy/dx and dy/dλ against mpmath at 50 digits, for every dtype and all that computes here."""

import functools
import math

import pytest
import torch
from devices import devices_of

import lambda_gelu
from lambda_gelu import _C

mpmath = pytest.importorskip("mpmath")

mpmath.mp.dps = 50

HARDNESS = [1.0, 1.693, 8.0, 80.0]
ALL_DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
HALF_DTYPES = [torch.bfloat16, torch.float16]
FORMAT = {  # significand bits with the implicit one, exponent of the smallest normal number
    torch.float32: (24, -126),
    torch.float64: (53, -1022),
    torch.bfloat16: (8, -126),
    torch.float16: (11, -14),
}
FAR = mpmath.mpf(1e4)  # mpmath cannot form Φ of 1e300; beyond this it is 0 or 1 to 10^7 digits
ZERO_OF_D = -0.75179  # z where Φ(z) + z φ(z) = 0
# Below it results are subnormal or nearly so, and 0 is allowed. In float16 everything is computed in float32.
CUT = {torch.float32: -12.9, torch.bfloat16: -12.9, torch.float16: -12.9, torch.float64: -37.4}


def pytest_generate_tests(metafunc):
    targets = []
    for name in devices_of(metafunc.definition, metafunc.config):
        targets += _C.cpu_targets() if name == "cpu" else [name]
    metafunc.parametrize("target", targets, indirect=True, scope="module")


@pytest.fixture(autouse=True, scope="module")
def target(request):
    """The device that computes: the CPU with one of its instruction sets, or CUDA. All else is done on the CPU."""
    on_cuda = request.param == "cuda"
    _C.set_cpu_target("" if on_cuda else request.param)
    yield "cuda" if on_cuda else "cpu"
    _C.set_cpu_target("")


def value(target, x, hardness, channel_dim=1):
    hardness = hardness.to(target) if isinstance(hardness, torch.Tensor) else hardness
    return lambda_gelu.lambda_gelu(x.to(target), hardness, channel_dim=channel_dim).cpu()


def gradients(target, g, x, hardness, channel_dim=1):
    """dx and dλ."""
    results = torch.ops.lambda_gelu.lambda_gelu_backward(g.to(target), x.to(target), hardness.to(target), channel_dim)
    return [result.cpu() for result in results]


def hardness_tensor(hardness):
    return torch.tensor([hardness], dtype=torch.float64)


@functools.cache
def inputs(dtype, hardness):
    """Both tails and the middle in z = λx, powers of two down to the subnormals, and large numbers; finite, unique."""
    generator = torch.Generator().manual_seed(0)
    z = torch.cat(
        [
            torch.linspace(-42, 42, 501, dtype=torch.float64),
            torch.rand(500, generator=generator, dtype=torch.float64) * 28 - 14,
            torch.linspace(-1, 1, 201, dtype=torch.float64),
        ]
    )
    exponents = torch.arange(FORMAT[dtype][1] - FORMAT[dtype][0] + 1, 4, 3 if dtype != torch.float64 else 31)
    powers = torch.pow(2.0, exponents.double())
    top = torch.finfo(dtype).max
    x = torch.cat([z / hardness, powers, -powers, torch.tensor([top, -top, top / 3, -top / 3], dtype=torch.float64)])
    return torch.unique(x.to(dtype))


@functools.cache
def exact(dtype, hardness):
    """z, y, dy/dx and dy/dλ of every input, at 50 digits."""
    rows = []
    for value in inputs(dtype, hardness).tolist():
        x = mpmath.mpf(value)
        z = mpmath.mpf(hardness) * x
        gate = mpmath.ncdf(max(min(z, FAR), -FAR))
        density = mpmath.exp(-z * z / 2) / mpmath.sqrt(2 * mpmath.pi)
        rows.append((z, x * gate, gate + z * density, x * x * density))
    return list(zip(*rows, strict=True))


def ulp(value, dtype):
    bits, smallest = FORMAT[dtype]
    exponent = smallest if value == 0 else mpmath.frexp(abs(value))[1] - 1
    return mpmath.ldexp(1, int(max(exponent, smallest)) - bits + 1)


def ulps(actual, expected, dtype):
    return [float(abs(mpmath.mpf(a) - e) / ulp(e, dtype)) for a, e in zip(actual.tolist(), expected, strict=True)]


def derivatives(target, x, hardness, per_element):
    """dy/dx and, where every element has its own λ, dy/dλ."""
    h = hardness_tensor(hardness)
    if per_element:
        h = h.expand(x.numel())
    return gradients(target, torch.ones_like(x), x, h, 0)


@pytest.mark.parametrize("per_element", [False, True], ids=["one hardness", "one per element"])
@pytest.mark.parametrize("hardness", HARDNESS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_value_in_ulp(target, dtype, hardness, per_element):
    x = inputs(dtype, hardness)
    h = hardness_tensor(hardness)
    y = value(target, x, h.expand(x.numel()) if per_element else h, channel_dim=0)
    z, expected, _, _ = exact(dtype, hardness)
    errors = ulps(y, expected, dtype)
    for argument, error, actual in zip(z, errors, y.tolist(), strict=True):
        assert error <= 9 or (argument < CUT[dtype] and actual == 0), f"z = {float(argument)}: {error} ULP"


@pytest.mark.parametrize("per_element", [False, True], ids=["one hardness", "one per element"])
@pytest.mark.parametrize("hardness", HARDNESS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_input_gradient_in_ulp(target, dtype, hardness, per_element):
    x = inputs(dtype, hardness)
    dx, _ = derivatives(target, x, hardness, per_element)
    z, _, expected, _ = exact(dtype, hardness)
    close_to_zero = 1.5e-7 * (1 if dtype == torch.float32 else 2.0**-29)
    for argument, error, actual, reference in zip(z, ulps(dx, expected, dtype), dx.tolist(), expected, strict=True):
        if abs(argument - ZERO_OF_D) < 0.1:
            assert abs(actual - reference) <= close_to_zero, f"z = {float(argument)}"
        else:
            assert error <= 16 or (argument < CUT[dtype] and actual == 0), f"z = {float(argument)}: {error} ULP"


@pytest.mark.parametrize("hardness", HARDNESS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_hardness_gradient_of_each_element(target, dtype, hardness):
    x = inputs(dtype, hardness)
    _, dh = derivatives(target, x, hardness, per_element=True)
    z, _, _, expected = exact(dtype, hardness)
    for argument, error, actual in zip(z, ulps(dh, expected, dtype), dh.tolist(), strict=True):
        assert error <= 8 or (abs(argument) > -CUT[dtype] and actual == 0), f"z = {float(argument)}: {error} ULP"


@pytest.mark.parametrize("hardness", HARDNESS)
@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
def test_half_precision_is_rounded_right_but_for_a_handful(target, dtype, hardness):
    x = inputs(dtype, hardness)
    dx, _ = derivatives(target, x, hardness, per_element=False)
    y = value(target, x, hardness_tensor(hardness))
    z, expected_y, expected_dx, _ = exact(dtype, hardness)
    for actual, expected in ((y, expected_y), (dx, expected_dx)):
        wrong = 0
        for argument, error, number in zip(z, ulps(actual, expected, dtype), actual.tolist(), strict=True):
            if error <= 0.5 or (argument < CUT[dtype] and number == 0):
                continue
            wrong += 1
            if not (actual is dx and abs(argument - ZERO_OF_D) < 0.1):
                assert error < 0.52, f"z = {float(argument)}: {error} ULP"
        assert wrong <= len(z) // 100


@pytest.mark.parametrize("hardness", HARDNESS)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_hardness_gradient_summed(target, dtype, hardness):
    generator = torch.Generator().manual_seed(1)
    x = (torch.randn(3000, generator=generator, dtype=torch.float64) * 2 / hardness).to(dtype)
    g = torch.rand(3000, generator=generator, dtype=torch.float64).to(dtype)
    _, dh = gradients(target, g, x, hardness_tensor(hardness))

    def term(g, x):
        return mpmath.mpf(g) * mpmath.mpf(x) ** 2 * mpmath.npdf(mpmath.mpf(hardness) * mpmath.mpf(x))

    expected = mpmath.fsum(term(*pair) for pair in zip(g.tolist(), x.tolist(), strict=True))
    tolerance = {torch.float64: 1e-14, torch.float32: 1e-7}.get(dtype, 1e-6)
    assert abs(dh.item() - expected) <= tolerance * expected


@pytest.mark.parametrize("hardness", HARDNESS)
@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_non_finite_inputs_and_zeros(target, dtype, hardness):
    x = torch.tensor([math.inf, -math.inf, math.nan, 0.0, -0.0], dtype=dtype)
    for repeat in (1, 40):  # a short piece of a vector, and whole vectors
        y = value(target, x.repeat(repeat), hardness)
        dx, dh = gradients(target, torch.ones_like(y), x.repeat(repeat), torch.tensor([hardness]))
        assert torch.equal(y.nan_to_num(7, math.inf), torch.tensor([math.inf, 0, 7, 0, 0], dtype=dtype).repeat(repeat))
        assert torch.equal(dx.nan_to_num(7), torch.tensor([1, 0, 7, 0.5, 0.5], dtype=dtype).repeat(repeat))
        assert dh.isnan().all()
    _, dh = gradients(target, torch.ones(4, dtype=dtype), x[[0, 1, 3, 4]], torch.tensor([hardness]))
    assert dh.item() == 0  # only NaN gives NaN


# --- properties ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hypothesis():
    return pytest.importorskip("hypothesis")


@pytest.fixture(scope="module")
def st(hypothesis):
    return hypothesis.strategies


@pytest.fixture(scope="module")
def any_finite(st):
    return st.floats(width=32, allow_nan=False, allow_infinity=False)


def test_is_gelu_of_the_scaled_input(target, hypothesis, st):
    @hypothesis.given(x=st.floats(-6, 6), hardness=st.floats(0.5, 100))
    @hypothesis.settings(max_examples=200, deadline=None)
    def check(x, hardness):
        y = value(target, torch.tensor([x], dtype=torch.float64), hardness)
        gelu = torch.nn.functional.gelu(torch.tensor([x * hardness], dtype=torch.float64)) / hardness
        # PyTorch's own GELU cancels in the negative tail: absolute there, relative elsewhere.
        assert y.item() == pytest.approx(gelu.item(), rel=1e-14, abs=2e-15 * max(1, abs(x)))

    check()


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_never_above_relu(target, dtype, hypothesis, st, any_finite):
    any_hardness = st.floats(min_value=2.0**-10, max_value=2.0**13, width=32)

    @hypothesis.given(values=st.lists(any_finite, min_size=1, max_size=40), hardness=any_hardness)
    @hypothesis.settings(max_examples=100, deadline=None)
    def check(values, hardness):
        x = torch.tensor(values, dtype=torch.float64).to(dtype)
        y = value(target, x, hardness)
        assert (torch.relu(x) - y >= 0)[x.isfinite()].all()

    check()


def test_tends_to_relu(target, hypothesis, st, any_finite):
    @hypothesis.given(values=st.lists(any_finite, min_size=1, max_size=40))
    @hypothesis.settings(max_examples=100, deadline=None)
    def check(values):
        x = torch.tensor(values, dtype=torch.float32)
        gap = torch.relu(x).double() - value(target, x, 1e30).double()
        # e(x) <= max over z of |z| Φ(-|z|), divided by λ
        assert (gap <= 0.17 / 1e30).all()

    check()
