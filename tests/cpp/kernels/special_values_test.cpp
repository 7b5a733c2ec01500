// Infinities, NaN, signed zeros, subnormals and the ends of the range: numerics of the limits, not of the formula.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "kernel_testing.h"

namespace lambda_gelu::kernels::testing {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

class SpecialValues : public ::testing::TestWithParam<std::string> {
 protected:
  // Every value fills a whole tensor longer than a vector, so that it passes through every lane and through the end.
  static double y_of(DType dtype, double x, double hardness) { return common(forward(filled(dtype, x), hardness)); }
  static double d_of(DType dtype, double x, double hardness) {
    return common(backward(filled(dtype, 1.0), filled(dtype, x), hardness).dx);
  }
  static Array filled(DType dtype, double x) { return Array::from(dtype, std::vector<double>(77, x)); }
  static double common(const Array& a) {
    for (std::int64_t i = 1; i < a.size(); ++i) {
      EXPECT_TRUE((std::isnan(a[0]) && std::isnan(a[i])) || (a[0] == a[i] && std::signbit(a[0]) == std::signbit(a[i])))
          << "element " << i << ": " << a[i] << ", element 0: " << a[0];
    }
    return a[0];
  }
};

TEST_P(SpecialValues, InfinityNaNAndZero) {
  const UseTarget target(GetParam());
  for (const DType dtype : kAllDTypes) {
    for (const double hardness : {1e-30, 1e-6, 1.0, 1.693, 80.0, 1e6, 1e30}) {
      SCOPED_TRACE(std::string(name_of(dtype)) + " lambda " + std::to_string(hardness));
      EXPECT_EQ(y_of(dtype, kInf, hardness), kInf);
      EXPECT_EQ(y_of(dtype, -kInf, hardness), 0.0);
      EXPECT_TRUE(std::isnan(y_of(dtype, kNaN, hardness)));
      EXPECT_TRUE(std::isnan(y_of(dtype, -kNaN, hardness)));
      EXPECT_EQ(y_of(dtype, 0.0, hardness), 0.0);
      EXPECT_FALSE(std::signbit(y_of(dtype, 0.0, hardness)));
      EXPECT_TRUE(std::signbit(y_of(dtype, -0.0, hardness)));
      EXPECT_EQ(d_of(dtype, kInf, hardness), 1.0);
      EXPECT_EQ(d_of(dtype, -kInf, hardness), 0.0);
      EXPECT_TRUE(std::isnan(d_of(dtype, kNaN, hardness)));
      EXPECT_EQ(d_of(dtype, 0.0, hardness), 0.5);
      EXPECT_EQ(d_of(dtype, -0.0, hardness), 0.5);
    }
  }
}

TEST_P(SpecialValues, HardnessNaNGivesNaN) {
  const UseTarget target(GetParam());
  for (const DType dtype : kAllDTypes) {
    for (const double x : {-1e4, -1.0, 0.0, 1.0, 1e4, kInf}) {
      EXPECT_TRUE(std::isnan(y_of(dtype, x, kNaN))) << name_of(dtype) << " x " << x;
      const Gradients gradients = backward(filled(dtype, 1.0), filled(dtype, x), kNaN);
      EXPECT_TRUE(std::isnan(common(gradients.dx))) << name_of(dtype) << " x " << x;
      EXPECT_TRUE(std::isnan(gradients.dhardness[0])) << name_of(dtype) << " x " << x;
    }
  }
}

TEST_P(SpecialValues, HardnessInfinityGivesRelu) {
  const UseTarget target(GetParam());
  for (const DType dtype : kAllDTypes) {
    for (const double x : {-1e4, -1.0, -1e-4, 0.0, 1e-4, 1.0, 1e4, kInf}) {
      const double stored = filled(dtype, x)[0];
      EXPECT_EQ(y_of(dtype, x, kInf), std::max(stored, 0.0)) << name_of(dtype) << " x " << x;
      if (x != 0) {
        EXPECT_EQ(d_of(dtype, x, kInf), x > 0 ? 1.0 : 0.0) << name_of(dtype) << " x " << x;
      }
      const double dhardness = backward(filled(dtype, 1.0), filled(dtype, x), kInf).dhardness[0];
      EXPECT_EQ(dhardness, 0.0) << name_of(dtype) << " x " << x;
    }
  }
}

// x^2 phi(x) -> 0 faster than x^2 -> infinity.
TEST_P(SpecialValues, InfiniteInputGivesFiniteGradients) {
  const UseTarget target(GetParam());
  for (const DType dtype : kAllDTypes) {
    for (const double x : {kInf, -kInf}) {
      for (const double g : {0.0, -2.0, 3.0}) {
        const Gradients gradients = backward(filled(dtype, g), filled(dtype, x), 1.3);
        EXPECT_EQ(common(gradients.dx), x > 0 ? g : 0.0) << name_of(dtype);
        EXPECT_EQ(gradients.dhardness[0], 0.0) << name_of(dtype);
      }
    }
  }
}

TEST_P(SpecialValues, NaNInGradientPropagates) {
  const UseTarget target(GetParam());
  for (const DType dtype : kAllDTypes) {
    const Gradients gradients = backward(filled(dtype, kNaN), filled(dtype, 0.5), 1.3);
    EXPECT_TRUE(std::isnan(common(gradients.dx)));
    EXPECT_TRUE(std::isnan(gradients.dhardness[0]));
  }
}

// Near 0, y = x / 2 to first order: subnormal inputs must not be flushed.
TEST_P(SpecialValues, SubnormalInputs) {
  const UseTarget target(GetParam());
  const struct {
    DType dtype;
    double smallest;
  } cases[] = {{DType::kFloat32, 0x1p-149},
               {DType::kFloat64, 0x1p-1074},
               {DType::kBFloat16, 0x1p-133},
               {DType::kFloat16, 0x1p-24}};
  for (const auto& [dtype, smallest] : cases) {
    for (const double steps : {2.0, 6.0, 100.0, -2.0, -6.0, -100.0}) {
      EXPECT_EQ(y_of(dtype, steps * smallest, 1.3), steps / 2 * smallest) << name_of(dtype) << " steps " << steps;
      EXPECT_EQ(d_of(dtype, steps * smallest, 1.3), 0.5) << name_of(dtype) << " steps " << steps;
    }
  }
}

TEST_P(SpecialValues, LargestNumbers) {
  const UseTarget target(GetParam());
  const struct {
    DType dtype;
    double largest;
  } cases[] = {{DType::kFloat32, 0x1.fffffep127},
               {DType::kFloat64, 0x1.fffffffffffffp1023},
               {DType::kBFloat16, 0x1.fep127},
               {DType::kFloat16, 65504}};
  for (const auto& [dtype, largest] : cases) {
    EXPECT_EQ(y_of(dtype, largest, 1.3), largest) << name_of(dtype);
    EXPECT_EQ(y_of(dtype, -largest, 1.3), 0.0) << name_of(dtype);
    EXPECT_EQ(d_of(dtype, largest, 1.3), 1.0) << name_of(dtype);
    EXPECT_EQ(d_of(dtype, -largest, 1.3), 0.0) << name_of(dtype);
  }
}

TEST(Target, UnknownNameIsRefusedAndChangesNothing) {
  const std::string before = active_target();
  EXPECT_THROW(set_target("sse9"), std::invalid_argument);
  EXPECT_EQ(active_target(), before);
}

INSTANTIATE_TEST_SUITE_P(Targets, SpecialValues, ::testing::ValuesIn(all_targets()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace lambda_gelu::kernels::testing
