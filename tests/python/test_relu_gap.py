"""relu_gap against quadrature with mpmath."""

import math

import pytest

from lambda_gelu import relu_gap

mpmath = pytest.importorskip("mpmath")

HARDNESS = [0.5, 1.0, 1.7, 7.978845608, 80.0]
NORMALS = [(0.0, 1.0), (0.0, 0.3), (-0.8, 0.7), (1.5, 2.0)]


def gap(x, hardness):
    """ReLU(x) - x Φ(λx), without the cancellation of the difference."""
    return abs(x) * mpmath.ncdf(-hardness * abs(x))


def expectation(function, mean, std, scale):
    """E[function(x)] for x ~ N(mean, std²); `scale` is the width of the function's own features around 0."""
    edges = {mean + std * k for k in (-12, -4, -2, 0, 2, 4, 12)} | {scale * k for k in (-12, -3, -1, 0, 1, 3, 12)}
    low, high = mean - 12 * std, mean + 12 * std
    points = sorted(edge for edge in edges if low <= edge <= high)
    return mpmath.quad(lambda x: function(x) * mpmath.npdf(x, mean, std), points)


@pytest.mark.parametrize("hardness", HARDNESS)
def test_gate_gap_is_the_l1_distance_of_the_gates(hardness):
    # |Φ(λx) - H(x)| is even in x
    distance = 2 * mpmath.quad(lambda x: mpmath.ncdf(-hardness * x), [0, 1 / hardness, 4 / hardness, mpmath.inf])
    assert relu_gap.gate_gap(hardness) == pytest.approx(float(distance), rel=1e-12)


@pytest.mark.parametrize("epsilon", [0.01, 0.1, 1.0])
def test_target_from_gate_gap_has_that_gap(epsilon):
    target = relu_gap.target_from_gate_gap(epsilon)
    distance = 2 * mpmath.quad(lambda x: mpmath.ncdf(-target * x), [0, 1 / target, 4 / target, mpmath.inf])
    assert float(distance) == pytest.approx(epsilon, rel=1e-12)


@pytest.mark.parametrize(("mean", "std"), NORMALS)
@pytest.mark.parametrize("hardness", HARDNESS)
def test_expected_gap(hardness, mean, std):
    expected = expectation(lambda x: gap(x, hardness), mean, std, 1 / hardness)
    assert relu_gap.expected_gap(hardness, mean, std) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize(("mean", "std"), NORMALS)
@pytest.mark.parametrize("hardness", HARDNESS)
def test_expected_sq_gap(hardness, mean, std):
    expected = expectation(lambda x: gap(x, hardness) ** 2, mean, std, 1 / hardness)
    assert relu_gap.expected_sq_gap(hardness, mean=mean, std=std) == pytest.approx(float(expected), rel=1e-8)


@pytest.mark.parametrize(("mean", "std"), NORMALS)
def test_expected_sq_relu(mean, std):
    expected = expectation(lambda x: max(x, 0) ** 2, mean, std, std)
    assert relu_gap.expected_sq_relu(mean, std) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("mean", [-2.0, -1.0, 0.0, 0.7])
@pytest.mark.parametrize("kappa", [1.0, 3.0, 8.0])
def test_ser_depends_on_the_effective_hardness_only(kappa, mean):
    signal = expectation(lambda x: max(x, 0) ** 2, mean, 1.0, 1.0)
    error = expectation(lambda x: gap(x, kappa) ** 2, mean, 1.0, 1 / kappa)
    assert relu_gap.ser_db(kappa, mean) == pytest.approx(float(10 * mpmath.log10(signal / error)), abs=1e-7)
    sigma = 0.37
    scaled = relu_gap.expected_sq_relu(mean * sigma, sigma) / relu_gap.expected_sq_gap(
        kappa / sigma, mean * sigma, sigma
    )
    assert relu_gap.ser_db(kappa, mean) == pytest.approx(10 * math.log10(scaled), abs=1e-7)


@pytest.mark.parametrize("mean", [-2.0, 0.0, 1.0])
@pytest.mark.parametrize("decibels", [20.0, 30.0, 40.0])
def test_target_from_ser_reaches_it(decibels, mean):
    kappa = relu_gap.target_from_ser(decibels, mean)
    signal = expectation(lambda x: max(x, 0) ** 2, mean, 1.0, 1.0)
    error = expectation(lambda x: gap(x, kappa) ** 2, mean, 1.0, 1 / kappa)
    assert float(10 * mpmath.log10(signal / error)) == pytest.approx(decibels, abs=1e-6)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("hardness", relu_gap.gate_gap),
        ("epsilon", relu_gap.target_from_gate_gap),
        ("hardness", relu_gap.expected_gap),
        ("hardness", relu_gap.expected_sq_gap),
        ("effective_hardness", relu_gap.ser_db),
        ("std", lambda value: relu_gap.expected_gap(2.0, 0.0, value)),
        ("std", lambda value: relu_gap.expected_sq_gap(2.0, 0.0, value)),
        ("std", lambda value: relu_gap.expected_sq_relu(0.0, value)),
    ],
)
def test_arguments_outside_their_range_are_refused_by_name(name, function, bad):
    with pytest.raises(ValueError, match=name):
        function(bad)


def test_a_ratio_that_no_hardness_reaches_is_refused():
    with pytest.raises(ValueError, match="decibels"):
        relu_gap.target_from_ser(1e6)
