// The operators on CUDA in a build without CUDA kernels: as on every other device without kernels, said once.
#include <c10/util/Exception.h>
#include <torch/library.h>

#include <tuple>

#include "ops/composite.h"

namespace lambda_gelu::cuda {
namespace {

void warn_once() {
  TORCH_WARN_ONCE(
      "this build of lambda_gelu has no CUDA kernels: CUDA tensors go through several ATen operations, which is "
      "slower. For the kernels, build it from source where nvcc is: "
      "pip install --no-build-isolation . --config-settings=cmake.define.LAMBDA_GELU_CUDA=ON");
}

at::Tensor forward(const at::Tensor& input, const at::Tensor& hardness, int64_t channel_dim,
                   std::optional<double> temperature) {
  warn_once();
  return forward_composite(input, hardness, channel_dim, temperature);
}

std::tuple<at::Tensor, at::Tensor> backward(const at::Tensor& grad_output, const at::Tensor& input,
                                            const at::Tensor& hardness, int64_t channel_dim,
                                            std::optional<double> temperature) {
  warn_once();
  return backward_composite(grad_output, input, hardness, channel_dim, temperature);
}

at::Tensor backward_inplace(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& hardness,
                            int64_t channel_dim, std::optional<double> temperature) {
  warn_once();
  return backward_inplace_composite(grad_output, input, hardness, channel_dim, temperature);
}

}  // namespace

TORCH_LIBRARY_IMPL(lambda_gelu, CUDA, m) {
  m.impl("lambda_gelu", forward);
  m.impl("lambda_gelu_backward", backward);
  m.impl("lambda_gelu_backward_", backward_inplace);
}

}  // namespace lambda_gelu::cuda
