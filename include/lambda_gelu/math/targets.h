#pragma once

#include <lambda_gelu/export.h>
#include <lambda_gelu/math/histogram.h>

#include <span>
#include <vector>

/// Which lambda each site gets where the whole network has one budget (own derivation; not in arXiv 2603.21991). Plain
/// double, no torch.
namespace lambda_gelu {

struct BudgetTargets {
  std::vector<double> hardness;  ///< by site
  std::vector<bool> capped;      ///< the site is at the cap and costs more than its share
  std::vector<double> cost;      ///< weight * E[e] at that lambda
  double share = 0;              ///< what every site that is neither at its floor nor at the cap costs
  double total = 0;              ///< of the costs; above the budget only where sites are capped
};

/// The least hardening, min sum ln lambda_i, whose predicted cost sum w_i E_i[e] is at most `budget`.
///
/// For large lambda E[e] falls with lambda^-2, so the optimum gives every site an equal share of the budget. A site
/// that costs less than its share at its floor leaves the rest to the others, and so do sites at the cap take theirs.
///
/// weights: what one unit of expected gap at that site does to the loss; finite. A negative one (the swap helps there)
/// counts as zero: it buys no other site anything. floors: the lambda that a site has and keeps at least, finite and
/// positive; may be above the cap, and is kept then. budget and cap: finite and positive. Throws std::invalid_argument
/// that names the argument, also where sizes differ, and as Histogram does.
LAMBDA_GELU_API BudgetTargets budget_targets(std::span<const Histogram> sites, std::span<const double> weights,
                                             double budget, std::span<const double> floors, double cap);

}  // namespace lambda_gelu
