// The arithmetic of the kernels, one rounding per name: on the GPU the instruction, on the host a stand-in with the
// same result, so that the formulas can be tested without a GPU. Nothing here may be contracted or reassociated.
#pragma once

#include <math/host_device.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace lambda_gelu::kernels::cuda {

#if !defined(__CUDA_ARCH__)
/// On the host the hardware's approximations are rounded correctly; tests move them by this many units in the last
/// place. The PTX documentation bounds ex2.approx.ftz.f32 by 2 and rcp.approx.ftz.f32 by 1.
struct Perturbation {
  int ex2 = 0;
  int rcp = 0;
};
inline Perturbation& perturbation() {
  static thread_local Perturbation value;
  return value;
}

namespace host {
inline constexpr float kSmallestNormal = 1.17549435e-38f;
inline float flush(float v) {
  return std::fabs(v) < kSmallestNormal ? std::copysign(0.0f, v) : v;
}
inline float moved(float v, int units) {
  const bool ordinary = v > 0 && !std::isinf(v);
  return ordinary ? std::bit_cast<float>(std::bit_cast<std::uint32_t>(v) + static_cast<std::uint32_t>(units)) : v;
}
}  // namespace host
#endif

LAMBDA_GELU_HD float fma(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return __fmaf_rn(a, b, c);
#else
  return std::fma(a, b, c);
#endif
}
LAMBDA_GELU_HD double fma(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return __fma_rn(a, b, c);
#else
  return std::fma(a, b, c);
#endif
}

LAMBDA_GELU_HD float mul(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
LAMBDA_GELU_HD double mul(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

LAMBDA_GELU_HD float add(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}
LAMBDA_GELU_HD double add(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dadd_rn(a, b);
#else
  return a + b;
#endif
}

/// Subnormal operands and results are zero.
LAMBDA_GELU_HD float mul_flushed(float a, float b) {
#if defined(__CUDA_ARCH__)
  float product;
  asm("mul.rn.ftz.f32 %0, %1, %2;" : "=f"(product) : "f"(a), "f"(b));
  return product;
#else
  return host::flush(host::flush(a) * host::flush(b));
#endif
}

/// The smaller one; NaN if either is.
LAMBDA_GELU_HD float min_or_nan(float a, float b) {
#if defined(__CUDA_ARCH__)
  float least;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(least) : "f"(a), "f"(b));
  return least;
#else
  return a != a || b != b ? a + b : (a < b ? a : b);
#endif
}

/// max(x, -0), which keeps the sign of a zero; -0 for NaN.
LAMBDA_GELU_HD float relu(float x) {
#if defined(__CUDA_ARCH__)
  return fmaxf(x, -0.0f);  // +0 > -0 there
#else
  return x >= 0 ? x : -0.0f;
#endif
}
/// The same; NaN for NaN.
LAMBDA_GELU_HD double relu(double x) {
  return x < 0 ? -0.0 : x;
}

/// About 2^x; results below the normal range are zero.
LAMBDA_GELU_HD float approximate_exp2(float x) {
#if defined(__CUDA_ARCH__)
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
#else
  if (x == 0) return 1.0f;
  return host::moved(host::flush(static_cast<float>(std::exp2(static_cast<double>(x)))), perturbation().ex2);
#endif
}

/// About 1 / x.
LAMBDA_GELU_HD float approximate_reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  float reciprocal;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(reciprocal) : "f"(x));
  return reciprocal;
#else
  if (x == 1) return 1.0f;
  return host::moved(static_cast<float>(1.0 / static_cast<double>(x)), perturbation().rcp);
#endif
}

/// x >= 0, or NaN, or -0: 1 - value. Otherwise value. One compare and one predicated subtraction; a conditional
/// expression becomes a subtraction and a select.
LAMBDA_GELU_HD float reflected_unless_negative(float value, float x) {
#if defined(__CUDA_ARCH__)
  asm("{.reg .pred p; setp.geu.f32 p, %1, 0f00000000; @p sub.rn.f32 %0, 0f3f800000, %0;}" : "+f"(value) : "f"(x));
  return value;
#else
  return x < 0 ? value : 1.0f - value;
#endif
}
LAMBDA_GELU_HD double reflected_unless_negative(double value, double x) {
  return x < 0 ? value : add(1.0, -value);
}

LAMBDA_GELU_HD float from_bits(std::uint32_t bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  return std::bit_cast<float>(bits);
#endif
}
LAMBDA_GELU_HD std::uint32_t to_bits(float value) {
#if defined(__CUDA_ARCH__)
  return __float_as_uint(value);
#else
  return std::bit_cast<std::uint32_t>(value);
#endif
}
LAMBDA_GELU_HD double from_halves(std::uint32_t low, std::uint32_t high) {
#if defined(__CUDA_ARCH__)
  return __hiloint2double(static_cast<int>(high), static_cast<int>(low));
#else
  return std::bit_cast<double>(static_cast<std::uint64_t>(high) << 32 | low);
#endif
}
LAMBDA_GELU_HD std::uint32_t low_half(double value) {
#if defined(__CUDA_ARCH__)
  return static_cast<std::uint32_t>(__double2loint(value));
#else
  return static_cast<std::uint32_t>(std::bit_cast<std::uint64_t>(value));
#endif
}
LAMBDA_GELU_HD std::uint32_t high_half(double value) {
#if defined(__CUDA_ARCH__)
  return static_cast<std::uint32_t>(__double2hiint(value));
#else
  return static_cast<std::uint32_t>(std::bit_cast<std::uint64_t>(value) >> 32);
#endif
}

/// High word of a product: the quotient of n by d where `reciprocal` = ceil(2^32 / d) and n d < 2^32.
LAMBDA_GELU_HD std::uint32_t multiply_high(std::uint32_t n, std::uint32_t reciprocal) {
#if defined(__CUDA_ARCH__)
  return __umulhi(n, reciprocal);
#else
  return static_cast<std::uint32_t>(static_cast<std::uint64_t>(n) * reciprocal >> 32);
#endif
}
LAMBDA_GELU_HD std::uint64_t multiply_high(std::uint64_t a, std::uint64_t b) {
#if defined(__CUDA_ARCH__)
  return __umul64hi(a, b);
#else
  return static_cast<std::uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
#endif
}

}  // namespace lambda_gelu::kernels::cuda
