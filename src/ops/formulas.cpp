#include "ops/formulas.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/clamp.h>
#include <ATen/ops/clamp_min.h>
#include <ATen/ops/erfc.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/sigmoid.h>
#include <ATen/ops/softplus.h>
#include <c10/core/ScalarType.h>
#include <c10/core/SymBool.h>

#include <numbers>

#include "ops/checks.h"

namespace lambda_gelu {
namespace {

constexpr double kInvSqrt2 = 1 / std::numbers::sqrt2;
constexpr double kInvSqrt2Pi = 0.39894228040143267794;
// phi(z) underflows, and Phi(z) with it, in float32 beyond 14.4 and in float64 beyond 38.6.
constexpr double kEndFloat = 15;
constexpr double kEndDouble = 39;
// Beyond it at::softplus returns its argument; log1p(exp(-40)) is below half an ULP of 40 in float64.
constexpr double kSoftplusThreshold = 40;

// s / temperature in float64 where the device has it: lambda is rounded once, to the value that the CPU kernels use.
at::Tensor scaled(const at::Tensor& raw_hardness, double temperature) {
  const auto type = raw_hardness.device().type();
  const bool has_double = type != at::kMPS && type != at::kXPU;
  return raw_hardness.to(has_double ? at::kDouble : at::kFloat) / temperature;
}

at::Tensor lambda_of(const at::Tensor& hardness, std::optional<double> temperature) {
  if (!temperature) return hardness;
  const auto lambda = at::softplus(scaled(hardness, *temperature), /*beta=*/1, kSoftplusThreshold) + 1;
  return hardness.scalar_type() == at::kDouble ? lambda : lambda.to(at::kFloat);
}

}  // namespace

Formulas::Formulas(const at::Tensor& input, const at::Tensor& hardness, int64_t channel_dim,
                   std::optional<double> temperature)
    : hardness_(hardness),
      temperature_(temperature),
      dtype_(c10::promoteTypes(c10::promoteTypes(input.scalar_type(), hardness.scalar_type()), at::kFloat)),
      shape_(input.dim(), c10::SymInt(1)) {
  const auto count = hardness.sym_size(0);
  if (!TORCH_GUARD_OR_FALSE(count.sym_eq(1))) shape_[wrap_channel_dim(channel_dim, input.dim())] = count;
  x_ = cast(input);
  lambda_ = spread(lambda_of(hardness, temperature));
  const auto end = (dtype_ == at::kDouble ? kEndDouble : kEndFloat) / lambda_.detach();
  clamped_ = at::clamp(x_, -end, end);
  z_ = clamped_ * lambda_;
  phi_ = at::exp(z_ * z_ * -0.5) * kInvSqrt2Pi;
}

at::Tensor Formulas::gate() const {
  return at::erfc(z_ * -kInvSqrt2) * 0.5;
}

at::Tensor Formulas::value() const {
  return at::clamp_min(x_, 0) - clamped_.abs() * (at::erfc(z_.abs() * kInvSqrt2) * 0.5);
}

at::Tensor Formulas::dx() const {
  return gate() + z_ * phi_;
}

at::Tensor Formulas::dlambda() const {
  return clamped_ * clamped_ * phi_;
}

at::Tensor Formulas::dxx() const {
  return lambda_ * phi_ * (2 - z_ * z_);
}

at::Tensor Formulas::dxlambda() const {
  return clamped_ * phi_ * (2 - z_ * z_);
}

at::Tensor Formulas::dlambda2() const {
  return -clamped_ * clamped_ * clamped_ * z_ * phi_;
}

at::Tensor Formulas::spread(const at::Tensor& per_hardness) const {
  return cast(per_hardness).reshape_symint(shape_);
}

at::Tensor Formulas::sum(const at::Tensor& elementwise) const {
  return elementwise.sum_to_size_symint(shape_).reshape_symint(hardness_.sym_sizes());
}

at::Tensor Formulas::chain(const at::Tensor& t) const {
  if (!temperature_) return t;
  return t * (at::sigmoid(scaled(hardness_, *temperature_)) / *temperature_);
}

at::Tensor Formulas::chain_second(const at::Tensor& t) const {
  if (!temperature_) return {};
  const auto sigma = at::sigmoid(scaled(hardness_, *temperature_));
  return t * (sigma * (1 - sigma) / (*temperature_ * *temperature_));
}

}  // namespace lambda_gelu
