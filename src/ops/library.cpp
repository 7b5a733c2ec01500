// Schemas of the operators, and the kernels that need no data: Meta.
#include <ATen/ops/empty_like.h>
#include <lambda_gelu/ops/gradient_reuse.h>
#include <torch/library.h>

#include <tuple>

#include "ops/checks.h"

namespace lambda_gelu {
namespace {

at::Tensor forward_meta(const at::Tensor& input, const at::Tensor& hardness, int64_t channel_dim,
                        std::optional<double> temperature) {
  check_forward(input, hardness, channel_dim, temperature);
  return at::empty_like(input);
}

std::tuple<at::Tensor, at::Tensor> backward_meta(const at::Tensor& grad_output, const at::Tensor& input,
                                                 const at::Tensor& hardness, int64_t channel_dim,
                                                 std::optional<double> temperature) {
  check_backward(grad_output, input, hardness, channel_dim, temperature);
  return {at::empty_like(input), at::empty_like(hardness)};
}

at::Tensor backward_inplace_meta(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& hardness,
                                 int64_t channel_dim, std::optional<double> temperature) {
  check_backward(grad_output, input, hardness, channel_dim, temperature);
  return at::empty_like(hardness);
}

}  // namespace

TORCH_LIBRARY(lambda_gelu, m) {
  m.def("lambda_gelu(Tensor input, Tensor hardness, int channel_dim=1, float? temperature=None) -> Tensor",
        {at::Tag::pt2_compliant_tag});
  m.def(
      "lambda_gelu_backward(Tensor grad_output, Tensor input, Tensor hardness, int channel_dim=1, "
      "float? temperature=None) -> (Tensor, Tensor)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "lambda_gelu_backward_(Tensor(a!) grad_output, Tensor input, Tensor hardness, int channel_dim=1, "
      "float? temperature=None) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def("set_gradient_reuse(bool enabled) -> ()", set_gradient_reuse);
  m.def("gradient_reuse_enabled() -> bool", gradient_reuse_enabled);
  m.def("gradient_reuse_count() -> int", gradient_reuse_count);
}

TORCH_LIBRARY_IMPL(lambda_gelu, Meta, m) {
  m.impl("lambda_gelu", forward_meta);
  m.impl("lambda_gelu_backward", backward_meta);
  m.impl("lambda_gelu_backward_", backward_inplace_meta);
}

}  // namespace lambda_gelu
