#include "kernel_testing.h"

#include <kernels/cuda/lambda_gelu.h>
#include <kernels/cuda/portable.h>
#include <quadmath.h>

#include <cmath>
#include <cstring>
#include <numbers>
#include <stdexcept>

namespace lambda_gelu::kernels::testing {
namespace {

bool use_cuda = false;

void expect_success(const cuda::Status& status) {
  if (!status) throw std::runtime_error(status.message);
}

std::uint16_t float16_bits(double value) {
  const auto half = static_cast<_Float16>(value);
  std::uint16_t bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}

double from_float16(std::uint16_t bits) {
  _Float16 half;
  std::memcpy(&half, &bits, 2);
  return static_cast<double>(half);
}

double from_bfloat16(std::uint16_t bits) {
  const std::uint32_t wide = static_cast<std::uint32_t>(bits) << 16;
  float f;
  std::memcpy(&f, &wide, 4);
  return static_cast<double>(f);
}

std::uint16_t bfloat16_bits(double value) {
  if (std::isnan(value)) return 0x7fc0;
  const double magnitude = std::fabs(value);
  // Spacing of bfloat16 at this magnitude; scaling to it is exact, and nearbyint rounds ties to even.
  int exponent;
  std::frexp(magnitude, &exponent);
  const int step = std::max(exponent - 8, -133);
  const double rounded = std::isinf(value) ? magnitude : std::ldexp(std::nearbyint(std::ldexp(magnitude, -step)), step);
  const float f = static_cast<float>(rounded);  // exact, or infinity
  std::uint32_t bits;
  std::memcpy(&bits, &f, 4);
  return static_cast<std::uint16_t>(bits >> 16 | (std::signbit(value) ? 0x8000u : 0u));
}

}  // namespace

const char* name_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kFloat64:
      return "float64";
    case DType::kBFloat16:
      return "bfloat16";
    default:
      return "float16";
  }
}

Array::Array(DType dtype, std::int64_t size)
    : dtype_(dtype), bytes_(static_cast<std::size_t>(size * element_size(dtype))) {}

Array Array::from(DType dtype, const std::vector<double>& values) {
  Array a(dtype, static_cast<std::int64_t>(values.size()));
  for (std::int64_t i = 0; i < a.size(); ++i) a.set(i, values[static_cast<std::size_t>(i)]);
  return a;
}

Array Array::all_of(DType dtype) {
  Array a(dtype, 65536);
  for (std::uint32_t i = 0; i < 65536; ++i) {
    const auto bits = static_cast<std::uint16_t>(i);
    std::memcpy(a.bytes_.data() + 2 * i, &bits, 2);
  }
  return a;
}

double Array::operator[](std::int64_t i) const {
  const std::byte* p = bytes_.data() + i * element_size(dtype_);
  if (dtype_ == DType::kFloat64) {
    double value;
    std::memcpy(&value, p, 8);
    return value;
  }
  if (dtype_ == DType::kFloat32) {
    float value;
    std::memcpy(&value, p, 4);
    return static_cast<double>(value);
  }
  std::uint16_t bits;
  std::memcpy(&bits, p, 2);
  return dtype_ == DType::kBFloat16 ? from_bfloat16(bits) : from_float16(bits);
}

void Array::set(std::int64_t i, double value) {
  std::byte* p = bytes_.data() + i * element_size(dtype_);
  if (dtype_ == DType::kFloat64) {
    std::memcpy(p, &value, 8);
  } else if (dtype_ == DType::kFloat32) {
    const float rounded = static_cast<float>(value);
    std::memcpy(p, &rounded, 4);
  } else {
    const std::uint16_t bits = dtype_ == DType::kBFloat16 ? bfloat16_bits(value) : float16_bits(value);
    std::memcpy(p, &bits, 2);
  }
}

std::vector<double> Array::values() const {
  std::vector<double> r(static_cast<std::size_t>(size()));
  for (std::int64_t i = 0; i < size(); ++i) r[static_cast<std::size_t>(i)] = (*this)[i];
  return r;
}

bool Array::same_bits(const Array& other) const {
  if (bytes_ == other.bytes_) return true;
  if (dtype_ != other.dtype_ || size() != other.size()) return false;
  const auto bytes = static_cast<std::size_t>(element_size(dtype_));
  for (std::int64_t i = 0; i < size(); ++i) {
    const std::size_t at = static_cast<std::size_t>(i) * bytes;
    if (std::memcmp(bytes_.data() + at, other.bytes_.data() + at, bytes) == 0) continue;
    if (!std::isnan((*this)[i]) || !std::isnan(other[i])) return false;
  }
  return true;
}

std::uint64_t Random::bits() {
  state_ ^= state_ << 13;
  state_ ^= state_ >> 7;
  state_ ^= state_ << 17;
  return state_ * 0x9E3779B97F4A7C15ull;
}

double Random::uniform(double low, double high) {
  return low + (high - low) * (static_cast<double>(bits() >> 11) * 0x1p-53);
}

double Random::normal() {
  const double radius = std::sqrt(-2 * std::log(uniform(0, 1) + 0x1p-60));
  return radius * std::cos(uniform(0, 2 * std::numbers::pi));
}

Array random_normal(DType dtype, std::int64_t size, double scale, std::uint64_t seed) {
  Random random(seed);
  Array a(dtype, size);
  for (std::int64_t i = 0; i < size; ++i) a.set(i, scale * random.normal());
  return a;
}

std::vector<std::string> all_targets() {
  std::vector<std::string> targets = supported_targets();
  targets.push_back("cuda");
  return targets;
}

UseTarget::UseTarget(const std::string& name) {
  use_cuda = name.starts_with("cuda");
  if (!use_cuda) set_target(name);
  const auto units = [&](const std::string& instruction, int most) {
    if (name.find(instruction + "_high") != std::string::npos) return most;
    return name.find(instruction + "_low") != std::string::npos ? -most : 0;
  };
  cuda::perturbation() = {units("ex2", 2), units("rcp", 1)};
}

UseTarget::~UseTarget() {
  use_cuda = false;
  cuda::perturbation() = {};
  set_target("");
}

void run_forward(DType dtype, const Geometry& geometry, const Operand& input, void* y,
                 const std::vector<double>& hardness) {
  if (use_cuda) {
    expect_success(cuda::forward(dtype, geometry, input, y, {hardness.data(), DType::kFloat64}, nullptr));
    return;
  }
  const Forward kernel(dtype, geometry, input, y, hardness.data());
  kernel.run(0, kernel.units());
}

std::vector<double> run_backward(DType dtype, const Geometry& geometry, const Operand& grad_output,
                                 const Operand& input, void* dx, const std::vector<double>& hardness) {
  std::vector<double> dhardness(hardness.size());
  if (use_cuda) {
    std::vector<double> workspace(static_cast<std::size_t>(cuda::backward_workspace(dtype, geometry)) / sizeof(double));
    expect_success(cuda::backward(dtype, geometry, grad_output, input, dx, {hardness.data(), DType::kFloat64},
                                  dhardness.data(), workspace.data(), nullptr));
    return dhardness;
  }
  Backward kernel(dtype, geometry, grad_output, input, dx, hardness.data());
  kernel.run(0, kernel.units());
  kernel.sum(dhardness.data());
  return dhardness;
}

Array forward(const Geometry& geometry, const Array& x, const std::vector<double>& hardness) {
  Array y(x.dtype(), x.size());
  run_forward(x.dtype(), geometry, {.data = x.data()}, y.data(), hardness);
  return y;
}

Gradients backward(const Geometry& geometry, const Array& g, const Array& x, const std::vector<double>& hardness) {
  Gradients r{Array(x.dtype(), x.size()), {}};
  r.dhardness = run_backward(x.dtype(), geometry, {.data = g.data()}, {.data = x.data()}, r.dx.data(), hardness);
  return r;
}

Array forward(const Array& x, double hardness) {
  return forward(Geometry{1, 1, x.size()}, x, {hardness});
}

Gradients backward(const Array& g, const Array& x, double hardness) {
  return backward(Geometry{1, 1, x.size()}, g, x, {hardness});
}

Reference reference(double x, double hardness) {
  const long double z = static_cast<long double>(hardness) * x;
  const long double cdf = 0.5L * erfcl(-z / std::numbers::sqrt2_v<long double>);
  const long double pdf =
      std::numbers::inv_sqrtpi_v<long double> / std::numbers::sqrt2_v<long double> * expl(-0.5L * z * z);
  return {x * cdf, cdf + z * pdf, static_cast<long double>(x) * x * pdf};
}

QuadReference quad_reference(double x, double hardness) {
  // No literals: their suffix is an extension of the language.
  static const __float128 inv_sqrt2 = strtoflt128("0.70710678118654752440084436210484903928483593768847", nullptr);
  static const __float128 inv_sqrt2pi = strtoflt128("0.39894228040143267793994605993438186847585863116493", nullptr);
  const __float128 half = 0.5;
  const __float128 z = static_cast<__float128>(hardness) * x;
  const __float128 cdf = half * erfcq(-z * inv_sqrt2);
  const __float128 pdf = inv_sqrt2pi * expq(-half * z * z);
  const __float128 y = x * cdf;
  const __float128 derivative = cdf + z * pdf;
  const auto y_rounded = static_cast<double>(y);
  const auto derivative_rounded = static_cast<double>(derivative);
  return {y_rounded, static_cast<double>(y - y_rounded), derivative_rounded,
          static_cast<double>(derivative - derivative_rounded), static_cast<double>(x * pdf * x)};
}

}  // namespace lambda_gelu::kernels::testing
