#include <lambda_gelu/math/targets.h>
#include <math/increasing.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <stdexcept>

#include "checks.h"

namespace lambda_gelu {
namespace {

void require_size(const char* name, std::size_t size, std::size_t sites) {
  if (size != sites) {
    throw std::invalid_argument(fmt::format("{} must have {} values, one for each site, got {}", name, sites, size));
  }
}

struct Range {
  double least, most;  // cost at the cap and at the floor
};

// The share t at which the costs clamp(t, least_i, most_i) add up to the budget: their sum is piecewise linear in t.
double equal_share(const std::vector<Range>& ranges, double budget) {
  std::vector<double> corners;
  for (const Range& range : ranges) corners.insert(corners.end(), {range.least, range.most});
  std::sort(corners.begin(), corners.end());
  const auto total = [&](double share) {
    double sum = 0;
    for (const Range& range : ranges) sum += std::clamp(share, range.least, range.most);
    return sum;
  };
  double low = corners.front();
  for (const double corner : corners) {
    if (total(corner) > budget) break;
    low = corner;
  }
  // Between two corners as many costs move as ranges hold the share.
  const auto moving = std::count_if(ranges.begin(), ranges.end(),
                                    [&](const Range& range) { return range.least <= low && low < range.most; });
  return moving == 0 ? low : low + (budget - total(low)) / static_cast<double>(moving);
}

}  // namespace

ToleranceTarget tolerance_target(const Histogram& site, double decibels, double cap) {
  checks::finite("decibels", decibels);
  checks::finite_positive("cap", cap);
  if (site.ser_db(cap) < decibels) return {cap, true};
  const double any_will_do = std::min(1.0, cap);
  if (site.sq_sum_relu() == 0) return {site.ser_db(any_will_do) >= decibels ? any_will_do : cap, false};
  if (site.ser_db(kSmallestHardness) >= decibels) return {any_will_do, false};
  return {std::min(cap, site.target_from_ser(decibels)), false};
}

BudgetTargets budget_targets(std::span<const Histogram> sites, std::span<const double> weights, double budget,
                             std::span<const double> floors, double cap) {
  if (sites.empty()) throw std::invalid_argument("sites must hold at least one histogram, got none");
  require_size("weights", weights.size(), sites.size());
  require_size("floors", floors.size(), sites.size());
  checks::finite_positive("budget", budget);
  checks::finite_positive("cap", cap);
  for (const double weight : weights) checks::finite("weights", weight);
  for (const double floor : floors) checks::finite_positive("floors", floor);

  const auto n = sites.size();
  const auto cost = [&](std::size_t i, double hardness) {
    return std::max(0.0, weights[i]) * sites[i].expected_gap(hardness);
  };
  std::vector<Range> ranges;
  for (std::size_t i = 0; i < n; ++i) {
    const double at_floor = cost(i, floors[i]);
    ranges.push_back({std::min(at_floor, cost(i, std::max(cap, floors[i]))), at_floor});
  }

  BudgetTargets targets;
  const auto sum = [&](double Range::* end) {
    return std::accumulate(ranges.begin(), ranges.end(), 0.0, [&](double s, const Range& r) { return s + r.*end; });
  };
  if (sum(&Range::most) <= budget) {  // nothing has to harden
    targets.share = std::max_element(ranges.begin(), ranges.end(), [](const Range& a, const Range& b) {
                      return a.most < b.most;
                    })->most;
  } else if (sum(&Range::least) < budget) {
    targets.share = equal_share(ranges, budget);
  }
  for (std::size_t i = 0; i < n; ++i) {
    double hardness = floors[i];
    if (ranges[i].most > targets.share) {
      hardness = std::max(cap, floors[i]);
      if (ranges[i].least < targets.share) {
        hardness = solve_increasing([&](double value) { return -std::log(cost(i, value)); }, -std::log(targets.share),
                                    floors[i], hardness);
      }
    }
    targets.hardness.push_back(hardness);
    targets.cost.push_back(cost(i, hardness));
    targets.capped.push_back(hardness >= cap && targets.cost.back() > targets.share);
    targets.total += targets.cost.back();
  }
  return targets;
}

}  // namespace lambda_gelu
