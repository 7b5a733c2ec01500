// The inverse of an increasing function of lambda.
#pragma once

#include <algorithm>
#include <cmath>

namespace lambda_gelu {

inline constexpr double kSmallestHardness = 1e-6, kLargestHardness = 1e9;

/// The lambda in [low, high] at which `f`, increasing in lambda, is `value`; f(low) <= value <= f(high). Regula falsi
/// in log lambda (Illinois: what the curves of this library are close to is a line there), with bisections between so
/// that it ends for any f.
template <typename Function>
double solve_increasing(const Function& f, double value, double low, double high) {
  double a = std::log(low), b = std::log(high);
  double fa = f(low) - value, fb = f(high) - value;
  if (fa >= 0) return low;
  if (fb <= 0) return high;
  int last = 0;
  for (int i = 0; i < 200 && b - a > 1e-14 * std::max(1.0, std::abs(a) + std::abs(b)); ++i) {
    const double width = b - a;
    double middle = a + width * (fa / (fa - fb));
    if (i % 3 == 2 || !(middle > a && middle < b)) middle = a + 0.5 * width;
    const double fm = f(std::exp(middle)) - value;
    if (fm == 0) return std::exp(middle);
    if (fm < 0) {
      a = middle;
      fa = fm;
      if (last == -1) fb *= 0.5;
      last = -1;
    } else {
      b = middle;
      fb = fm;
      if (last == 1) fa *= 0.5;
      last = 1;
    }
  }
  return std::exp(0.5 * (a + b));
}

}  // namespace lambda_gelu
