// lambda in any dtype, with any stride, or as s with a temperature.
#include <lambda_gelu/math/hardness.h>

#include <cmath>
#include <limits>

#include "cuda_testing.h"

namespace lambda_gelu::kernels::cuda::testing {
namespace {

constexpr Geometry kGeometries[] = {{1, 1, 1003}, {1, 1, 20011}, {3, 7, 403}, {41, 6, 49}, {130, 35, 1}};

struct Problem {
  Geometry geometry;
  Array x, g;
  Problem(DType dtype, const Geometry& shape)
      : geometry(shape),
        x(random_normal(dtype, shape.size(), 1.3, 21)),
        g(random_normal(dtype, shape.size(), 1.0, 22)) {}
};

// The gradient is rounded once from double, or from float for the 16-bit types.
void expect_rounded(const Array& found, const Array& exact) {
  Array rounded(found.dtype(), exact.size());
  for (std::int64_t c = 0; c < exact.size(); ++c) {
    const bool narrow = element_size(found.dtype()) == 2;
    rounded.set(c, narrow ? static_cast<double>(static_cast<float>(exact[c])) : exact[c]);
  }
  EXPECT_TRUE(found.same_bits(rounded));
}

TEST(HardnessArgument, AnyDTypeAndStride) {
  for (const DType dtype : kAllDTypes) {
    for (const Geometry& geometry : kGeometries) {
      const Problem p(dtype, geometry);
      for (const DType hardness_dtype : kAllDTypes) {
        for (const std::int64_t stride : {0, 1, 3}) {
          SCOPED_TRACE(describe(dtype, geometry) + ", lambda " + name_of(hardness_dtype) + " with stride " +
                       std::to_string(stride));
          const HardnessArray hardness(hardness_dtype, some_hardness(geometry.channels), stride);
          std::vector<double> stored;
          for (std::int64_t c = 0; c < geometry.channels; ++c) stored.push_back(hardness.values[c * stride]);
          const HardnessArray same(DType::kFloat64, stored);
          EXPECT_TRUE(forward(geometry, p.x, hardness).same_bits(forward(geometry, p.x, same)));
          const Backward found = backward(geometry, p.g, p.x, hardness);
          const Backward expected = backward(geometry, p.g, p.x, same);
          EXPECT_TRUE(found.dx.same_bits(expected.dx));
          expect_rounded(found.dhardness, expected.dhardness);
        }
      }
    }
  }
}

// The same as with lambda = 1 + softplus(s / temperature), rounded to float32 unless s is float64.
TEST(HardnessArgument, Temperature) {
  for (const DType dtype : kAllDTypes) {
    for (const Geometry& geometry : kGeometries) {
      const Problem p(dtype, geometry);
      for (const DType s_dtype : kAllDTypes) {
        for (const double temperature : {1.0, 0.3, 20.0}) {
          SCOPED_TRACE(describe(dtype, geometry) + ", s " + name_of(s_dtype) + ", temperature " +
                       std::to_string(temperature));
          std::vector<double> raw;
          for (std::int64_t c = 0; c < geometry.channels; ++c)
            raw.push_back(temperature * (0.7 * static_cast<double>(c % 13) - 3));
          const HardnessArray s(s_dtype, raw, 1, temperature);
          std::vector<double> formed;
          for (std::int64_t c = 0; c < geometry.channels; ++c) {
            const double lambda = hardness_from_raw(s.values[c], temperature);
            formed.push_back(s_dtype == DType::kFloat64 ? lambda : static_cast<double>(static_cast<float>(lambda)));
          }
          const HardnessArray two_steps(DType::kFloat64, formed);
          EXPECT_TRUE(forward(geometry, p.x, s).same_bits(forward(geometry, p.x, two_steps)));
          const Backward found = backward(geometry, p.g, p.x, s);
          const Backward expected = backward(geometry, p.g, p.x, two_steps);
          EXPECT_TRUE(found.dx.same_bits(expected.dx));
          const double unit = s_dtype == DType::kFloat64    ? 1e-15
                              : s_dtype == DType::kFloat32  ? 0x1p-24
                              : s_dtype == DType::kBFloat16 ? 0x1p-8
                                                            : 0x1p-11;
          for (std::int64_t c = 0; c < geometry.channels; ++c) {
            const double gradient = expected.dhardness[c] * hardness_derivative(s.values[c], temperature);
            const double smallest = s_dtype == DType::kFloat16 ? 0x1p-25 : 0;
            EXPECT_NEAR(found.dhardness[c], gradient, 1.01 * unit * std::fabs(gradient) + smallest) << "channel " << c;
          }
        }
      }
    }
  }
}

TEST(HardnessArgument, TemperatureAtTheEndsOfTheRange) {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  const Geometry geometry{40, 6, 1};
  const Problem p(DType::kFloat32, geometry);
  const HardnessArray s(DType::kFloat32, {-kInf, -1e6, 1e6, kInf, std::nan(""), 0.0}, 1, 1.0);
  const HardnessArray lambda(DType::kFloat64, {1.0, 1.0, 1e6 + 1, kInf, std::nan(""),
                                               static_cast<double>(static_cast<float>(1 + std::log(2.0)))});
  EXPECT_TRUE(forward(geometry, p.x, s).same_bits(forward(geometry, p.x, lambda)));
  const Backward found = backward(geometry, p.g, p.x, s);
  EXPECT_TRUE(found.dx.same_bits(backward(geometry, p.g, p.x, lambda).dx));
  EXPECT_EQ(found.dhardness[0], 0);
  EXPECT_EQ(found.dhardness[1], 0);
  EXPECT_EQ(found.dhardness[3], 0);
  EXPECT_TRUE(std::isnan(found.dhardness[4]));
  EXPECT_TRUE(std::isfinite(found.dhardness[5]));
}

}  // namespace
}  // namespace lambda_gelu::kernels::cuda::testing
