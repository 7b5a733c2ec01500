// Argument checks of the math floor: each message names the argument, what was expected and what came.
#pragma once

#include <fmt/format.h>

#include <cmath>
#include <stdexcept>
#include <string_view>

namespace lambda_gelu::checks {

inline void finite(std::string_view name, double value) {
  if (!std::isfinite(value)) throw std::invalid_argument(fmt::format("{} must be finite, got {}", name, value));
}

inline void finite_positive(std::string_view name, double value) {
  if (!std::isfinite(value) || value <= 0) {
    throw std::invalid_argument(fmt::format("{} must be finite and positive, got {}", name, value));
  }
}

}  // namespace lambda_gelu::checks
