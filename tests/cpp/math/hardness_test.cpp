#include <gtest/gtest.h>
#include <lambda_gelu/math/hardness.h>

#include <cmath>
#include <limits>
#include <numbers>

#include "../expect_refusal.h"
#include "quadrature.h"

namespace lambda_gelu {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

TEST(Hardness, StartsAtOnePlusLnTwoForAnyTemperature) {
  for (double temperature : {0.05, 0.1, 1.0, 7.0}) {
    EXPECT_DOUBLE_EQ(hardness_from_raw(0, temperature), 1 + std::numbers::ln2);
  }
}

// softplus(t) is the integral of the logistic function from minus infinity to t.
TEST(Hardness, ExcessIsTheIntegralOfTheLogisticFunction) {
  const auto logistic = [](reference::Real t) { return 1 / (1 + std::exp(-t)); };
  for (double temperature : {0.1, 1.0}) {
    for (double t : {-30.0, -3.0, -0.5, 0.0, 0.5, 4.0, 40.0}) {
      const auto integral =
          reference::integrate_half_line([&](reference::Real u) { return logistic(t - u); }, 0.5L * (4 + std::abs(t)));
      const double excess = hardness_from_raw(t * temperature, temperature) - 1;
      EXPECT_NEAR(excess, static_cast<double>(integral), 1e-15 * (1 + excess)) << t;
    }
  }
}

TEST(Hardness, ExtremesOfRawHardness) {
  EXPECT_EQ(hardness_from_raw(-1e6, 0.1), 1);
  EXPECT_DOUBLE_EQ(hardness_from_raw(1e6, 0.1), 1e7 + 1);
}

TEST(Hardness, InverseRoundTripsFromAMillionthToAThousand) {
  for (double temperature : {0.05, 0.1, 1.0}) {
    for (double exponent = -6; exponent <= 3; exponent += 0.125) {
      const double hardness = 1 + std::pow(10.0, exponent);
      const double back = hardness_from_raw(raw_from_hardness(hardness, temperature), temperature);
      // lambda itself carries its excess over 1 only to half an ulp of 1.
      EXPECT_NEAR(back, hardness, 3e-16 * hardness) << hardness << " at temperature " << temperature;
    }
  }
}

TEST(Hardness, RawRoundTrips) {
  for (double raw : {-1.0, -0.1, 0.0, 0.03, 0.5, 60.0}) {
    EXPECT_NEAR(raw_from_hardness(hardness_from_raw(raw, 0.1), 0.1), raw, 1e-11 * (1 + std::abs(raw))) << raw;
  }
}

TEST(Hardness, DerivativeIsTheLimitOfDifferences) {
  for (double temperature : {0.1, 1.0}) {
    for (double t : {-6.0, -1.0, 0.0, 0.7, 5.0}) {
      const double raw = t * temperature, h = 1e-5 * temperature;
      const double difference =
          (hardness_from_raw(raw + h, temperature) - hardness_from_raw(raw - h, temperature)) / (2 * h);
      const double derivative = hardness_derivative(raw, temperature);
      EXPECT_NEAR(derivative, difference, 1e-9 / temperature) << t;
    }
  }
  EXPECT_DOUBLE_EQ(hardness_derivative(0, 0.1), 5);
  EXPECT_DOUBLE_EQ(hardness_derivative(1e6, 0.1), 10);
  EXPECT_EQ(hardness_derivative(-1e6, 0.1), 0);
}

TEST(Hardness, RefusesWhatHasNoMeaning) {
  for (double temperature : {0.0, -0.1, kInf, kNaN}) {
    expect_refusal([&] { hardness_from_raw(0, temperature); }, "temperature", "finite and positive", "got");
    expect_refusal([&] { raw_from_hardness(2, temperature); }, "temperature", "finite and positive", "got");
    expect_refusal([&] { hardness_derivative(0, temperature); }, "temperature", "finite and positive", "got");
  }
  for (double raw : {kInf, -kInf, kNaN}) {
    expect_refusal([&] { hardness_from_raw(raw, 0.1); }, "raw_hardness", "finite", "got");
    expect_refusal([&] { hardness_derivative(raw, 0.1); }, "raw_hardness", "finite", "got");
  }
  for (double hardness : {1.0, 0.5, 0.0, -2.0, kInf, kNaN}) {
    expect_refusal([&] { raw_from_hardness(hardness, 0.1); }, "hardness", "above 1", "got");
  }
}

}  // namespace
}  // namespace lambda_gelu
