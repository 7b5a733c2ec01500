// The operators in ATen operations, for every device without kernels of its own.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace lambda_gelu {

at::Tensor forward_composite(const at::Tensor& input, const at::Tensor& hardness, int64_t channel_dim,
                             std::optional<double> temperature);

std::tuple<at::Tensor, at::Tensor> backward_composite(const at::Tensor& grad_output, const at::Tensor& input,
                                                      const at::Tensor& hardness, int64_t channel_dim,
                                                      std::optional<double> temperature);

at::Tensor backward_inplace_composite(const at::Tensor& grad_output, const at::Tensor& input,
                                      const at::Tensor& hardness, int64_t channel_dim,
                                      std::optional<double> temperature);

}  // namespace lambda_gelu
