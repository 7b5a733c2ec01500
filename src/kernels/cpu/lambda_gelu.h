// CPU kernels of lambda-GELU on raw pointers: no torch, no threads of their own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace lambda_gelu::kernels {

enum class DType : std::uint8_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

/// The output (y, or dx) is dense; in memory order it is an (outer, channels, inner) array whose element
/// i belongs to channel (i / inner) % channels. One lambda for everything: channels = 1.
struct Geometry {
  std::int64_t outer = 1;
  std::int64_t channels = 1;
  std::int64_t inner = 0;
  std::int64_t size() const { return outer * channels * inner; }
};

/// An operand that is read. Dense in the order of the output unless `ndim` > 0; then element with output
/// coordinates (c_0, ..., c_{ndim-1}) over `sizes` (row-major order = the output's memory order, product = size())
/// lies at data + sum c_i * strides[i] elements. The arrays must outlive the kernel object.
struct Operand {
  const void* data = nullptr;
  int ndim = 0;
  const std::int64_t* sizes = nullptr;
  const std::int64_t* strides = nullptr;
};

/// y = x Phi(lambda x). The work is cut into units() pieces that depend on dtype and geometry only; run() may be
/// called for disjoint ranges from any number of threads.
class Forward {
 public:
  /// hardness: geometry.channels values, each finite and > 0 or else taken as it is (NaN gives NaN). `input` may be `y`.
  Forward(DType dtype, const Geometry& geometry, const Operand& input, void* y, const double* hardness);
  ~Forward();
  Forward(const Forward&) = delete;
  Forward& operator=(const Forward&) = delete;
  std::int64_t units() const;
  void run(std::int64_t begin, std::int64_t end) const;
};

/// dx = g (Phi(z) + z phi(z)) with z = lambda x, and per channel sum g x^2 phi(z).
/// `dx` may be the same memory as a dense `grad_output`.
class Backward {
 public:
  Backward(DType dtype, const Geometry& geometry, const Operand& grad_output, const Operand& input, void* dx, const double* hardness);
  ~Backward();
  Backward(const Backward&) = delete;
  Backward& operator=(const Backward&) = delete;
  std::int64_t units() const;
  void run(std::int64_t begin, std::int64_t end);
  /// After every unit has run: dhardness[c] = sum over channel c, geometry.channels values, summed in a fixed order.
  void sum(double* dhardness) const;
};

/// Instruction sets this machine can run, best first: of "avx512", "avx2", "scalar".
std::vector<std::string> supported_targets();
/// The one in use.
std::string active_target();
/// Forces one of supported_targets() (tests, benchmarks); an empty name restores the best. Throws std::invalid_argument.
void set_target(const std::string& name);

}  // namespace lambda_gelu::kernels
