// The reparameterization lambda = 1 + softplus(t), t = s / tau, for the CPU and for GPU code.
#pragma once

#include <math/host_device.h>

#include <cmath>

namespace lambda_gelu {

/// 1 + ln(1 + e^t): neither overflows for large t nor cancels for small. Infinities take their limits, NaN stays.
LAMBDA_GELU_HD double one_plus_softplus(double t) {
  return 1 + ((t > 0 ? t : 0.0) + std::log1p(std::exp(-std::fabs(t))));
}

/// d softplus / dt = 1 / (1 + e^-t).
LAMBDA_GELU_HD double sigmoid(double t) {
  const double e = std::exp(-std::fabs(t));
  return divide(t >= 0 ? 1 : e, 1 + e);
}

}  // namespace lambda_gelu
