// An independent reference: double-exponential (tanh-sinh) quadrature in long double.
#pragma once

#include <cmath>
#include <numbers>

namespace reference {

using Real = long double;

/// Integral of f over [low, high]; f may be non-smooth or singular only at the two ends.
template <typename Function>
Real integrate(const Function& f, Real low, Real high) {
  constexpr int kSteps = 320;
  constexpr Real kStep = 4.0L / kSteps;
  const Real half = (high - low) / 2, middle = (high + low) / 2;
  Real sum = 0;
  for (int k = -kSteps; k <= kSteps; ++k) {
    const Real t = k * kStep;
    const Real arg = std::numbers::pi_v<Real> / 2 * std::sinh(t);
    const Real weight = std::numbers::pi_v<Real> / 2 * std::cosh(t) / (std::cosh(arg) * std::cosh(arg));
    sum += weight * f(middle + half * std::tanh(arg));
  }
  return half * kStep * sum;
}

inline Real normal_cdf(Real x) {
  return std::erfc(-x / std::sqrt(2.0L)) / 2;
}
inline Real normal_pdf(Real x) {
  return std::exp(-x * x / 2) / std::sqrt(2 * std::numbers::pi_v<Real>);
}

/// Integral of f over [0, infinity) for an f that has fallen to nothing within 40 scales, panel by panel.
template <typename Function>
Real integrate_half_line(const Function& f, Real scale) {
  constexpr int kPanels = 20;
  Real sum = 0;
  for (int panel = 0; panel < kPanels; ++panel) sum += integrate(f, 2 * panel * scale, 2 * (panel + 1) * scale);
  return sum;
}

}  // namespace reference
