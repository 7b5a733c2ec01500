#include <lambda_gelu/math/targets.h>
#include <lambda_gelu/nn/targets.h>

#include <algorithm>
#include <cmath>
#include <sstream>

#include "nn/value_error.h"

namespace lambda_gelu {
namespace {

void check_positive(const char* name, double value) {
  TORCH_CHECK_VALUE(std::isfinite(value) && value > 0, name, " must be finite and positive, got ", value);
}

}  // namespace

SuggestedTargets suggest_targets(const ActivationStatistics& statistics, double tolerance_db, double cap,
                                 bool per_channel) {
  check_positive("tolerance_db", tolerance_db);
  check_positive("cap", cap);
  statistics.require_complete("targets");
  SuggestedTargets result;
  for (const auto& site : statistics.sites()) {
    const auto parts = per_channel ? site.channels : std::vector<Histogram>{site.whole()};
    std::vector<double> values;
    CappedSite capped{site.name, 0, 0};
    for (const auto& part : parts) {
      // A channel that has seen nothing has no tolerance to keep.
      if (part.count() == 0) {
        values.push_back(std::min(1.0, cap));
        continue;
      }
      with_value_errors([&] {
        const auto target = tolerance_target(part, tolerance_db, cap);
        values.push_back(target.hardness);
        if (!target.capped) return;
        const double reached = part.ser_db(cap);
        capped.ser_db = capped.channels == 0 ? reached : std::min(capped.ser_db, reached);
        ++capped.channels;
      });
    }
    if (capped.channels > 0) result.capped.push_back(capped);
    result.targets.emplace(site.name, std::move(values));
  }
  if (!result.capped.empty()) {
    std::ostringstream sites;
    for (const auto& site : result.capped) {
      sites << (sites.tellp() > 0 ? ", " : "") << "'" << site.name << "' (" << site.ser_db << " dB)";
    }
    TORCH_WARN(tolerance_db, " dB would need a hardness above the cap of ", cap,
               ", where these sites stay below: ", sites.str());
  }
  return result;
}

}  // namespace lambda_gelu
