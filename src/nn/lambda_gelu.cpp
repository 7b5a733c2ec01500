#include <lambda_gelu/math/hardness.h>
#include <lambda_gelu/nn/lambda_gelu.h>
#include <lambda_gelu/ops/functional.h>

#include <algorithm>
#include <cmath>
#include <iomanip>
#include <limits>
#include <sstream>
#include <string>

#include "nn/site_observer.h"

namespace lambda_gelu {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

bool is_precise(at::ScalarType dtype) {
  return dtype == at::kFloat || dtype == at::kDouble;
}

at::ScalarType precise(at::ScalarType dtype) {
  return dtype == at::kDouble ? at::kDouble : at::kFloat;
}

void check_temperature(double temperature) {
  TORCH_CHECK_VALUE(std::isfinite(temperature) && temperature > 0, "temperature must be finite and positive, got ",
                    temperature);
}

// Values for a message.
std::string listed(const at::Tensor& tensor) {
  const auto values = tensor.to(at::kCPU, at::kDouble).contiguous();
  constexpr int64_t kMost = 16;
  std::ostringstream text;
  for (int64_t i = 0; i < std::min(values.numel(), kMost); ++i) {
    text << (i ? ", " : "") << values.const_data_ptr<double>()[i];
  }
  if (values.numel() > kMost) text << ", ... (" << values.numel() << " values)";
  return text.str();
}

bool all_finite_and_positive(const at::Tensor& tensor) {
  return at::logical_and(at::isfinite(tensor), tensor > 0).all().item<bool>();
}

// lambda in float64, differentiable. The value is the math floor's to the last bit, as in the op's CPU kernels: ATen's
// vectorised exp and log1p may differ from it by an ulp.
at::Tensor double_from_raw(const at::Tensor& raw, double temperature) {
  const auto scaled = raw.to(at::kDouble) / temperature;
  const auto hardness = 1 + at::logaddexp(scaled, at::zeros_like(scaled));
  if (!raw.is_cpu()) return hardness;
  const auto s = raw.detach().to(at::kDouble).contiguous();
  const auto exact = hardness.detach().clone();
  for (int64_t i = 0; i < s.numel(); ++i) {
    const double value = s.const_data_ptr<double>()[i];
    if (std::isfinite(value)) exact.mutable_data_ptr<double>()[i] = hardness_from_raw(value, temperature);
  }
  // Two neighbours differ exactly, so the sum is `exact`; its gradient is that of `hardness`.
  return at::where(at::isfinite(exact), hardness + (exact - hardness.detach()), hardness);
}

// lambda as the op rounds it.
at::Tensor learned_hardness(const at::Tensor& raw, double temperature) {
  return double_from_raw(raw, temperature).to(precise(raw.scalar_type()));
}

}  // namespace

LambdaGELUImpl::LambdaGELUImpl(const LambdaGELUOptions& options) : options_(options) {
  TORCH_CHECK_VALUE(options_.num_parameters() >= 1, "num_parameters must be at least 1, got ",
                    options_.num_parameters());
  check_temperature(options_.temperature());
  LambdaGELUImpl::reset();
}

void LambdaGELUImpl::reset() {
  const auto options = at::dtype(precise(c10::get_default_dtype_as_scalartype()));
  raw_hardness = register_parameter("raw_hardness", at::empty({num_parameters()}, options));
  hardness_override = register_buffer("hardness_override", at::empty({num_parameters()}, options));
  reset_parameters();
}

void LambdaGELUImpl::reset_parameters() {
  at::NoGradGuard no_grad;
  raw_hardness.zero_();
  clear_override();
  substituted_ = false;
  if (options_.init_hardness()) set_hardness(*options_.init_hardness());
}

at::Tensor LambdaGELUImpl::forward(const at::Tensor& input) {
  for (const auto& observer : observers_) observer->add(input);
  if (substituted_ || relu_guards_ > 0) return at::relu(input);
  if (!frozen_) return softplus_lambda_gelu(input, raw_hardness, temperature(), channel_dim());
  if (!at::GradMode::is_enabled() || !raw_hardness.requires_grad()) {
    return lambda_gelu(input, hardness_override, channel_dim());
  }
  // Every override is positive: this is the override, with a zero gradient for raw_hardness.
  return lambda_gelu(input, at::where(hardness_override > 0, hardness_override, raw_hardness), channel_dim());
}

at::Tensor LambdaGELUImpl::hardness() const {
  if (frozen_) return hardness_override.detach().clone();
  return learned_hardness(raw_hardness, temperature());
}

void LambdaGELUImpl::set_hardness(double value) {
  set_hardness(at::full({1}, value, at::dtype(at::kDouble)));
}

void LambdaGELUImpl::set_hardness(const at::Tensor& value) {
  at::NoGradGuard no_grad;
  const auto hardness = checked_hardness(value);
  if (!frozen_) {
    raw_hardness.copy_(checked_raw(hardness));
    return;
  }
  const auto rounded = hardness.to(hardness_override.scalar_type());
  TORCH_CHECK_VALUE(all_finite_and_positive(rounded), "hardness must be finite and positive in ",
                    hardness_override.scalar_type(), ", got ", listed(hardness));
  hardness_override.copy_(rounded);
}

void LambdaGELUImpl::freeze_hardness() {
  if (frozen_) return;
  at::NoGradGuard no_grad;
  const auto present = hardness();
  TORCH_CHECK_VALUE(present.is_meta() || at::isfinite(present).all().item<bool>(),
                    "hardness must be finite to be frozen, got ", listed(present));
  hardness_override.copy_(present);
  frozen_ = true;
}

void LambdaGELUImpl::unfreeze_hardness() {
  if (!frozen_) return;
  at::NoGradGuard no_grad;
  // A lambda that freezing took from s and nobody has changed since gives s back to the last bit, also one that is 1
  // because s is far below 0.
  const auto unchanged = learned_hardness(raw_hardness, temperature()) == hardness_override;
  const auto changed = hardness_override.masked_fill(unchanged, 2.0).to(at::kCPU, at::kDouble);
  const auto raw = checked_raw(changed).to(raw_hardness.options());
  raw_hardness.copy_(at::where(unchanged, raw_hardness, raw));
  clear_override();
}

void LambdaGELUImpl::pretty_print(std::ostream& stream) const {
  at::NoGradGuard no_grad;
  const auto values = hardness();
  std::ostringstream text;  // keeps the precision of `stream` as it is
  text << std::setprecision(4) << "lambda_gelu::LambdaGELU(num_parameters=" << num_parameters()
       << ", hardness=" << values.min().item<double>();
  if (num_parameters() > 1) text << ".." << values.max().item<double>();
  text << ", temperature=" << temperature();
  if (num_parameters() > 1) text << ", channel_dim=" << channel_dim();
  text << (frozen_ ? ", frozen" : "") << (substituted_ ? ", substituted by ReLU" : "") << ")";
  stream << text.str();
}

std::shared_ptr<torch::nn::Module> LambdaGELUImpl::clone(const std::optional<at::Device>& device) const {
  auto copy = Cloneable::clone(device);
  auto& site = *copy->as<LambdaGELUImpl>();
  site.frozen_ = frozen_;
  site.substituted_ = substituted_;
  site.relu_guards_ = 0;
  site.observers_.clear();
  return copy;
}

void LambdaGELUImpl::save(torch::serialize::OutputArchive& archive) const {
  Cloneable::save(archive);
  archive.write("temperature", c10::IValue(temperature()));
  archive.write("substituted", c10::IValue(substituted_));
}

void LambdaGELUImpl::load(torch::serialize::InputArchive& archive) {
  at::Tensor raw, override;
  c10::IValue temperature, substituted;
  archive.read("raw_hardness", raw);
  archive.read("hardness_override", override, /*is_buffer=*/true);
  archive.read("temperature", temperature);
  archive.read("substituted", substituted);
  for (const auto& [name, tensor] : {std::pair("raw_hardness", raw), std::pair("hardness_override", override)}) {
    TORCH_CHECK_VALUE(tensor.sizes() == raw_hardness.sizes(), name, " must have shape ", raw_hardness.sizes(),
                      " (num_parameters), the checkpoint has ", tensor.sizes());
  }
  check_temperature(temperature.toDouble());
  const bool is_frozen = all_finite_and_positive(override);
  TORCH_CHECK_VALUE(is_frozen || override.isnan().all().item<bool>(),
                    "hardness_override must be NaN (learned) or finite and positive (frozen), the checkpoint has ",
                    listed(override));
  const bool is_substituted = substituted.toBool();
  // As torch::nn::Module does: on this module's device, in the checkpoint's dtype.
  raw_hardness.set_data(raw.to(raw_hardness.device()));
  hardness_override.set_data(override.to(hardness_override.device()));
  options_.temperature(temperature.toDouble());
  frozen_ = is_frozen;
  substituted_ = is_substituted;
}

void LambdaGELUImpl::to(at::Device device, at::ScalarType dtype, bool non_blocking) {
  const auto raw = raw_hardness.detach();
  const auto override = hardness_override.detach();
  Cloneable::to(device, dtype, non_blocking);
  if (is_precise(dtype)) return;
  if (is_precise(raw.scalar_type())) raw_hardness.set_data(raw.to(device, non_blocking));
  hardness_override.set_data(override.to(device, non_blocking));
}

void LambdaGELUImpl::to(at::ScalarType dtype, bool non_blocking) {
  to(raw_hardness.device(), dtype, non_blocking);
}

void LambdaGELUImpl::to(at::Device device, bool non_blocking) {
  Cloneable::to(device, non_blocking);
}

// lambda in float64 on the CPU, one value for every parameter.
at::Tensor LambdaGELUImpl::checked_hardness(const at::Tensor& value) const {
  TORCH_CHECK_TYPE(value.defined() && !value.is_complex(), "hardness must be a real tensor, got ",
                   value.defined() ? c10::toString(value.scalar_type()) : "an undefined one");
  TORCH_CHECK_VALUE(value.numel() == 1 || value.numel() == num_parameters(), "hardness must have 1 or ",
                    num_parameters(), " elements, got ", value.numel());
  const auto hardness = value.detach().to(at::kCPU, at::kDouble).flatten();
  TORCH_CHECK_VALUE(all_finite_and_positive(hardness), "hardness must be finite and positive, got ", listed(hardness));
  return hardness.expand({num_parameters()}).contiguous();
}

// s in float64 on the CPU for a lambda of checked_hardness().
at::Tensor LambdaGELUImpl::checked_raw(const at::Tensor& hardness) const {
  TORCH_CHECK_VALUE((hardness > 1).all().item<bool>(),
                    "a learned hardness must be above 1, since lambda = 1 + softplus(s / temperature), got ",
                    listed(hardness), "; a frozen one (freeze_hardness) may be any positive number");
  const auto raw = at::empty_like(hardness);
  for (int64_t i = 0; i < raw.numel(); ++i) {
    raw.mutable_data_ptr<double>()[i] = raw_from_hardness(hardness.const_data_ptr<double>()[i], temperature());
  }
  TORCH_CHECK_VALUE(at::isfinite(raw.to(raw_hardness.scalar_type())).all().item<bool>(),
                    "hardness must be in the range of ", raw_hardness.scalar_type(), ", got ", listed(hardness));
  return raw;
}

void LambdaGELUImpl::clear_override() {
  hardness_override.fill_(kNaN);
  frozen_ = false;
}

}  // namespace lambda_gelu
