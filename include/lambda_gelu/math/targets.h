#pragma once

#include <lambda_gelu/export.h>
#include <lambda_gelu/math/histogram.h>

#include <span>
#include <vector>

/// Which lambda a site is hardened to: for a tolerance of its own, or where the whole network has one budget (own
/// derivations; not in arXiv 2603.21991). Plain double, no torch.
namespace lambda_gelu {

struct ToleranceTarget {
  double hardness = 0;
  bool capped = false;  ///< the cap does not reach the tolerance
};

/// The smallest lambda with an SER of at least `decibels`, but at most `cap`; min(1, cap) where every lambda has it. A
/// histogram without a positive value has no signal, whatever lambda is: it gets the cap, unless its error is too small
/// for a double at min(1, cap) already. decibels: finite; cap: finite and positive. Throws std::invalid_argument, as
/// Histogram does.
LAMBDA_GELU_API ToleranceTarget tolerance_target(const Histogram& site, double decibels, double cap);

struct BudgetTargets {
  std::vector<double> hardness;  ///< by site
  std::vector<bool> capped;      ///< the site is at the cap and costs more than its share
  std::vector<double> cost;      ///< weight * E[e] at that lambda
  double share = 0;              ///< what every site that is neither at its floor nor at the cap costs
  double total = 0;              ///< of the costs; above the budget only where sites are capped
};

/// About the least hardening, min sum ln lambda_i, whose predicted cost sum w_i E_i[e] is at most `budget`.
///
/// Every site gets an equal share of the budget, which is the optimum for large lambda, where E[e] falls with
/// lambda^-2; at the soft end the product of the lambda can be some percent above the least. A site
/// that costs less than its share at its floor leaves the rest to the others, and so do sites at the cap take theirs.
///
/// weights: what one unit of expected gap at that site does to the loss; finite. A negative one (the swap helps there)
/// counts as zero: it buys no other site anything. floors: the lambda that a site has and keeps at least, finite and
/// positive; may be above the cap, and is kept then. budget and cap: finite and positive. Throws std::invalid_argument
/// that names the argument, also where sizes differ, and as Histogram does.
LAMBDA_GELU_API BudgetTargets budget_targets(std::span<const Histogram> sites, std::span<const double> weights,
                                             double budget, std::span<const double> floors, double cap);

}  // namespace lambda_gelu
