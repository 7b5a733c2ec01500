#include "ops/cpu/hardness.h"

#include <ATen/Dispatch.h>
#include <lambda_gelu/math/hardness.h>

#include <cmath>
#include <limits>

namespace lambda_gelu::cpu {
namespace {

Values read(const at::Tensor& tensor) {
  Values values(tensor.numel());
  const auto stride = tensor.stride(0);
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, tensor.scalar_type(), "hardness", [&] {
    const auto* data = tensor.const_data_ptr<scalar_t>();
    for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<double>(data[static_cast<int64_t>(i) * stride]);
  });
  return values;
}

// The op does not check values, but the functions of the math floor do: non-finite s takes its limit.
double hardness_of(double raw, double temperature) {
  if (std::isfinite(raw)) return hardness_from_raw(raw, temperature);
  return raw < 0 ? 1.0 : raw;
}

double derivative_at(double raw, double temperature) {
  if (std::isfinite(raw)) return hardness_derivative(raw, temperature);
  if (std::isnan(raw)) return raw;
  return raw < 0 ? 0.0 : 1 / temperature;
}

}  // namespace

Values hardness_values(const at::Tensor& hardness, std::optional<double> temperature) {
  auto values = read(hardness);
  if (!temperature) return values;
  const bool round = hardness.scalar_type() != at::kDouble;
  for (auto& value : values) {
    value = hardness_of(value, *temperature);
    if (round) value = static_cast<float>(value);
  }
  return values;
}

void store_gradient(Values& gradient, const at::Tensor& hardness, std::optional<double> temperature,
                    const at::Tensor& result) {
  if (temperature) {
    const auto raw = read(hardness);
    for (size_t i = 0; i < raw.size(); ++i) gradient[i] *= derivative_at(raw[i], *temperature);
  }
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kBFloat16, at::kHalf, result.scalar_type(), "d hardness", [&] {
    auto* data = result.mutable_data_ptr<scalar_t>();
    for (size_t i = 0; i < gradient.size(); ++i) data[i] = static_cast<scalar_t>(gradient[i]);
  });
}

}  // namespace lambda_gelu::cpu
