// What the tests of the CUDA kernels share: calls of the interface on the emulator, and tensors of any size and
// geometry whose every result is known.
#pragma once

#include <gtest/gtest.h>
#include <kernels/cuda/lambda_gelu.h>
#include <simt.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "../guarded_buffer.h"
#include "../kernel_testing.h"

namespace lambda_gelu::kernels::cuda::testing {

using kernels::testing::Array;
using kernels::testing::GuardedBuffer;
using kernels::testing::kAllDTypes;
using kernels::testing::name_of;
using kernels::testing::Random;
using kernels::testing::random_normal;

/// For SCOPED_TRACE.
std::string describe(DType dtype, const Geometry& geometry);

/// Values around 2, all different.
std::vector<double> some_hardness(std::int64_t channels);

/// lambda as an argument, in any dtype and with any stride; the gradient has the same dtype and is dense.
struct HardnessArray {
  Array values;
  std::int64_t stride = 1;
  double temperature = 0;

  HardnessArray(DType dtype, const std::vector<double>& hardness, std::int64_t step = 1, double tau = 0);
  Hardness argument() const { return {values.data(), values.dtype(), stride, temperature}; }
};

struct Backward {
  Array dx;
  Array dhardness;
};

/// The calls, with an assertion that they succeed. The workspace is exactly as large as asked for and full of NaN.
Array forward(const Geometry& geometry, DType dtype, const Operand& input, const HardnessArray& hardness);
Backward backward(const Geometry& geometry, DType dtype, const Operand& grad_output, const Operand& input,
                  const HardnessArray& hardness);
inline Array forward(const Geometry& geometry, const Array& x, const HardnessArray& hardness) {
  return forward(geometry, x.dtype(), {.data = x.data()}, hardness);
}
inline Backward backward(const Geometry& geometry, const Array& g, const Array& x, const HardnessArray& hardness) {
  return backward(geometry, x.dtype(), {.data = g.data()}, {.data = x.data()}, hardness);
}
inline bool same_bits(const Backward& a, const Backward& b) {
  return a.dx.same_bits(b.dx) && a.dhardness.same_bits(b.dhardness);
}

/// A tensor that repeats kLength inputs, with lambda of channel c = hardness(c). What the kernels make of each of them
/// is known from calls with one lambda and few elements, which other tests compare with the references.
class Pattern {
 public:
  static constexpr std::int64_t kLength = 1021;  ///< prime: no multiple of it is near a cut
  static constexpr std::int64_t kHardnesses = 5;

  explicit Pattern(DType dtype);
  DType dtype() const { return dtype_; }
  static double hardness(std::int64_t channel);
  static HardnessArray hardness_array(std::int64_t channels);

  /// Elements [begin, end) of the tensor at `tensor`.
  void fill_x(void* tensor, std::int64_t begin, std::int64_t end) const { fill(x_, tensor, begin, end); }
  void fill_g(void* tensor, std::int64_t begin, std::int64_t end) const { fill(g_, tensor, begin, end); }
  /// How many elements of [begin, end) are not what they should be.
  std::int64_t wrong_x(const void* tensor, std::int64_t begin, std::int64_t end) const;
  std::int64_t wrong_y(const Geometry& geometry, const void* tensor, std::int64_t begin, std::int64_t end) const;
  std::int64_t wrong_dx(const Geometry& geometry, const void* tensor, std::int64_t begin, std::int64_t end) const;
  /// Adds the terms of [begin, end) and their magnitudes to the channels' sums.
  struct Sum {
    long double value = 0, magnitude = 0;
  };
  void add_terms(const Geometry& geometry, std::int64_t begin, std::int64_t end, std::vector<Sum>& sums) const;
  /// How much of the magnitude the rounding of a sum may be.
  double rounding() const { return dtype_ == DType::kFloat64 ? 1e-15 : 2e-7; }

 private:
  void fill(const Array& values, void* tensor, std::int64_t begin, std::int64_t end) const;
  std::int64_t wrong(const Geometry& geometry, const std::vector<Array>& expected, const void* tensor,
                     std::int64_t begin, std::int64_t end) const;

  DType dtype_;
  Array x_, g_;
  std::vector<Array> y_, dx_;               // of every hardness
  std::vector<std::vector<double>> terms_;  // g x^2 phi(z), as the kernels form them
};

/// Memory that is there only where it is touched.
class SparseMemory {
 public:
  explicit SparseMemory(std::int64_t bytes);
  ~SparseMemory();
  SparseMemory(const SparseMemory&) = delete;
  SparseMemory& operator=(const SparseMemory&) = delete;
  char* data() const { return data_; }

 private:
  char* data_;
  std::size_t bytes_;
};

}  // namespace lambda_gelu::kernels::cuda::testing
