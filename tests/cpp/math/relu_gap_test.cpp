#include <gtest/gtest.h>
#include <lambda_gelu/math/relu_gap.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "../expect_refusal.h"
#include "quadrature.h"

namespace lambda_gelu {
namespace {

using reference::Real;

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kHardnesses[] = {0.01, 0.3, 1, 1.6931471805599453, 3.999, 4.001, 8, 79.8, 1e3, 1e4};
constexpr double kTolerance = 1e-13;  // relative

// E[(|x| Phi(-hardness |x|))^power] over x ~ N(mean, std^2), straight from the definition.
double gap_by_definition(int power, Real hardness, Real mean, Real std) {
  const auto integrand = [&](Real x) {
    const Real gap = x * reference::normal_cdf(-hardness * x);
    const Real density = reference::normal_pdf((x - mean) / std) + reference::normal_pdf((x + mean) / std);
    return (power == 1 ? gap : gap * gap) * density / std;
  };
  // Where the gate has opened there is no gap; where the density has fallen there is no mass.
  const Real reach = std::min(40 / hardness, std::abs(mean) + 40 * std);
  return static_cast<double>(reference::integrate_half_line(integrand, reach / 40));
}

double sq_relu_by_definition(Real mean, Real std) {
  const auto integrand = [&](Real x) { return x * x * reference::normal_pdf((x - mean) / std) / std; };
  return static_cast<double>(reference::integrate_half_line(integrand, (std::abs(mean) + 40 * std) / 40));
}

void expect_relatively_near(double value, double expected) {
  EXPECT_LE(std::abs(value - expected), kTolerance * std::abs(expected)) << value << " is not " << expected;
}

TEST(GateGap, IsTheL1DistanceOfTheGates) {
  for (double hardness : kHardnesses) {
    // The gap Phi(-hardness |x|) is the same on both sides of 0.
    const Real integral = 2 * reference::integrate_half_line(
                                  [&](Real x) { return reference::normal_cdf(-hardness * x); }, 1 / Real(hardness));
    expect_relatively_near(gate_gap(hardness), static_cast<double>(integral));
  }
}

TEST(GateGap, TargetHasThatGap) {
  for (double epsilon : {1e-3, 0.01, 0.1, 1.0}) EXPECT_DOUBLE_EQ(gate_gap(target_from_gate_gap(epsilon)), epsilon);
  EXPECT_NEAR(target_from_gate_gap(0.1), 7.9788, 1e-4);  // the values of arXiv 2603.21991's bound
  EXPECT_NEAR(target_from_gate_gap(0.01), 79.788, 1e-3);
}

TEST(ExpectedGap, ClosedFormForMeanZeroIsTheIntegral) {
  for (double hardness : kHardnesses) {
    for (double std : {0.2, 1.0, 3.0}) {
      SCOPED_TRACE(testing::Message() << "hardness " << hardness << ", std " << std);
      expect_relatively_near(expected_gap(hardness, 0, std), gap_by_definition(1, hardness, 0, std));
    }
  }
}

TEST(ExpectedSqGap, ClosedFormForMeanZeroIsTheIntegral) {
  for (double hardness : kHardnesses) {
    for (double std : {0.2, 1.0, 3.0}) {
      SCOPED_TRACE(testing::Message() << "hardness " << hardness << ", std " << std);
      expect_relatively_near(expected_sq_gap(hardness, 0, std), gap_by_definition(2, hardness, 0, std));
    }
  }
}

TEST(ExpectedGap, AndItsSquareForAnyMeanAreTheIntegrals) {
  for (double hardness : kHardnesses) {
    for (double mean : {-6.0, -1.0, -0.01, 0.5, 2.0}) {
      for (double std : {0.5, 1.0, 2.0}) {
        SCOPED_TRACE(testing::Message() << "hardness " << hardness << ", mean " << mean << ", std " << std);
        expect_relatively_near(expected_gap(hardness, mean, std), gap_by_definition(1, hardness, mean, std));
        expect_relatively_near(expected_sq_gap(hardness, mean, std), gap_by_definition(2, hardness, mean, std));
      }
    }
  }
}

TEST(ExpectedGap, DependsOnTheSizeOfTheMeanOnly) {
  EXPECT_DOUBLE_EQ(expected_gap(2, -1.5, 0.7), expected_gap(2, 1.5, 0.7));
  EXPECT_DOUBLE_EQ(expected_sq_gap(2, -1.5, 0.7), expected_sq_gap(2, 1.5, 0.7));
}

// A density p that is flat over the width of the gap leaves p(0) / (2 lambda^2) and c2 p(0) / lambda^3, with
// c2 = (4 / (3 sqrt(pi))) (1/sqrt(2) - 5/8).
TEST(ExpectedGap, LargeHardnessLimit) {
  const double c2 = 4 / (3 * std::sqrt(std::numbers::pi)) * (std::sqrt(0.5) - 0.625);
  const double density = std::sqrt(0.5 * std::numbers::inv_pi);
  for (double hardness : {1e4, 1e6, 1e8}) {
    EXPECT_NEAR(expected_gap(hardness) * 2 * hardness * hardness / density, 1, 1e-7);
    EXPECT_NEAR(expected_sq_gap(hardness) * std::pow(hardness, 3) / (c2 * density), 1, 1e-7);
  }
}

TEST(ExpectedSqRelu, IsTheIntegral) {
  for (double mean : {-12.0, -3.01, -2.99, -1.0, 0.0, 0.4, 5.0}) {
    for (double std : {0.5, 1.0, 2.0}) {
      SCOPED_TRACE(testing::Message() << "mean " << mean << ", std " << std);
      expect_relatively_near(expected_sq_relu(mean, std), sq_relu_by_definition(mean, std));
    }
  }
}

TEST(Ser, IsTheRatioOfThePowersInDecibels) {
  for (double kappa : {0.5, 1.0, 4.0, 30.0}) {
    for (double mean : {-2.0, -1.0, 0.0, 1.0}) {
      const double ratio = sq_relu_by_definition(mean, 1) / gap_by_definition(2, kappa, mean, 1);
      EXPECT_NEAR(ser_db(kappa, mean), 10 * std::log10(ratio), 1e-11);
    }
  }
}

TEST(Ser, TargetReachesTheDecibelsAndMore) {
  for (double mean : {-2.0, -1.0, 0.0, 0.7}) {
    double last = 0;
    for (double decibels : {20.0, 30.0, 40.0, 60.0}) {
      const double kappa = target_from_ser(decibels, mean);
      EXPECT_NEAR(ser_db(kappa, mean), decibels, 1e-10);
      EXPECT_GT(kappa, last);
      last = kappa;
    }
  }
}

// Fewer than 10 log10 2 dB need no gate at all for mean 0: at kappa = 0 the error is |x| / 2.
TEST(Ser, TargetThatNoHardnessReachesIsRefused) {
  expect_refusal([] { target_from_ser(3.0); }, "decibels", "3.01", "got 3");
  expect_refusal([] { target_from_ser(1000); }, "decibels", "got 1000");
  EXPECT_LT(target_from_ser(3.011), 1e-3);
}

TEST(ReluGap, RefusesWhatHasNoMeaning) {
  for (double value : {0.0, -1.0, kInf, kNaN}) {
    expect_refusal([&] { gate_gap(value); }, "hardness", "finite and positive", "got");
    expect_refusal([&] { target_from_gate_gap(value); }, "epsilon", "finite and positive", "got");
    expect_refusal([&] { expected_gap(value); }, "hardness", "finite and positive", "got");
    expect_refusal([&] { expected_sq_gap(value); }, "hardness", "finite and positive", "got");
    expect_refusal([&] { expected_gap(1, 0, value); }, "std", "finite and positive", "got");
    expect_refusal([&] { expected_sq_gap(1, 0, value); }, "std", "finite and positive", "got");
    expect_refusal([&] { expected_sq_relu(0, value); }, "std", "finite and positive", "got");
    expect_refusal([&] { ser_db(value); }, "effective_hardness", "finite and positive", "got");
  }
  for (double mean : {kInf, -kInf, kNaN}) {
    expect_refusal([&] { expected_gap(1, mean); }, "mean", "finite", "got");
    expect_refusal([&] { expected_sq_gap(1, mean); }, "mean", "finite", "got");
    expect_refusal([&] { expected_sq_relu(mean); }, "mean", "finite", "got");
  }
  for (double mean : {-31.0, 31.0, kInf, kNaN}) {
    expect_refusal([&] { ser_db(2, mean); }, "mean", "[-30, 30]", "got");
    expect_refusal([&] { target_from_ser(30, mean); }, "mean", "[-30, 30]", "got");
  }
  for (double decibels : {kInf, -kInf, kNaN}) {
    expect_refusal([&] { target_from_ser(decibels); }, "decibels", "finite", "got");
  }
  expect_refusal([] { expected_gap(1e300, 0, 1e300); }, "hardness * std", "finite and positive", "got inf");
}

}  // namespace
}  // namespace lambda_gelu
