// The gate on the GPU. As on the CPU (gate.h), Phi(-|z|) = 2^-(w^2) R(w) and y = relu(x) - |x| Phi(-|z|); what differs
// is how 2^-(w^2) and the quotient in R are formed. docs/cuda.md has their accuracy and what they cost.
#pragma once

#include <kernels/cuda/portable.h>
#include <kernels/gate.h>

#include <cstddef>
#include <cstdint>

namespace lambda_gelu::kernels::cuda {

/// What y, D and the term of the sum are made of: a = min(|x|, limit), w = k a, exp = 2^-(w^2), ratio = R(w).
template <class T>
struct GateValue {
  T a, w, exp, ratio;
};

template <class T>
struct Derivative {
  T value;  ///< dy/dx
  T term;   ///< 2^-(w^2) w a: dy/dlambda as unscaled_sum_to_gradient() takes it
};

/// Goes on with the coefficients from kIndex on, every kStep-th, highest degree first. They become immediates of the
/// instructions: a table in memory would cost a load each.
template <const auto& kCoefficients, std::size_t kIndex, std::size_t kStep, class T>
LAMBDA_GELU_HD T horner(T value, T at) {
  if constexpr (kIndex >= sizeof(kCoefficients) / sizeof(T)) {
    return value;
  } else {
    constexpr T coefficient = kCoefficients[kIndex];
    return horner<kCoefficients, kIndex + kStep, kStep>(fma(value, at, coefficient), at);
  }
}
template <const auto& kCoefficients, class T>
LAMBDA_GELU_HD T polynomial(T at) {
  constexpr T leading = kCoefficients[0];
  return horner<kCoefficients, 1, 1>(leading, at);
}
/// Even and odd powers apart: half as many roundings one after the other.
template <const auto& kCoefficients, class T>
LAMBDA_GELU_HD T polynomial(T at, T square) {
  constexpr std::size_t kCount = sizeof(kCoefficients) / sizeof(T);
  constexpr std::size_t kEven = (kCount - 1) % 2;
  constexpr std::size_t kOdd = kCount % 2;
  constexpr T leading_even = kCoefficients[kEven];
  constexpr T leading_odd = kCoefficients[kOdd];
  const T even = horner<kCoefficients, kEven + 2, 2>(leading_even, square);
  return fma(horner<kCoefficients, kOdd + 2, 2>(leading_odd, square), at, even);
}

/// float32: nothing rests on the hardware's exponential, and the Newton step makes the quotient independent of the last
/// bit of the hardware's reciprocal.
struct PolynomialFormula {
  using Compute = float;
  static constexpr Formula kFormula = Formula::kPolynomial;

  static LAMBDA_GELU_HD GateValue<float> evaluate(float x, const Gate<float>& gate) {
    GateValue<float> v;
    v.a = min_or_nan(gate.limit, fabsf(x));
    v.w = mul(gate.scale_hi, v.a);
    const float w_low = fma(gate.scale_lo, v.a, fma(gate.scale_hi, v.a, -v.w));

    // -(w + w_low)^2 = n + r: the exact w^2 enters r through one rounding, so its own rounding error needs no term.
    constexpr float round = ExpPolynomial::round;
    const float shifted = fma(-v.w, v.w, round);
    const float n = add(round, -shifted);
    const float r = fma(mul(v.w, -2.0f), w_low, fma(-v.w, v.w, n));
    const float power = polynomial<ExpPolynomial::p>(r);
    // x = NaN leaves anything here, but a and ratio are NaN.
    v.exp = from_bits(to_bits(power) + (to_bits(shifted) << 23));

    const float p = polynomial<RationalFloat::p>(v.w);
    const float q = polynomial<RationalFloat::q>(v.w);
    const float reciprocal = approximate_reciprocal(q);
    const float estimate = mul(p, reciprocal);
    v.ratio = fma(fma(-q, estimate, p), reciprocal, estimate);
    return v;
  }

  static LAMBDA_GELU_HD float value(float x, const Gate<float>& gate) {
    const auto v = evaluate(x, gate);
    return fma(-v.a, mul_flushed(v.exp, v.ratio), relu(x));
  }

  static LAMBDA_GELU_HD Derivative<float> derivative(float x, const Gate<float>& gate) {
    const auto v = evaluate(x, gate);
    const float beyond = mul_flushed(v.exp, fma(-gate.slope, v.a, v.ratio));
    return {reflected_unless_negative(beyond, x), mul(mul_flushed(v.exp, v.w), v.a)};
  }
};

/// bfloat16 and float16: the hardware's exponential and reciprocal as they are.
struct HardwareFormula {
  using Compute = float;
  static constexpr float kSlope = 0.46971863934982566f;  ///< sqrt(ln 2 / pi): z phi(z) = kSlope w 2^-(w^2)
  static constexpr Formula kFormula = Formula::kHardwareExp;

  static LAMBDA_GELU_HD GateValue<float> evaluate(float x, const Gate<float>& gate) {
    GateValue<float> v;
    v.a = min_or_nan(gate.limit, fabsf(x));
    v.w = mul(gate.scale_hi, v.a);
    v.exp = approximate_exp2(-mul(v.w, v.w));
    v.ratio = mul(polynomial<RationalMid::p>(v.w), approximate_reciprocal(polynomial<RationalMid::q>(v.w)));
    return v;
  }

  static LAMBDA_GELU_HD float value(float x, const Gate<float>& gate) {
    const auto v = evaluate(x, gate);
    return fma(-mul(v.a, v.exp), v.ratio, relu(x));
  }

  static LAMBDA_GELU_HD Derivative<float> derivative(float x, const Gate<float>& gate) {
    const auto v = evaluate(x, gate);
    // slope a would be nearer to z phi(z), by a rounding of w that 16 bits do not show, but needs a constant of lambda.
    const float beyond = mul(v.exp, fma(-kSlope, v.w, v.ratio));
    return {reflected_unless_negative(beyond, x), mul(mul(v.exp, v.w), v.a)};
  }
};

/// float64.
struct DoubleFormula {
  using Compute = double;
  static constexpr Formula kFormula = Formula::kDouble;

  static LAMBDA_GELU_HD GateValue<double> evaluate(double x, const Gate<double>& gate) {
    GateValue<double> v;
    const double magnitude = fabs(x);
    v.a = magnitude > gate.limit ? gate.limit : magnitude;  // NaN stays
    v.w = mul(gate.scale_hi, v.a);
    const double w_low = fma(gate.scale_lo, v.a, fma(gate.scale_hi, v.a, -v.w));
    const double square = mul(v.w, v.w);
    const double square_low = fma(add(v.w, v.w), w_low, fma(v.w, v.w, -square));

    constexpr double round = ExpPolynomialDouble::round;
    const double shifted = add(round, -square);
    const double n = add(shifted, -round);
    const double r = add(add(-square, -n), -square_low);
    const double power = polynomial<ExpPolynomialDouble::p>(r);
    const auto exponent = static_cast<std::uint32_t>(low_half(shifted)) << 20;
    v.exp = magnitude >= gate.limit ? 0.0 : from_halves(low_half(power), high_half(power) + exponent);
    v.ratio = divide(polynomial<RationalDouble::p>(v.w, square), polynomial<RationalDouble::q>(v.w, square));
    return v;
  }

  static LAMBDA_GELU_HD double value(double x, const Gate<double>& gate) {
    const auto v = evaluate(x, gate);
    return fma(-mul(v.a, v.exp), v.ratio, relu(x));
  }

  static LAMBDA_GELU_HD Derivative<double> derivative(double x, const Gate<double>& gate) {
    const auto v = evaluate(x, gate);
    const double beyond = mul(v.exp, fma(-gate.slope, v.a, v.ratio));
    return {reflected_unless_negative(beyond, x), mul(mul(v.exp, v.w), v.a)};
  }
};

}  // namespace lambda_gelu::kernels::cuda
