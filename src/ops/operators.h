// The operators that are not part of the public interface.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace lambda_gelu {

/// lambda_gelu_backward that writes d input into grad_output and returns d hardness. grad_output must have the strides
/// of the result. Not differentiable.
at::Tensor lambda_gelu_backward_(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& hardness,
                                 int64_t channel_dim, std::optional<double> temperature);

}  // namespace lambda_gelu
