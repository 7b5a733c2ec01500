#include "ops/composite.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "ops/checks.h"
#include "ops/formulas.h"

namespace lambda_gelu {
namespace {

// (d input, d hardness) in the compute type.
std::tuple<at::Tensor, at::Tensor> gradients(const at::Tensor& grad_output, const at::Tensor& input,
                                             const at::Tensor& hardness, int64_t channel_dim,
                                             std::optional<double> temperature) {
  const Formulas f(input, hardness, channel_dim, temperature);
  const auto g = f.cast(grad_output);
  return {g * f.dx(), f.chain(f.sum(g * f.dlambda()))};
}

}  // namespace

at::Tensor forward_composite(const at::Tensor& input, const at::Tensor& hardness, int64_t channel_dim,
                             std::optional<double> temperature) {
  check_forward(input, hardness, channel_dim, temperature);
  return at::empty_like(input).copy_(Formulas(input, hardness, channel_dim, temperature).value());
}

std::tuple<at::Tensor, at::Tensor> backward_composite(const at::Tensor& grad_output, const at::Tensor& input,
                                                      const at::Tensor& hardness, int64_t channel_dim,
                                                      std::optional<double> temperature) {
  check_backward(grad_output, input, hardness, channel_dim, temperature);
  const auto [dx, dhardness] = gradients(grad_output, input, hardness, channel_dim, temperature);
  return {at::empty_like(input).copy_(dx), at::empty_like(hardness).copy_(dhardness)};
}

at::Tensor backward_inplace_composite(const at::Tensor& grad_output, const at::Tensor& input,
                                      const at::Tensor& hardness, int64_t channel_dim,
                                      std::optional<double> temperature) {
  check_backward_inplace(grad_output, input, hardness, channel_dim, temperature);
  const auto [dx, dhardness] = gradients(grad_output, input, hardness, channel_dim, temperature);
  grad_output.copy_(dx);
  return at::empty_like(hardness).copy_(dhardness);
}

TORCH_LIBRARY_IMPL(lambda_gelu, CompositeExplicitAutograd, m) {
  m.impl("lambda_gelu", forward_composite);
  m.impl("lambda_gelu_backward", backward_composite);
  m.impl("lambda_gelu_backward_", backward_inplace_composite);
}

// Nested tensors are no backend of the alias above; here its checks refuse them in words.
TORCH_LIBRARY_IMPL(lambda_gelu, NestedTensorCPU, m) {
  m.impl("lambda_gelu", forward_composite);
  m.impl("lambda_gelu_backward", backward_composite);
}
TORCH_LIBRARY_IMPL(lambda_gelu, NestedTensorCUDA, m) {
  m.impl("lambda_gelu", forward_composite);
  m.impl("lambda_gelu_backward", backward_composite);
}

}  // namespace lambda_gelu
