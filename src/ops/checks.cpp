#include "ops/checks.h"

#include <ATen/MemoryOverlap.h>
#include <c10/core/ScalarType.h>
#include <c10/core/SymBool.h>
#include <c10/util/Exception.h>

#include <cmath>
#include <limits>
#include <string>

namespace lambda_gelu {
namespace {

// A copy: torch 2.11 returns strings, 2.13 views of its own.
std::string dtype_name(at::ScalarType dtype) {
  return std::string(c10::getDtypeNames(dtype).first);
}

bool is_supported(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16 || dtype == at::kHalf;
}

void check_dense(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK_TYPE(tensor.defined(), name, " must be a tensor, got none");
  TORCH_CHECK_TYPE(!tensor.is_nested(), name, " must be a dense tensor, got a nested tensor");
  TORCH_CHECK_TYPE(tensor.layout() == at::kStrided, name, " must be a dense tensor, got layout ", tensor.layout());
}

void check_hardness_type(const at::Tensor& hardness, const at::Tensor& input) {
  check_dense(hardness, "hardness");
  TORCH_CHECK_TYPE(is_supported(hardness.scalar_type()), "hardness must be float32, float64, bfloat16 or float16, got ",
                   dtype_name(hardness.scalar_type()));
  TORCH_CHECK(hardness.device() == input.device(), "hardness must be on input's device ", input.device(), ", got ",
              hardness.device());
}

void check_hardness_size(const at::Tensor& hardness, const at::Tensor& input, int64_t channel_dim) {
  TORCH_CHECK_VALUE(hardness.dim() == 1, "hardness must have one dimension, got shape ", hardness.sym_sizes());
  const auto count = hardness.sym_size(0);
  if (TORCH_GUARD_OR_FALSE(count.sym_eq(1))) return;

  TORCH_CHECK_VALUE(input.dim() > 0, "hardness must have 1 element for an input without dimensions, got ", count);
  const auto dim = checked_channel_dim(channel_dim, input);
  const auto channels = input.sym_size(dim);
  const auto fits = count.sym_eq(channels).sym_or(count.sym_eq(1));
  if (const auto known = fits.maybe_as_bool()) {
    TORCH_CHECK_VALUE(*known, "hardness must have 1 or ", channels, " elements (input.size(", dim, ")), got ", count);
  } else {
    TORCH_SYM_CHECK(fits, "hardness must have 1 or ", channels, " elements (input.size(", dim, ")), got ", count);
  }
}

void check_temperature(std::optional<double> temperature) {
  TORCH_CHECK_VALUE(!temperature || (std::isfinite(*temperature) && *temperature > 0),
                    "temperature must be finite and positive, got ", *temperature);
}

void check_same_shape(const at::Tensor& grad_output, const at::Tensor& input) {
  TORCH_CHECK_VALUE(grad_output.dim() == input.dim(), "grad_output must have input's shape ", input.sym_sizes(),
                    ", got ", grad_output.sym_sizes());
  for (int64_t dim = 0; dim < input.dim(); ++dim) {
    const auto equal = grad_output.sym_size(dim).sym_eq(input.sym_size(dim));
    if (const auto known = equal.maybe_as_bool()) {
      TORCH_CHECK_VALUE(*known, "grad_output must have input's shape ", input.sym_sizes(), ", got ",
                        grad_output.sym_sizes());
    } else {
      TORCH_SYM_CHECK(equal, "grad_output must have input's shape ", input.sym_sizes(), ", got ",
                      grad_output.sym_sizes());
    }
  }
}

}  // namespace

void check_input(const at::Tensor& input) {
  check_dense(input, "input");
  TORCH_CHECK_TYPE(is_supported(input.scalar_type()), "input must be float32, float64, bfloat16 or float16, got ",
                   dtype_name(input.scalar_type()));
}

int64_t checked_channel_dim(int64_t channel_dim, const at::Tensor& input) {
  const auto ndim = input.dim();
  TORCH_CHECK_VALUE(channel_dim >= -ndim && channel_dim < ndim, "channel_dim must be in [", -ndim, ", ", ndim - 1,
                    "] for an input of shape ", input.sym_sizes(), ", got ", channel_dim);
  return wrap_channel_dim(channel_dim, ndim);
}

void check_accumulator(const at::Tensor& tensor, const char* name, at::ScalarType dtype, int64_t columns,
                       const at::Tensor& input) {
  check_dense(tensor, name);
  TORCH_CHECK_TYPE(tensor.scalar_type() == dtype, name, " must be ", dtype_name(dtype), ", got ",
                   dtype_name(tensor.scalar_type()));
  TORCH_CHECK(tensor.device() == input.device(), name, " must be on input's device ", input.device(), ", got ",
              tensor.device());
  TORCH_CHECK_VALUE(tensor.dim() == 2 && TORCH_GUARD_OR_TRUE(tensor.sym_size(1).sym_eq(columns)), name,
                    " must have shape (rows, ", columns, "), got ", tensor.sym_sizes());
  TORCH_CHECK_VALUE(tensor.is_contiguous(), name, " must be contiguous");
}

void check_forward(const at::Tensor& input, const at::Tensor& hardness, int64_t channel_dim,
                   std::optional<double> temperature) {
  check_input(input);
  check_hardness_type(hardness, input);
  check_hardness_size(hardness, input, channel_dim);
  check_temperature(temperature);
}

void check_backward(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& hardness,
                    int64_t channel_dim, std::optional<double> temperature) {
  check_forward(input, hardness, channel_dim, temperature);
  check_dense(grad_output, "grad_output");
  TORCH_CHECK_TYPE(grad_output.scalar_type() == input.scalar_type(), "grad_output must be of input's dtype ",
                   dtype_name(input.scalar_type()), ", got ", dtype_name(grad_output.scalar_type()));
  TORCH_CHECK(grad_output.device() == input.device(), "grad_output must be on input's device ", input.device(),
              ", got ", grad_output.device());
  check_same_shape(grad_output, input);
}

void check_backward_inplace(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& hardness,
                            int64_t channel_dim, std::optional<double> temperature) {
  check_backward(grad_output, input, hardness, channel_dim, temperature);
  TORCH_CHECK_VALUE(grad_output.is_non_overlapping_and_dense(), "grad_output must be dense to be written to");
  TORCH_CHECK_VALUE(at::get_overlap_status(grad_output, input) != at::MemOverlapStatus::Partial,
                    "grad_output must not share part of input's memory to be written to");
}

bool is_hardness_of(double hardness, at::ScalarType dtype) {
  const bool is_double = dtype == at::kDouble;
  const double least = is_double ? std::numeric_limits<double>::min() : std::numeric_limits<float>::min();
  const double most = is_double ? std::numeric_limits<double>::max() : std::numeric_limits<float>::max();
  return hardness >= least && hardness <= most;
}

}  // namespace lambda_gelu
