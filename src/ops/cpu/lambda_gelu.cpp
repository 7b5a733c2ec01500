// The operators on the CPU: tensors in, kernels on every thread of the intra-op pool.
#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <tuple>

#include "kernels/cpu/lambda_gelu.h"
#include "ops/checks.h"
#include "ops/cpu/hardness.h"
#include "ops/cpu/run_units.h"
#include "ops/layout.h"

namespace lambda_gelu::cpu {
namespace {

// With the strides of at::empty_like(input), and without the dispatcher where that is possible.
at::Tensor uninitialized_like(const at::Tensor& input) {
  if (!input.is_non_overlapping_and_dense()) return at::empty_like(input);
  return at::Tensor(at::detail::empty_strided_cpu(input.sizes(), input.strides(), input.scalar_type()));
}

at::Tensor forward(const at::Tensor& input, const at::Tensor& hardness, int64_t channel_dim,
                   std::optional<double> temperature) {
  check_forward(input, hardness, channel_dim, temperature);
  auto output = uninitialized_like(input);
  if (output.numel() == 0) return output;

  const auto order = memory_order(output);
  const auto lambda = hardness_values(hardness, temperature);
  const StridedOperand x(input, output, order);
  const kernels::Forward kernel(kernel_dtype(input.scalar_type()), make_geometry(output, order, hardness, channel_dim),
                                x.operand(), output.mutable_data_ptr(), lambda.data());
  run_units(kernel, output.numel());
  return output;
}

// Writes d input into `grad_input`, which may be grad_output itself, and returns d hardness.
at::Tensor backward_into(const at::Tensor& grad_input, const at::Tensor& grad_output, const at::Tensor& input,
                         const at::Tensor& hardness, int64_t channel_dim, std::optional<double> temperature) {
  if (grad_input.numel() == 0) return at::zeros_like(hardness);

  const auto order = memory_order(grad_input);
  const auto lambda = hardness_values(hardness, temperature);
  // Before the operands are read: it detaches a lazily copied grad_output from its source.
  auto* const dx = grad_input.mutable_data_ptr();
  const StridedOperand g(grad_output, grad_input, order);
  const StridedOperand x(input, grad_input, order);
  kernels::Backward kernel(kernel_dtype(input.scalar_type()), make_geometry(grad_input, order, hardness, channel_dim),
                           g.operand(), x.operand(), dx, lambda.data());
  run_units(kernel, grad_input.numel());

  Values gradient(hardness.numel());
  kernel.sum(gradient.data());
  auto grad_hardness = uninitialized_like(hardness);
  store_gradient(gradient, hardness, temperature, grad_hardness);
  return grad_hardness;
}

std::tuple<at::Tensor, at::Tensor> backward(const at::Tensor& grad_output, const at::Tensor& input,
                                            const at::Tensor& hardness, int64_t channel_dim,
                                            std::optional<double> temperature) {
  check_backward(grad_output, input, hardness, channel_dim, temperature);
  auto grad_input = uninitialized_like(input);
  auto grad_hardness = backward_into(grad_input, grad_output, input, hardness, channel_dim, temperature);
  return {std::move(grad_input), std::move(grad_hardness)};
}

at::Tensor backward_inplace(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& hardness,
                            int64_t channel_dim, std::optional<double> temperature) {
  check_backward_inplace(grad_output, input, hardness, channel_dim, temperature);
  return backward_into(grad_output, grad_output, input, hardness, channel_dim, temperature);
}

}  // namespace

TORCH_LIBRARY_IMPL(lambda_gelu, CPU, m) {
  m.impl("lambda_gelu", forward);
  m.impl("lambda_gelu_backward", backward);
  m.impl("lambda_gelu_backward_", backward_inplace);
}

}  // namespace lambda_gelu::cpu
