#pragma once

#include <lambda_gelu/export.h>

/// The error that is made when ReLU replaces lambda-GELU, e(x) = ReLU(x) - x Phi(lambda x) = |x| Phi(-lambda |x|) >= 0,
/// in closed form for normal pre-activations. Plain double, no torch. All throw std::invalid_argument for
/// arguments outside their stated range.
namespace lambda_gelu {

/// The L1 distance of the gates, integral of |Phi(lambda x) - H(x)| dx = sqrt(2 / pi) / lambda. hardness > 0.
LAMBDA_GELU_API double gate_gap(double hardness);

/// The hardness whose gate gap is `epsilon`: sqrt(2 / pi) / epsilon. epsilon > 0.
LAMBDA_GELU_API double target_from_gate_gap(double epsilon);

/// E[e(x)] for x ~ N(mean, std^2). hardness > 0, std > 0.
LAMBDA_GELU_API double expected_gap(double hardness, double mean = 0.0, double std = 1.0);

/// E[e(x)^2] for x ~ N(mean, std^2): closed form for mean 0, quadrature otherwise. hardness > 0, std > 0.
LAMBDA_GELU_API double expected_sq_gap(double hardness, double mean = 0.0, double std = 1.0);

/// E[ReLU(x)^2] for x ~ N(mean, std^2).
LAMBDA_GELU_API double expected_sq_relu(double mean = 0.0, double std = 1.0);

/// Signal-to-error ratio of the swap in dB, 10 log10(E[ReLU(x)^2] / E[e(x)^2]), for x ~ N(mean * sigma, sigma^2):
/// it depends only on the effective hardness kappa = lambda * sigma and on the mean in units of sigma.
LAMBDA_GELU_API double ser_db(double effective_hardness, double mean = 0.0);

/// The effective hardness kappa at which ser_db(kappa, mean) = decibels; divide by sigma for lambda.
/// Throws where no kappa in [1e-6, 1e9] reaches it.
LAMBDA_GELU_API double target_from_ser(double decibels, double mean = 0.0);

}  // namespace lambda_gelu
