// Differentiation of the two operators: nodes for reverse mode, tangents for forward mode. A torch::autograd::Node
// rather than a torch::autograd::Function, which neither torch.func nor forward mode can differentiate.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <lambda_gelu/ops/functional.h>
#include <torch/csrc/autograd/FunctionsManual.h>
#include <torch/csrc/autograd/VariableTypeUtils.h>
#include <torch/library.h>

#include <tuple>

#include "ops/autograd/node_compat.h"
#include "ops/autograd/saved_node.h"
#include "ops/formulas.h"
#include "ops/gradient_reuse.h"
#include "ops/operators.h"

namespace lambda_gelu {
namespace {

namespace ag = torch::autograd;
using ag::variable_list;

// Undefined stands for zero.
at::Tensor plus(const at::Tensor& a, const at::Tensor& b) {
  if (!a.defined()) return b;
  return b.defined() ? a + b : a;
}

at::Tensor times(const at::Tensor& a, const at::Tensor& b) {
  return a.defined() ? a * b : a;
}

at::Tensor cast(const at::Tensor& tensor, at::ScalarType dtype) {
  return tensor.defined() ? tensor.to(dtype) : tensor;
}

/// What follows from a change of the arguments of lambda_gelu_backward, other than grad_output, or from gradients that
/// arrive at its outputs; both are the second derivatives of f applied to (x-like, hardness-like) directions. The
/// second derivatives are symmetric, so one function serves reverse and forward mode.
struct SecondOrder {
  at::Tensor dx;         // g (f_xx u + f_xlambda v), in the compute type
  at::Tensor dhardness;  // sum of g (f_xlambda u + f_lambda2 v), chained to s, in the compute type
};

// u: input's shape; v: hardness's shape; either may be undefined.
SecondOrder second_order(const Formulas& f, const at::Tensor& grad_output, const at::Tensor& u, const at::Tensor& v,
                         bool needs_dx, bool needs_dhardness) {
  const auto g = f.cast(grad_output);
  const auto gu = u.defined() ? g * f.cast(u) : at::Tensor();
  const auto gv = v.defined() ? g * f.spread(f.chain(v)) : at::Tensor();
  SecondOrder result;
  if (needs_dx) {
    if (gu.defined()) result.dx = gu * f.dxx();
    if (gv.defined()) result.dx = plus(result.dx, gv * f.dxlambda());
  }
  if (needs_dhardness) {
    at::Tensor elementwise;
    if (gu.defined()) elementwise = gu * f.dxlambda();
    if (gv.defined()) elementwise = plus(elementwise, gv * f.dlambda2());
    if (elementwise.defined()) result.dhardness = f.chain(f.sum(elementwise));
    if (v.defined()) result.dhardness = plus(result.dhardness, times(f.chain_second(v), f.sum(g * f.dlambda())));
  }
  return result;
}

struct LambdaGeluBackward final : SavedNode<LambdaGeluBackward, 2> {
  std::string name() const override { return "LambdaGeluBackward"; }

  static variable_list compute(variable_list& grads, const Tensors& saved, const Options& options, const Needs& needs) {
    const auto& [input, hardness] = saved;
    variable_list result(2);
    if (!grads[0].defined()) return result;
    auto [dx, dhardness] =
        can_reuse(grads[0], input, hardness)
            ? backward_into_gradient(std::move(grads[0]), input, hardness, options)
            : lambda_gelu_backward(grads[0], input, hardness, options.channel_dim, options.temperature);
    if (needs[0]) result[0] = std::move(dx);
    if (needs[1]) result[1] = std::move(dhardness);
    return result;
  }

 private:
  static std::tuple<at::Tensor, at::Tensor> backward_into_gradient(at::Tensor&& grad, const at::Tensor& input,
                                                                   const at::Tensor& hardness, const Options& options) {
    auto dhardness = lambda_gelu_backward_(grad, input, hardness, options.channel_dim, options.temperature);
    count_reuse();
    return {std::move(grad), std::move(dhardness)};
  }
};

struct LambdaGeluBackwardBackward final : SavedNode<LambdaGeluBackwardBackward, 3> {
  std::string name() const override { return "LambdaGeluBackwardBackward"; }

  static variable_list compute(variable_list& grads, const Tensors& saved, const Options& options, const Needs& needs) {
    const auto& [grad_output, input, hardness] = saved;
    const auto& grad_dx = grads[0];
    const auto& grad_dhardness = grads[1];
    variable_list result(3);
    if (!grad_dx.defined() && !grad_dhardness.defined()) return result;

    const Formulas f(input, hardness, options.channel_dim, options.temperature);
    if (needs[0]) {
      at::Tensor dg;
      if (grad_dx.defined()) dg = f.cast(grad_dx) * f.dx();
      if (grad_dhardness.defined()) dg = plus(dg, f.spread(f.chain(grad_dhardness)) * f.dlambda());
      result[0] = cast(dg, grad_output.scalar_type());
    }
    const auto second = second_order(f, grad_output, grad_dx, grad_dhardness, needs[1], needs[2]);
    result[1] = cast(second.dx, input.scalar_type());
    result[2] = cast(second.dhardness, hardness.scalar_type());
    return result;
  }
};

bool has_tangent(const at::Tensor& tensor) {
  return tensor._fw_grad(/*level=*/0).defined();
}
const at::Tensor& tangent(const at::Tensor& tensor) {
  return tensor._fw_grad(/*level=*/0);
}
at::Tensor primal(const at::Tensor& tensor) {
  return tensor._fw_primal(/*level=*/0);
}

void set_tangent(const at::Tensor& tensor, const at::Tensor& value) {
  if (value.defined()) tensor._set_fw_grad(value, /*level=*/0, /*is_inplace_op=*/false);
}

void set_forward_tangent(const at::Tensor& output, const at::Tensor& input, const at::Tensor& hardness,
                         const Options& options) {
  const auto x = primal(input);
  const auto s = primal(hardness);
  at::Tensor result;
  if (has_tangent(input)) {
    result = std::get<0>(lambda_gelu_backward(tangent(input), x, s, options.channel_dim, options.temperature));
  }
  if (has_tangent(hardness)) {
    const Formulas f(x, s, options.channel_dim, options.temperature);
    const auto term = f.dlambda() * f.spread(f.chain(tangent(hardness)));
    result = plus(result, term.to(output.scalar_type()));
  }
  set_tangent(output, result);
}

void set_backward_tangents(const at::Tensor& dx, const at::Tensor& dhardness, const at::Tensor& grad_output,
                           const at::Tensor& input, const at::Tensor& hardness, const Options& options) {
  const auto x = primal(input);
  const auto s = primal(hardness);
  at::Tensor dx_tangent;
  at::Tensor dhardness_tangent;
  if (has_tangent(grad_output)) {
    std::tie(dx_tangent, dhardness_tangent) =
        lambda_gelu_backward(tangent(grad_output), x, s, options.channel_dim, options.temperature);
  }
  if (has_tangent(input) || has_tangent(hardness)) {
    const Formulas f(x, s, options.channel_dim, options.temperature);
    const auto second = second_order(f, primal(grad_output), tangent(input), tangent(hardness), true, true);
    dx_tangent = plus(dx_tangent, cast(second.dx, dx.scalar_type()));
    dhardness_tangent = plus(dhardness_tangent, cast(second.dhardness, dhardness.scalar_type()));
  }
  set_tangent(dx, dx_tangent);
  set_tangent(dhardness, dhardness_tangent);
}

// Here rather than with the other checks: jagged nested tensors are a Python subclass, which comes before those.
void refuse_nested(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK_TYPE(!tensor.is_nested(), name, " must be a dense tensor, got a nested tensor");
}

// The kernels of the Autograd key follow the order of ATen's generated code: node, redispatch, history, tangent.

at::Tensor forward_autograd(c10::DispatchKeySet keys, const at::Tensor& input, const at::Tensor& hardness,
                            int64_t channel_dim, std::optional<double> temperature) {
  using Signature = at::Tensor(const at::Tensor&, const at::Tensor&, int64_t, std::optional<double>);
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("lambda_gelu::lambda_gelu", "").typed<Signature>();
  refuse_nested(input, "input");
  refuse_nested(hardness, "hardness");
  const Options options{channel_dim, temperature};
  NodePtr<LambdaGeluBackward> node;
  if (ag::compute_requires_grad(input, hardness)) {
    node = make_node<LambdaGeluBackward>();
    node->record(options, input, hardness);
  }
  auto output = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return op.redispatch(keys & c10::after_autograd_keyset, input, hardness, channel_dim, temperature);
  }();
  if (node) ag::set_history(output, node);
  if (has_tangent(input) || has_tangent(hardness)) set_forward_tangent(output, input, hardness, options);
  return output;
}

std::tuple<at::Tensor, at::Tensor> backward_autograd(c10::DispatchKeySet keys, const at::Tensor& grad_output,
                                                     const at::Tensor& input, const at::Tensor& hardness,
                                                     int64_t channel_dim, std::optional<double> temperature) {
  using Signature = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t,
                                                       std::optional<double>);
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("lambda_gelu::lambda_gelu_backward", "").typed<Signature>();
  refuse_nested(grad_output, "grad_output");
  refuse_nested(input, "input");
  refuse_nested(hardness, "hardness");
  const Options options{channel_dim, temperature};
  NodePtr<LambdaGeluBackwardBackward> node;
  if (ag::compute_requires_grad(grad_output, input, hardness)) {
    node = make_node<LambdaGeluBackwardBackward>();
    node->record(options, grad_output, input, hardness);
  }
  auto result = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return op.redispatch(keys & c10::after_autograd_keyset, grad_output, input, hardness, channel_dim, temperature);
  }();
  auto& [dx, dhardness] = result;
  if (node) {
    ag::set_history(dx, node);
    ag::set_history(dhardness, node);
  }
  if (has_tangent(grad_output) || has_tangent(input) || has_tangent(hardness)) {
    set_backward_tangents(dx, dhardness, grad_output, input, hardness, options);
  }
  return result;
}

// The operator that writes into grad_output serves the node above, which uses it where nothing is to be recorded.
using BackwardInplace = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t,
                                   std::optional<double>);

const c10::TypedOperatorHandle<BackwardInplace>& backward_inplace_op() {
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("lambda_gelu::lambda_gelu_backward_", "").typed<BackwardInplace>();
  return op;
}

at::Tensor backward_inplace_autograd(c10::DispatchKeySet keys, const at::Tensor& grad_output, const at::Tensor& input,
                                     const at::Tensor& hardness, int64_t channel_dim,
                                     std::optional<double> temperature) {
  const bool tracked = ag::compute_requires_grad(grad_output, input, hardness) || has_tangent(grad_output) ||
                       has_tangent(input) || has_tangent(hardness);
  TORCH_CHECK(!tracked, "lambda_gelu_backward_ cannot be differentiated; lambda_gelu_backward can");
  const at::AutoDispatchBelowAutograd guard;
  return backward_inplace_op().redispatch(keys & c10::after_autograd_keyset, grad_output, input, hardness, channel_dim,
                                          temperature);
}

at::Tensor backward_inplace_versioned(c10::DispatchKeySet keys, const at::Tensor& grad_output, const at::Tensor& input,
                                      const at::Tensor& hardness, int64_t channel_dim,
                                      std::optional<double> temperature) {
  auto dhardness = [&] {
    const at::AutoDispatchBelowADInplaceOrView guard;
    return backward_inplace_op().redispatch(keys & c10::after_ADInplaceOrView_keyset, grad_output, input, hardness,
                                            channel_dim, temperature);
  }();
  ag::increment_version(grad_output);
  return dhardness;
}

}  // namespace

TORCH_LIBRARY_IMPL(lambda_gelu, Autograd, m) {
  m.impl("lambda_gelu", forward_autograd);
  m.impl("lambda_gelu_backward", backward_autograd);
  m.impl("lambda_gelu_backward_", backward_inplace_autograd);
}

TORCH_LIBRARY_IMPL(lambda_gelu, ADInplaceOrView, m) {
  m.impl("lambda_gelu_backward_", backward_inplace_versioned);
}

}  // namespace lambda_gelu
