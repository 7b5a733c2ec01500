// Distributions of pre-activations: their exact histogram, and what the swap costs by quadrature.
#pragma once

#include <lambda_gelu/math/histogram.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <string>
#include <vector>

#include "quadrature.h"

namespace reference {

struct Distribution {
  std::string name;
  std::function<Real(Real)> density;
  Real std;    // of all of it
  Real reach;  // beyond it, on both sides, there is no mass that counts
};

inline Distribution normal(Real mean, Real std) {
  return {"normal", [=](Real x) { return normal_pdf((x - mean) / std) / std; }, std, std::abs(mean) + 12 * std};
}

inline Distribution laplace(Real scale) {
  return {"Laplace", [=](Real x) { return std::exp(-std::abs(x) / scale) / (2 * scale); }, scale * std::sqrt(2.0L),
          40 * scale};
}

/// 0.7 N(-0.6, 0.8^2) + 0.3 N(1.5, 0.3^2), times `scale`: what a trained layer looks like at its worst.
inline Distribution mixture(Real scale) {
  const auto a = normal(-0.6L * scale, 0.8L * scale), b = normal(1.5L * scale, 0.3L * scale);
  const Real mean = 0.7L * -0.6L + 0.3L * 1.5L;
  const Real square = 0.7L * (0.36L + 0.64L) + 0.3L * (2.25L + 0.09L);
  return {"mixture", [=](Real x) { return 0.7L * a.density(x) + 0.3L * b.density(x); },
          scale * std::sqrt(square - mean * mean), std::max(a.reach, b.reach)};
}

inline std::vector<Distribution> distributions() {
  return {normal(0, 1),      normal(-1, 1),   normal(-0.5L, 0.25L), normal(2, 0.7L),
          normal(0, 0.003L), normal(-30, 40), laplace(0.5L),        mixture(1)};
}

/// E[g(x); x > 0], or over x < 0.
inline Real integrate_side(const Distribution& d, Real sign, const std::function<Real(Real)>& g, Real reach) {
  Real sum = 0;
  for (const auto& [low, high] : {std::pair<Real, Real>{0, reach / 8}, {reach / 8, reach / 2}, {reach / 2, reach}}) {
    sum += integrate([&](Real x) { return g(x) * d.density(sign * x); }, low, high);
  }
  return sum;
}

/// E[e(x)^power]; straight from the definition.
inline double gap(const Distribution& d, int power, double hardness) {
  const auto e = [&](Real x) {
    const Real one = x * normal_cdf(-hardness * x);
    return power == 1 ? one : one * one;
  };
  const Real reach = std::min(d.reach, 30 / Real(hardness));
  return static_cast<double>(integrate_side(d, 1, e, reach) + integrate_side(d, -1, e, reach));
}

inline double sq_relu(const Distribution& d) {
  return static_cast<double>(integrate_side(d, 1, [](Real x) { return x * x; }, d.reach));
}

inline double ser_db(const Distribution& d, double hardness) {
  return 10 * std::log10(sq_relu(d) / gap(d, 2, hardness));
}

/// The histogram of `count` values that are spread exactly as the density says.
inline lambda_gelu::Histogram histogram(const Distribution& d, double count = 1e15) {
  using namespace lambda_gelu;
  const auto edges = histogram_edges();
  Histogram::Counts counts{};
  for (int side = 0; side < 2; ++side) {
    for (int bin = 0; bin < kHistogramBinsPerSign; ++bin) {
      const Real low = bin == 0 ? 0 : edges[bin];
      const Real high = bin + 1 == kHistogramBinsPerSign ? std::max<Real>(d.reach, edges[bin] + 1) : edges[bin + 1];
      const Real mass = integrate([&](Real x) { return d.density(side == 0 ? x : -x); }, low, high);
      counts[side * kHistogramBinsPerSign + bin] = std::llround(mass * count);
    }
  }
  const auto moment = [&](Real sign, int power) {
    return integrate_side(d, sign, [&](Real x) { return power == 1 ? x : x * x; }, d.reach);
  };
  return Histogram(counts, static_cast<double>((moment(1, 1) - moment(-1, 1)) * count),
                   static_cast<double>((moment(1, 2) + moment(-1, 2)) * count),
                   static_cast<double>(moment(1, 2) * count));
}

}  // namespace reference
