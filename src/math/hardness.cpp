#include <lambda_gelu/math/hardness.h>

#include <cmath>
#include <stdexcept>

#include "checks.h"
#include "softplus.h"

namespace lambda_gelu {

double hardness_from_raw(double raw_hardness, double temperature) {
  checks::finite("raw_hardness", raw_hardness);
  checks::finite_positive("temperature", temperature);
  return one_plus_softplus(raw_hardness / temperature);
}

double raw_from_hardness(double hardness, double temperature) {
  checks::finite_positive("temperature", temperature);
  if (!std::isfinite(hardness) || hardness <= 1) {
    throw std::invalid_argument(
        fmt::format("hardness must be finite and above 1 (lambda = 1 has no finite raw_hardness), got {}", hardness));
  }
  const double excess = hardness - 1;
  // ln(e^u - 1) = u + ln(1 - e^-u): neither overflows for large u nor cancels for small u.
  return temperature * (excess + std::log(-std::expm1(-excess)));
}

double hardness_derivative(double raw_hardness, double temperature) {
  checks::finite("raw_hardness", raw_hardness);
  checks::finite_positive("temperature", temperature);
  return sigmoid(raw_hardness / temperature) / temperature;
}

}  // namespace lambda_gelu
