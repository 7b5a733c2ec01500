// The math floor throws std::invalid_argument; above it every refused value is a c10::ValueError.
#pragma once

#include <c10/util/Exception.h>

#include <stdexcept>

namespace lambda_gelu {

template <typename Call>
auto with_value_errors(const Call& call) {
  try {
    return call();
  } catch (const std::invalid_argument& error) {
    C10_THROW_ERROR(ValueError, error.what());
  }
}

}  // namespace lambda_gelu
