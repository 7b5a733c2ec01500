#pragma once

#include <lambda_gelu/export.h>

/// The reparameterization of the hardness, lambda = 1 + softplus(s / tau) (arXiv 2603.21991): s is unconstrained
/// and trained, tau is a fixed temperature. Plain double, no torch.
namespace lambda_gelu {

/// lambda = 1 + softplus(raw_hardness / temperature). Throws std::invalid_argument unless raw_hardness is finite
/// and temperature is finite and positive.
LAMBDA_GELU_API double hardness_from_raw(double raw_hardness, double temperature);

/// The inverse, s = tau * ln(exp(lambda - 1) - 1), without overflow or cancellation: it round-trips for
/// lambda - 1 from 1e-6 to 1e3. Throws std::invalid_argument unless hardness is finite and above 1.
LAMBDA_GELU_API double raw_from_hardness(double hardness, double temperature);

/// d lambda / d s = sigmoid(s / tau) / tau. Throws as hardness_from_raw does.
LAMBDA_GELU_API double hardness_derivative(double raw_hardness, double temperature);

}  // namespace lambda_gelu
