#include <gtest/gtest.h>
#include <lambda_gelu/math/targets.h>

#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "../expect_refusal.h"
#include "distributions.h"

namespace lambda_gelu {
namespace {

using Values = std::vector<double>;

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

const std::vector<Histogram>& sites() {
  static const std::vector<Histogram> histograms = {reference::histogram(reference::normal(0, 1)),
                                                    reference::histogram(reference::normal(-0.5L, 0.4L)),
                                                    reference::histogram(reference::laplace(2))};
  return histograms;
}

double cost(const std::vector<Histogram>& histograms, const Values& weights, const Values& hardness) {
  double sum = 0;
  for (std::size_t i = 0; i < weights.size(); ++i) sum += weights[i] * histograms[i].expected_gap(hardness[i]);
  return sum;
}

TEST(BudgetTargets, SpendTheBudgetInEqualShares) {
  const Values weights = {1, 10, 0.3};
  for (const double budget : {1e-2, 1e-3, 1e-4}) {
    const auto targets = budget_targets(sites(), weights, budget, Values{1, 1, 1}, 1e4);
    EXPECT_NEAR(targets.total / budget, 1, 1e-9);
    EXPECT_NEAR(cost(sites(), weights, targets.hardness) / budget, 1, 1e-9);
    EXPECT_NEAR(targets.share * 3 / budget, 1, 1e-9);
    for (const double one : targets.cost) EXPECT_NEAR(one / targets.share, 1, 1e-9);
    EXPECT_EQ(targets.capped, std::vector<bool>(3, false));
  }
}

// Whoever takes from one share to give to another has to harden more in sum.
TEST(BudgetTargets, HardenTheLeastOfAllThatKeepTheBudget) {
  const std::vector<Histogram> two = {sites()[0], sites()[1]};
  const Values weights = {1, 4};
  const double budget = 1e-3;
  const auto best = budget_targets(two, weights, budget, Values{1, 1}, 1e4);
  const auto hardening = [](const Values& hardness) { return std::log(hardness[0]) + std::log(hardness[1]); };
  for (double part = 0.05; part < 1; part += 0.05) {
    const Values other = {two[0].target_from_gap(part * budget / weights[0]),
                          two[1].target_from_gap((1 - part) * budget / weights[1])};
    EXPECT_GE(hardening(other), hardening(best.hardness) - 1e-3) << part;
  }
}

TEST(BudgetTargets, SiteBelowItsShareAtItsFloorLeavesTheRestToTheOthers) {
  const Values weights = {1e-6, 1, 1};
  const double budget = 1e-3;
  const auto targets = budget_targets(sites(), weights, budget, Values{1.7, 1.7, 1.7}, 1e4);
  EXPECT_EQ(targets.hardness[0], 1.7);
  EXPECT_LT(targets.cost[0], targets.share);
  EXPECT_NEAR(targets.total / budget, 1, 1e-9);
  EXPECT_NEAR(targets.cost[1] / targets.cost[2], 1, 1e-9);
  EXPECT_GT(targets.cost[1], budget / 3);
}

TEST(BudgetTargets, BudgetThatTheFloorsKeepHardensNothing) {
  const Values floors = {1.5, 2, 3};
  const auto targets = budget_targets(sites(), Values{1, 1, 1}, 10, floors, 64);
  EXPECT_EQ(targets.hardness, floors);
  EXPECT_LE(targets.total, 10);
}

TEST(BudgetTargets, CappedSitesTakeTheirExcessFromTheOthers) {
  const Values weights = {1000, 10, 10};
  const double at_cap = 1000 * sites()[0].expected_gap(20);
  const double budget = at_cap * 1.5;
  const auto targets = budget_targets(sites(), weights, budget, Values{1, 1, 1}, 20);
  EXPECT_EQ(targets.hardness[0], 20);
  EXPECT_TRUE(targets.capped[0]);
  EXPECT_FALSE(targets.capped[1]);
  EXPECT_GT(targets.cost[0], targets.share);
  EXPECT_NEAR(targets.total / budget, 1, 1e-9);
}

TEST(BudgetTargets, BudgetThatTheCapCannotKeepIsReportedAsOvershot) {
  const auto targets = budget_targets(sites(), Values{1, 1, 1}, 1e-6, Values{1, 1, 30}, 20);
  EXPECT_EQ(targets.hardness, (Values{20, 20, 30}));  // the floor of the last one is above the cap
  EXPECT_EQ(targets.capped, std::vector<bool>(3, true));
  EXPECT_GT(targets.total, 1e-6);
}

TEST(BudgetTargets, SiteThatTheSwapHelpsBuysNoOtherAnything) {
  const auto with = budget_targets(sites(), Values{1, -5, 1}, 1e-3, Values{1, 1.2, 1}, 64);
  const auto without = budget_targets(sites(), Values{1, 0, 1}, 1e-3, Values{1, 1.2, 1}, 64);
  EXPECT_EQ(with.hardness, without.hardness);
  EXPECT_EQ(with.hardness[1], 1.2);
  EXPECT_EQ(with.cost[1], 0);
}

TEST(BudgetTargets, RefuseWhatHasNoMeaning) {
  const Values ones = {1, 1, 1};
  for (const double value : {0.0, -1.0, kInf, kNaN}) {
    expect_refusal([&] { budget_targets(sites(), ones, value, ones, 64); }, "budget", "finite and positive", "got");
    expect_refusal([&] { budget_targets(sites(), ones, 1, ones, value); }, "cap", "finite and positive", "got");
    expect_refusal([&] { budget_targets(sites(), ones, 1, Values{1, value, 1}, 64); }, "floors", "got");
  }
  expect_refusal([&] { budget_targets(sites(), Values{1, kNaN, 1}, 1, ones, 64); }, "weights", "finite", "got");
  expect_refusal([&] { budget_targets(sites(), Values{1}, 1, ones, 64); }, "weights", "3 values", "got 1");
  expect_refusal([&] { budget_targets(sites(), ones, 1, Values{1}, 64); }, "floors", "3 values", "got 1");
  expect_refusal([&] { budget_targets({}, {}, 1, {}, 64); }, "sites", "at least one");
  expect_refusal([&] { budget_targets(std::vector<Histogram>(3), ones, 1, ones, 64); }, "empty");
}

}  // namespace
}  // namespace lambda_gelu
