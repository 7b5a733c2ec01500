#include <gtest/gtest.h>
#include <lambda_gelu/math/schedule.h>

#include <cmath>
#include <limits>

#include "../expect_refusal.h"

namespace lambda_gelu {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr Schedule kSchedules[] = {Schedule::kLinear, Schedule::kGeometric, Schedule::kHarmonic, Schedule::kCosine};

class EverySchedule : public testing::TestWithParam<Schedule> {};
INSTANTIATE_TEST_SUITE_P(Schedule, EverySchedule, testing::ValuesIn(kSchedules),
                         [](const auto& info) { return std::string(schedule_name(info.param)); });

TEST_P(EverySchedule, EndsExactlyWhereItShould) {
  for (double from : {1.0, 1.1, 1.6931471805599453, 9.9}) {
    for (double to : {1.0, 7.978845608028654, 64.1, 1e9}) {
      EXPECT_EQ(scheduled_hardness(GetParam(), from, to, 0), from);
      EXPECT_EQ(scheduled_hardness(GetParam(), from, to, 1), to);
    }
  }
}

TEST_P(EverySchedule, RisesAndFallsMonotonicallyBetweenItsEnds) {
  constexpr int kPoints = 2000;
  for (double to : {8.0, 1.7000001, 1e6}) {
    double last = 1.7, last_down = to;
    for (int i = 1; i <= kPoints; ++i) {
      const double up = scheduled_hardness(GetParam(), 1.7, to, double(i) / kPoints);
      const double down = scheduled_hardness(GetParam(), to, 1.7, double(i) / kPoints);
      EXPECT_GE(up, last);
      EXPECT_LE(down, last_down);
      EXPECT_LE(up, to);
      EXPECT_GE(down, 1.7);
      last = up;
      last_down = down;
    }
  }
}

TEST_P(EverySchedule, StandsStillBetweenEqualEnds) {
  for (double progress : {0.0, 0.1, 0.5, 0.9, 1.0}) EXPECT_EQ(scheduled_hardness(GetParam(), 2.7, 2.7, progress), 2.7);
}

// Whoever starts again from where the way stands, with the same target, goes the same way.
TEST_P(EverySchedule, RestOfAWayIsTheWayItself) {
  for (double start : {0.0, 0.1, 0.5, 0.99}) {
    const double there = scheduled_hardness(GetParam(), 1.7, 23, start);
    EXPECT_EQ(scheduled_hardness(GetParam(), there, 23, start, start), there);
    EXPECT_EQ(scheduled_hardness(GetParam(), there, 23, 1, start), 23);
    for (double progress : {0.1, 0.3, 0.5, 0.77, 0.99}) {
      if (progress < start) continue;
      EXPECT_NEAR(scheduled_hardness(GetParam(), there, 23, progress, start) /
                      scheduled_hardness(GetParam(), 1.7, 23, progress),
                  1, 1e-14);
    }
  }
}

TEST_P(EverySchedule, NewTargetIsReachedFromWhereTheWayStands) {
  const double there = scheduled_hardness(GetParam(), 1.7, 23, 0.4);
  double last = there;
  for (int i = 1; i <= 60; ++i) {
    const double up = scheduled_hardness(GetParam(), there, 40, 0.4 + 0.01 * i > 1 ? 1 : 0.4 + 0.01 * i, 0.4);
    EXPECT_GT(up, last);
    last = up;
  }
  EXPECT_EQ(last, 40);
}

TEST_P(EverySchedule, NameRoundTrips) {
  EXPECT_EQ(schedule_from_name(schedule_name(GetParam())), GetParam());
}

TEST_P(EverySchedule, RefusesWhatHasNoMeaning) {
  for (double progress : {-1e-9, 1.0000001, kInf, kNaN}) {
    expect_refusal([&] { scheduled_hardness(GetParam(), 1, 8, progress); }, "progress", "[0, 1]", "got");
  }
  for (double start : {-1e-9, 0.51, kInf, kNaN}) {
    expect_refusal([&] { scheduled_hardness(GetParam(), 1, 8, 0.5, start); }, "start_progress", "[0, 0.5]", "got");
  }
  for (double hardness : {0.0, -1.0, kInf, kNaN}) {
    expect_refusal([&] { scheduled_hardness(GetParam(), hardness, 8, 0.5); }, "from", "finite and positive", "got");
    expect_refusal([&] { scheduled_hardness(GetParam(), 2, hardness, 0.5); }, "to", "finite and positive", "got");
  }
}

// What the names promise: the arithmetic, geometric and harmonic mean of 2 and 8 half-way, and at a quarter the
// value whose own scale (lambda, its logarithm, its reciprocal) lies a quarter of the way.
TEST(Schedule, HalfWayIsTheMeanOfItsName) {
  EXPECT_DOUBLE_EQ(scheduled_hardness(Schedule::kLinear, 2, 8, 0.5), 5);
  EXPECT_DOUBLE_EQ(scheduled_hardness(Schedule::kGeometric, 2, 8, 0.5), 4);
  EXPECT_DOUBLE_EQ(scheduled_hardness(Schedule::kHarmonic, 2, 8, 0.5), 3.2);
  EXPECT_DOUBLE_EQ(scheduled_hardness(Schedule::kCosine, 2, 8, 0.5), 5);
  EXPECT_DOUBLE_EQ(scheduled_hardness(Schedule::kLinear, 1, 9, 0.25), 3);
  EXPECT_DOUBLE_EQ(scheduled_hardness(Schedule::kGeometric, 1, 16, 0.25), 2);
  EXPECT_DOUBLE_EQ(scheduled_hardness(Schedule::kHarmonic, 1, 5, 0.25), 1.25);
  EXPECT_NEAR(scheduled_hardness(Schedule::kCosine, 1, 9, 1.0 / 3), 3, 1e-14);
}

TEST(Schedule, CosineIsSlowAtBothEnds) {
  EXPECT_LT(scheduled_hardness(Schedule::kCosine, 1, 2, 0.01) - 1, 0.001);
  EXPECT_LT(2 - scheduled_hardness(Schedule::kCosine, 1, 2, 0.99), 0.001);
}

TEST(Schedule, UnknownNameIsRefusedWithTheKnownOnes) {
  expect_refusal([] { schedule_from_name("quadratic"); }, "schedule", "linear", "geometric", "harmonic", "cosine",
                 "got 'quadratic'");
  expect_refusal([] { schedule_from_name(""); }, "got ''");
}

TEST(HardeningWindow, QuarterOfAHundredEpochs) {
  const HardeningWindow window(100, 0.25, 1.0);
  EXPECT_EQ(window.first_step, 25);
  EXPECT_EQ(window.last_step, 100);
  EXPECT_EQ(window.phase(0), Phase::kLearn);
  EXPECT_EQ(window.phase(24), Phase::kLearn);
  EXPECT_EQ(window.phase(25), Phase::kHarden);
  EXPECT_EQ(window.phase(99), Phase::kHarden);
  EXPECT_EQ(window.phase(100), Phase::kDone);
  EXPECT_EQ(window.phase(1000), Phase::kDone);
  EXPECT_EQ(window.progress(0), 0);
  EXPECT_EQ(window.progress(25), 0);
  EXPECT_DOUBLE_EQ(window.progress(40), 0.2);
  EXPECT_EQ(window.progress(100), 1);
  EXPECT_EQ(window.progress(1000), 1);
}

TEST(HardeningWindow, ProgressNeverFalls) {
  const HardeningWindow window(37, 0.3, 0.9);
  for (int step = 0; step < 40; ++step) EXPECT_LE(window.progress(step), window.progress(step + 1));
}

TEST(HardeningWindow, PartStepsRoundUp) {
  const HardeningWindow window(10, 0.25, 0.91);
  EXPECT_EQ(window.first_step, 3);
  EXPECT_EQ(window.last_step, 10);
}

// 0.07 * 100 = 7.000000000000001 and 0.29 * 100 = 28.999999999999996 in double.
TEST(HardeningWindow, RoundingOfTheFractionMovesNoStep) {
  EXPECT_EQ(HardeningWindow(100, 0.07, 0.29).first_step, 7);
  EXPECT_EQ(HardeningWindow(100, 0.07, 0.29).last_step, 29);
  EXPECT_EQ(HardeningWindow(30, 0.1, 0.7).first_step, 3);
  EXPECT_EQ(HardeningWindow(30, 0.1, 0.7).last_step, 21);
}

TEST(HardeningWindow, SmallestAndLargestWindow) {
  const HardeningWindow one(1, 0, 1);
  EXPECT_EQ(one.phase(0), Phase::kHarden);
  EXPECT_EQ(one.phase(1), Phase::kDone);
  const HardeningWindow large(std::int64_t{1} << 40, 0.5, 1);
  EXPECT_EQ(large.first_step, std::int64_t{1} << 39);
  EXPECT_EQ(large.last_step, std::int64_t{1} << 40);
}

TEST(HardeningWindow, RefusesWhatHasNoMeaning) {
  for (std::int64_t steps : {0, -5}) {
    expect_refusal([&] { HardeningWindow(steps, 0.25, 1); }, "total_steps", "at least 1", "got");
  }
  const double windows[][2] = {{0.5, 0.5}, {0.6, 0.5}, {-0.1, 1}, {0, 1.1}, {kNaN, 1}, {0, kNaN}, {0, kInf}};
  for (const auto& [start, end] : windows) {
    expect_refusal([&, start = start, end = end] { HardeningWindow(10, start, end); }, "start", "end",
                   "0 <= start < end <= 1", "got");
  }
  expect_refusal([] { HardeningWindow(3, 0.7, 0.9); }, "total_steps = 3", "at least one step");
  const HardeningWindow window(10, 0.25, 1);
  expect_refusal([&] { window.phase(-1); }, "step", "at least 0", "got -1");
  expect_refusal([&] { window.progress(-1); }, "step", "at least 0", "got -1");
}

TEST(Phase, Names) {
  EXPECT_EQ(phase_name(Phase::kLearn), "learn");
  EXPECT_EQ(phase_name(Phase::kHarden), "harden");
  EXPECT_EQ(phase_name(Phase::kDone), "done");
}

}  // namespace
}  // namespace lambda_gelu
