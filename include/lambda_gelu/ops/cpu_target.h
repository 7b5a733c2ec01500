#pragma once

#include <lambda_gelu/export.h>

#include <string>
#include <vector>

/// Which instruction set the CPU kernels use.
namespace lambda_gelu {

/// What this machine can run, best first: of "avx512", "avx2", "scalar".
LAMBDA_GELU_API std::vector<std::string> cpu_targets();

/// The one in use.
LAMBDA_GELU_API std::string cpu_target();

/// Forces one of cpu_targets(), for tests and benchmarks; an empty name restores the best. Throws
/// std::invalid_argument for any other. Not while another thread computes.
LAMBDA_GELU_API void set_cpu_target(const std::string& name);

}  // namespace lambda_gelu
