#include <lambda_gelu/math/relu_gap.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numbers>
#include <stdexcept>
#include <utility>

#include "checks.h"

namespace lambda_gelu {
namespace {

const double kGateGapAtOne = std::sqrt(2 * std::numbers::inv_pi);  // integral of |Phi(x) - H(x)| dx
const double kInvSqrt2Pi = std::sqrt(0.5 * std::numbers::inv_pi);

// Beyond it both expectations of ser_db leave the range of double.
constexpr double kMaxMean = 30;
// Up to here the closed form of E[e^2] cancels no more than three digits.
constexpr double kClosedFormLimit = 4;
constexpr double kSmallestKappa = 1e-6, kLargestKappa = 1e9;

double normal_pdf(double x) {
  return kInvSqrt2Pi * std::exp(-0.5 * x * x);
}
double normal_cdf(double x) {
  return 0.5 * std::erfc(-x * std::numbers::sqrt2 / 2);
}

// Positive half of the nodes and weights of 20-point Gauss-Legendre quadrature on [-1, 1].
constexpr std::array<std::pair<double, double>, 10> kGaussLegendre{{
    {0.07652652113349733375, 0.1527533871307258507},
    {0.2277858511416450781, 0.1491729864726037468},
    {0.3737060887154195607, 0.1420961093183820513},
    {0.510867001950827098, 0.1316886384491766269},
    {0.6360536807265150255, 0.1181945319615184173},
    {0.7463319064601507926, 0.101930119817240435},
    {0.8391169718222188234, 0.08327674157670474872},
    {0.9122344282513259059, 0.06267204833410906357},
    {0.9639719272779137913, 0.04060142980038694133},
    {0.9931285991850949248, 0.01761400713915211831},
}};

template <typename Function>
double integrate(const Function& f, double low, double high) {
  constexpr int kPanels = 4;
  const double half = (high - low) / (2 * kPanels);
  double sum = 0;
  for (int panel = 0; panel < kPanels; ++panel) {
    const double middle = low + (2 * panel + 1) * half;
    for (const auto& [node, weight] : kGaussLegendre) {
      sum += weight * (f(middle - half * node) + f(middle + half * node));
    }
  }
  return half * sum;
}

// E[e(v)^power] for v ~ N(mean, 1). With u = kappa v this is kappa^-(power + 1) times the integral of
// (u Phi(-u))^power [phi(u / kappa - mean) + phi(u / kappa + mean)] over u > 0, a positive integrand: nothing cancels.
// Phi(-u)^power phi(u / kappa - mean) is a normal density (times a slowly falling factor) whose centre and width
// tell where the integrand lives, for small and for large kappa alike.
double gap_by_quadrature(int power, double kappa, double mean) {
  const double widening = std::hypot(1.0, std::sqrt(static_cast<double>(power)) * kappa);
  const double width = kappa / widening;
  double sum = 0;
  for (const double side : {mean, -mean}) {
    const double centre = side * width / widening;
    const double low = std::max(0.0, centre - 10 * width);
    const double high = std::max(low, centre + 10 * width);
    sum += integrate(
        [&](double u) {
          const double gap = u * normal_cdf(-u);
          return (power == 1 ? gap : gap * gap) * normal_pdf(u / kappa - side);
        },
        low, high);
  }
  return sum / std::pow(kappa, power + 1);
}

// E[e(v)^2] for v ~ N(0, 1). The textbook form 1/4 + [arcsin(k^2/(1+k^2)) - 2 arctan k]/(2 pi) - ... is rewritten with
// the complements of both angles, which removes the constants that cancel.
double sq_gap_closed_form(double kappa) {
  const double k2 = kappa * kappa;
  const double root = std::sqrt(1 + 2 * k2);
  const double angles = 2 * std::atan2(1.0, kappa) - std::atan2(root, k2);
  return std::numbers::inv_pi * (angles / 2 - kappa / (1 + k2) * (1 - kappa / root));
}

double sq_gap(double kappa, double mean) {
  if (mean == 0 && kappa <= kClosedFormLimit) return sq_gap_closed_form(kappa);
  return gap_by_quadrature(2, kappa, mean);
}

// E[ReLU(v)^2] for v ~ N(mean, 1).
double sq_relu(double mean) {
  // The terms of the closed form cancel like mean^-4; there the density falls at least as fast as exp(mean v).
  if (mean < -3) return integrate([&](double v) { return v * v * normal_pdf(v - mean); }, 0, -45 / mean);
  return (mean * mean + 1) * normal_cdf(mean) + mean * normal_pdf(mean);
}

double effective_hardness(double hardness, double std) {
  checks::finite_positive("hardness", hardness);
  checks::finite_positive("std", std);
  checks::finite_positive("hardness * std", hardness * std);
  return hardness * std;
}

double standardized_mean(double mean, double std) {
  checks::finite("mean", mean);
  checks::finite_positive("std", std);
  checks::finite("mean / std", mean / std);
  return mean / std;
}

double unchecked_ser_db(double kappa, double mean) {
  return 10 * std::log10(sq_relu(mean) / sq_gap(kappa, mean));
}

void require_ser_mean(double mean) {
  if (!(std::abs(mean) <= kMaxMean)) {
    throw std::invalid_argument(
        fmt::format("mean must be in [{}, {}] (in units of sigma), got {}", -kMaxMean, kMaxMean, mean));
  }
}

}  // namespace

double gate_gap(double hardness) {
  checks::finite_positive("hardness", hardness);
  return kGateGapAtOne / hardness;
}

double target_from_gate_gap(double epsilon) {
  checks::finite_positive("epsilon", epsilon);
  return kGateGapAtOne / epsilon;
}

double expected_gap(double hardness, double mean, double std) {
  const double kappa = effective_hardness(hardness, std);
  const double m = standardized_mean(mean, std);
  if (m != 0) return std * gap_by_quadrature(1, kappa, m);
  // 1 - kappa / q = 1 / (q (q + kappa)) with q = sqrt(1 + kappa^2): no cancellation for large kappa.
  const double q = std::hypot(1.0, kappa);
  return std * kInvSqrt2Pi / q / (q + kappa);
}

double expected_sq_gap(double hardness, double mean, double std) {
  const double kappa = effective_hardness(hardness, std);
  return std * std * sq_gap(kappa, standardized_mean(mean, std));
}

double expected_sq_relu(double mean, double std) {
  return std * std * sq_relu(standardized_mean(mean, std));
}

double ser_db(double effective_hardness, double mean) {
  checks::finite_positive("effective_hardness", effective_hardness);
  require_ser_mean(mean);
  return unchecked_ser_db(effective_hardness, mean);
}

double target_from_ser(double decibels, double mean) {
  checks::finite("decibels", decibels);
  require_ser_mean(mean);
  const double least = unchecked_ser_db(kSmallestKappa, mean), most = unchecked_ser_db(kLargestKappa, mean);
  if (!(decibels >= least && decibels <= most)) {
    throw std::invalid_argument(
        fmt::format("decibels must be in [{:.4g}, {:.4g}] for mean = {} (what a kappa in "
                    "[{}, {}] reaches), got {}",
                    least, most, mean, kSmallestKappa, kLargestKappa, decibels));
  }
  // E[e^2] falls strictly with kappa, over fifteen decades: bisect in its logarithm.
  double low = std::log(kSmallestKappa), high = std::log(kLargestKappa);
  while (high - low > 4 * std::numeric_limits<double>::epsilon() * std::max(std::abs(low), std::abs(high))) {
    const double middle = 0.5 * (low + high);
    (unchecked_ser_db(std::exp(middle), mean) < decibels ? low : high) = middle;
  }
  return std::exp(0.5 * (low + high));
}

}  // namespace lambda_gelu
