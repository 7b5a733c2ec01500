// The public functions: typed calls through the dispatcher.
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/full.h>
#include <c10/util/Exception.h>
#include <lambda_gelu/ops/functional.h>

#include "ops/checks.h"
#include "ops/operators.h"

namespace lambda_gelu {
namespace {

using Forward = at::Tensor(const at::Tensor&, const at::Tensor&, int64_t, std::optional<double>);
using Backward = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t,
                                                    std::optional<double>);
using BackwardInplace = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t,
                                   std::optional<double>);

template <class Signature>
c10::TypedOperatorHandle<Signature> find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

}  // namespace

at::Tensor lambda_gelu(const at::Tensor& input, const at::Tensor& hardness, int64_t channel_dim,
                       std::optional<double> temperature) {
  static const auto op = find<Forward>("lambda_gelu::lambda_gelu");
  return op.call(input, hardness, channel_dim, temperature);
}

at::Tensor lambda_gelu(const at::Tensor& input, double hardness) {
  const auto dtype = input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  TORCH_CHECK_VALUE(is_hardness_of(hardness, dtype), "hardness must be finite and positive in ", dtype, ", got ",
                    hardness);
  return lambda_gelu(input, at::full({1}, hardness, input.options().dtype(dtype).layout(at::kStrided)));
}

at::Tensor softplus_lambda_gelu(const at::Tensor& input, const at::Tensor& raw_hardness, double temperature,
                                int64_t channel_dim) {
  return lambda_gelu(input, raw_hardness, channel_dim, temperature);
}

std::tuple<at::Tensor, at::Tensor> lambda_gelu_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                                        const at::Tensor& hardness, int64_t channel_dim,
                                                        std::optional<double> temperature) {
  static const auto op = find<Backward>("lambda_gelu::lambda_gelu_backward");
  return op.call(grad_output, input, hardness, channel_dim, temperature);
}

at::Tensor lambda_gelu_backward_(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& hardness,
                                 int64_t channel_dim, std::optional<double> temperature) {
  static const auto op = find<BackwardInplace>("lambda_gelu::lambda_gelu_backward_");
  return op.call(grad_output, input, hardness, channel_dim, temperature);
}

}  // namespace lambda_gelu
