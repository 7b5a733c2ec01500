// What the operators refuse, before anything is computed. Every backend, Meta included, repeats these checks.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace lambda_gelu {

/// A dense tensor of one of the four dtypes.
void check_input(const at::Tensor& input);

/// What an operator adds to: contiguous, shape (rows, columns), on input's device.
void check_accumulator(const at::Tensor& tensor, const char* name, at::ScalarType dtype, int64_t columns,
                       const at::Tensor& input);

/// channel_dim in [0, input.dim()). Throws where it is none of input's.
int64_t checked_channel_dim(int64_t channel_dim, const at::Tensor& input);

/// Sizes may be symbolic: a check that depends on an unknown size becomes a run-time assertion of the compiled graph.
void check_forward(const at::Tensor& input, const at::Tensor& hardness, int64_t channel_dim,
                   std::optional<double> temperature);

void check_backward(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& hardness,
                    int64_t channel_dim, std::optional<double> temperature);

/// For lambda_gelu_backward_, whose result replaces grad_output.
void check_backward_inplace(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& hardness,
                            int64_t channel_dim, std::optional<double> temperature);

/// Whether a number can be a hardness in float32 or float64: positive, finite and not subnormal.
bool is_hardness_of(double hardness, at::ScalarType dtype);

/// channel_dim in [0, ndim). Only where the hardness has more than one element: with one it is ignored.
inline int64_t wrap_channel_dim(int64_t channel_dim, int64_t ndim) {
  return channel_dim < 0 ? channel_dim + ndim : channel_dim;
}

}  // namespace lambda_gelu
