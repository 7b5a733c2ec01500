#pragma once

#include <lambda_gelu/export.h>
#include <lambda_gelu/nn/statistics.h>

#include <initializer_list>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace lambda_gelu {

/// The lambda that a site is hardened to: one value, or one for each of its lambda.
struct SiteTarget {
  /* implicit */ SiteTarget(double value) : values{value} {}
  /* implicit */ SiteTarget(std::vector<double> values) : values(std::move(values)) {}
  /* implicit */ SiteTarget(std::initializer_list<double> values) : values(values) {}

  std::vector<double> values;
};

/// By site name.
using SiteTargets = std::map<std::string, SiteTarget>;

/// A site for which a tolerance would take a lambda above the cap.
struct CappedSite {
  std::string name;
  int64_t channels;  ///< of it that are at the cap
  double ser_db;     ///< what the cap reaches, the least of these channels
};

struct SuggestedTargets {
  SiteTargets targets;
  std::vector<CappedSite> capped;
};

/// The smallest lambda at which the swap to ReLU costs each site no more than a tolerance: where its SER is
/// `tolerance_db`, in dB, finite and positive (30 and the cap of 64 are ours). per_channel: one for each channel, from
/// statistics per channel; otherwise one for each site. Warns (TORCH_WARN) where sites are capped.
///
/// Throws c10::ValueError for another tolerance or cap, naming sites that were never executed or had NaN.
LAMBDA_GELU_API SuggestedTargets suggest_targets(const ActivationStatistics& statistics, double tolerance_db = 30,
                                                 double cap = 64, bool per_channel = false);

}  // namespace lambda_gelu
