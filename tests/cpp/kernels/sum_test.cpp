// The sum over a large tensor: its error does not grow with the number of elements.
#include <gtest/gtest.h>
#include <kernels/gate.h>

#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "kernel_testing.h"

namespace lambda_gelu::kernels::testing {
namespace {

class Sum : public ::testing::TestWithParam<std::string> {};

// The same 65,536 terms of one sign again and again: 16 lanes of float over everything would stagnate.
TEST_P(Sum, ErrorDoesNotGrowWithSize) {
  const UseTarget target(GetParam());
  constexpr std::int64_t pattern = 65536;
  constexpr std::int64_t size = std::int64_t{1} << 26;
  constexpr double hardness = 1.3;
  const Array x = random_normal(DType::kFloat32, pattern, 1.0, 11);
  long double expected = 0;
  for (std::int64_t i = 0; i < pattern; ++i) expected += reference(x[i], hardness).hardness_term;
  expected *= static_cast<long double>(size / pattern);

  // Zero strides repeat the operands, so that only dx takes memory.
  const std::int64_t sizes[] = {size / pattern, pattern};
  const std::int64_t x_strides[] = {0, 1};
  const std::int64_t g_strides[] = {0, 0};
  const Array one = Array::from(DType::kFloat32, {1.0});
  const std::unique_ptr<float[]> dx(new float[size]);
  const double sum = run_backward(DType::kFloat32, {1, 1, size}, {one.data(), 2, sizes, g_strides},
                                  {x.data(), 2, sizes, x_strides}, dx.get(), {hardness})[0];
  EXPECT_NEAR(sum, static_cast<double>(expected), 1e-7 * static_cast<double>(expected));
}

TEST_P(Sum, ColumnsOverManyRows) {
  const UseTarget target(GetParam());
  constexpr std::int64_t rows = 100000;
  constexpr std::int64_t columns = 37;
  const std::vector<double> hardness(columns, 1.3);
  const Array x = random_normal(DType::kFloat32, rows * columns, 1.0, 12);
  const Array g = Array::from(DType::kFloat32, std::vector<double>(rows * columns, 1.0));
  const std::vector<double> sums = backward({rows, columns, 1}, g, x, hardness).dhardness;
  for (std::int64_t c = 0; c < columns; ++c) {
    long double expected = 0;
    for (std::int64_t r = 0; r < rows; ++r) expected += reference(x[r * columns + c], hardness[0]).hardness_term;
    EXPECT_NEAR(sums[static_cast<std::size_t>(c)], static_cast<double>(expected), 1e-7 * static_cast<double>(expected));
  }
}

// Terms of both signs that cancel: the error is relative to the magnitudes.
TEST_P(Sum, Cancellation) {
  const UseTarget target(GetParam());
  for (const DType dtype : kAllDTypes) {
    const Array x = random_normal(dtype, 70001, 1.0, 13);
    const Array g = random_normal(dtype, 70001, 1.0, 14);
    long double expected = 0;
    long double magnitude = 0;
    for (std::int64_t i = 0; i < x.size(); ++i) {
      const long double term = g[i] * reference(x[i], 1.7).hardness_term;
      expected += term;
      magnitude += std::fabs(term);
    }
    const double unit = dtype == DType::kFloat64 ? 1e-15 : 1e-7;
    EXPECT_NEAR(backward(g, x, 1.7).dhardness[0], static_cast<double>(expected), unit * static_cast<double>(magnitude))
        << name_of(dtype);
  }
}

TEST_P(Sum, NoElementsGiveZero) {
  const UseTarget target(GetParam());
  for (const Geometry& geometry : {Geometry{1, 1, 0}, Geometry{0, 5, 1}, Geometry{0, 5, 600}, Geometry{4, 5, 0}}) {
    const std::vector<double> hardness(static_cast<std::size_t>(geometry.channels), 1.3);
    const Gradients gradients = backward(geometry, Array(DType::kFloat32, 0), Array(DType::kFloat32, 0), hardness);
    EXPECT_EQ(gradients.dhardness, std::vector<double>(hardness.size(), 0.0));
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, Sum, ::testing::Values(supported_targets().front(), "cuda"),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace lambda_gelu::kernels::testing
