#pragma once

#include <lambda_gelu/export.h>

/// The error that is made when ReLU replaces lambda-GELU, e(x) = ReLU(x) - x Phi(lambda x) = |x| Phi(-lambda |x|) >= 0,
/// for normal pre-activations (closed forms derived from arXiv 2603.21991; accurate to 1e-13 relative, for large
/// lambda too). Plain double, no torch. All throw std::invalid_argument for arguments that are not finite or outside
/// their stated range.
namespace lambda_gelu {

/// The L1 distance of the gates, integral of |Phi(lambda x) - H(x)| dx = sqrt(2 / pi) / lambda. hardness > 0.
LAMBDA_GELU_API double gate_gap(double hardness);

/// The hardness whose gate gap is `epsilon`: sqrt(2 / pi) / epsilon. epsilon > 0.
LAMBDA_GELU_API double target_from_gate_gap(double epsilon);

/// E[e(x)] for x ~ N(mean, std^2): closed form for mean 0, quadrature otherwise. hardness > 0, std > 0, and so their
/// product (also below).
LAMBDA_GELU_API double expected_gap(double hardness, double mean = 0.0, double std = 1.0);

/// E[e(x)^2] for x ~ N(mean, std^2): closed form for mean 0 and effective hardness up to 4, where it does not cancel;
/// quadrature otherwise. hardness > 0, std > 0.
LAMBDA_GELU_API double expected_sq_gap(double hardness, double mean = 0.0, double std = 1.0);

/// E[ReLU(x)^2] for x ~ N(mean, std^2). std > 0.
LAMBDA_GELU_API double expected_sq_relu(double mean = 0.0, double std = 1.0);

/// Signal-to-error ratio of the swap in dB, 10 log10(E[ReLU(x)^2] / E[e(x)^2]), for x ~ N(mean * sigma, sigma^2):
/// it depends only on the effective hardness kappa = lambda * sigma > 0 and on the mean in units of sigma, in [-30,
/// 30].
LAMBDA_GELU_API double ser_db(double effective_hardness, double mean = 0.0);

/// The effective hardness kappa at which ser_db(kappa, mean) = decibels; divide by sigma for lambda.
/// Throws where no kappa in [1e-6, 1e9] reaches it.
LAMBDA_GELU_API double target_from_ser(double decibels, double mean = 0.0);

}  // namespace lambda_gelu
