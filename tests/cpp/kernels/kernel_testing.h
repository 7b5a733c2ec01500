// What the kernel tests share: tensors of any dtype seen as doubles, independent references, and calls of the kernels.
#pragma once

#include <kernels/cpu/lambda_gelu.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace lambda_gelu::kernels::testing {

inline constexpr DType kAllDTypes[] = {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16};
const char* name_of(DType dtype);

/// The instruction sets of this machine, and "cuda": the CUDA kernels, run by the CPU.
std::vector<std::string> all_targets();

/// Selects one of all_targets() until the end of the scope, or "cuda" with the hardware's approximations off by as much
/// as the PTX documentation allows: "cuda_ex2_high_rcp_low" and so on.
class UseTarget {
 public:
  explicit UseTarget(const std::string& name);
  ~UseTarget();
  UseTarget(const UseTarget&) = delete;
  UseTarget& operator=(const UseTarget&) = delete;
};

/// Memory of one dtype; set() rounds to nearest, ties to even.
class Array {
 public:
  Array() = default;
  Array(DType dtype, std::int64_t size);
  static Array from(DType dtype, const std::vector<double>& values);
  /// Every bit pattern of a 16-bit type.
  static Array all_of(DType dtype);

  DType dtype() const { return dtype_; }
  std::int64_t size() const { return static_cast<std::int64_t>(bytes_.size()) / element_size(dtype_); }
  void* data() { return bytes_.data(); }
  const void* data() const { return bytes_.data(); }
  double operator[](std::int64_t i) const;
  void set(std::int64_t i, double value);
  std::vector<double> values() const;
  const std::vector<std::byte>& bytes() const { return bytes_; }
  /// Equal bit for bit; any NaN equals any NaN.
  bool same_bits(const Array& other) const;

 private:
  DType dtype_ = DType::kFloat32;
  std::vector<std::byte> bytes_;
};

/// Uniform and normal numbers that are the same on every machine.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 2654435761u + 88172645463325252u) {}
  std::uint64_t bits();
  double uniform(double low, double high);
  double normal();

 private:
  std::uint64_t state_;
};
Array random_normal(DType dtype, std::int64_t size, double scale, std::uint64_t seed);

/// The kernels of the target in use; units are run in order.
void run_forward(DType dtype, const Geometry& geometry, const Operand& input, void* y,
                 const std::vector<double>& hardness);
std::vector<double> run_backward(DType dtype, const Geometry& geometry, const Operand& grad_output,
                                 const Operand& input, void* dx, const std::vector<double>& hardness);

/// One lambda, dense operands.
Array forward(const Array& x, double hardness);
struct Gradients {
  Array dx;
  std::vector<double> dhardness;
};
Gradients backward(const Array& g, const Array& x, double hardness);
/// Any geometry, dense operands.
Array forward(const Geometry& geometry, const Array& x, const std::vector<double>& hardness);
Gradients backward(const Geometry& geometry, const Array& g, const Array& x, const std::vector<double>& hardness);

/// x Phi(lambda x), D(x) = Phi(z) + z phi(z) and x^2 phi(z), from the libraries' erfc and exp.
struct Reference {
  long double y, derivative, hardness_term;
};
Reference reference(double x, double hardness);  // 64-bit significand
struct QuadReference {
  double y, y_rest, derivative, derivative_rest, hardness_term;  // value = rounded + rest
};
QuadReference quad_reference(double x, double hardness);  // 113-bit significand

/// Where D vanishes: z = -0.7517915...
inline constexpr double kZeroOfDerivative = -0.751791524693564457457904947086;

}  // namespace lambda_gelu::kernels::testing
