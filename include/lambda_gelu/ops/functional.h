#pragma once

#include <ATen/core/Tensor.h>
#include <lambda_gelu/export.h>

#include <cstdint>
#include <optional>
#include <tuple>

namespace lambda_gelu {

/// y = x Phi(lambda x), element by element (arXiv 2603.21991), through the dispatcher as
/// torch.ops.lambda_gelu.lambda_gelu.
///
/// input: float32, float64, bfloat16 or float16, any shape and strides, also empty.
/// hardness: lambda, 1-D with 1 element or with input.size(channel_dim) elements, of any of these dtypes, on input's
/// device. Its values are not checked (that would synchronize a device); see LambdaGELU::set_hardness.
/// temperature: if given, `hardness` holds s and lambda = 1 + softplus(s / temperature) is formed inside the kernel;
/// finite and positive.
/// Returns input's dtype, shape and (for dense inputs) strides. Differentiable twice, in forward mode too.
///
/// On CUDA: on the current stream of input's device, without waiting for it; may be captured into a graph.
LAMBDA_GELU_API at::Tensor lambda_gelu(const at::Tensor& input, const at::Tensor& hardness, int64_t channel_dim = 1,
                                       std::optional<double> temperature = std::nullopt);

/// The same with one lambda for the whole input; throws c10::ValueError unless it is finite and positive. A tensor is
/// filled with it: on CUDA one more launch, which a tensor that is kept saves.
LAMBDA_GELU_API at::Tensor lambda_gelu(const at::Tensor& input, double hardness);

/// lambda_gelu(input, raw_hardness, channel_dim, temperature): the reparameterization fused into the kernels.
LAMBDA_GELU_API at::Tensor softplus_lambda_gelu(const at::Tensor& input, const at::Tensor& raw_hardness,
                                                double temperature, int64_t channel_dim = 1);

/// (d input, d hardness) of lambda_gelu, through the dispatcher as torch.ops.lambda_gelu.lambda_gelu_backward. d
/// hardness is with respect to s where a temperature is given; in hardness's dtype; the same bits for any number of
/// threads, and on CUDA in every run.
LAMBDA_GELU_API std::tuple<at::Tensor, at::Tensor> lambda_gelu_backward(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& hardness, int64_t channel_dim = 1,
    std::optional<double> temperature = std::nullopt);

}  // namespace lambda_gelu
