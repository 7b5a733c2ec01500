// Histograms of pre-activations and the targets that follow from them.
#include "histogram.h"

#include <lambda_gelu/math/histogram.h>
#include <lambda_gelu/math/targets.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using namespace py::literals;
using lambda_gelu::Histogram;

Histogram make_histogram(const std::vector<std::int64_t>& counts, double sum, double sq_sum, double sq_sum_relu,
                         std::int64_t nonfinite) {
  Histogram::Counts bins;
  if (counts.size() != bins.size()) {
    throw std::invalid_argument("counts must have " + std::to_string(bins.size()) + " values, got " +
                                std::to_string(counts.size()));
  }
  std::copy(counts.begin(), counts.end(), bins.begin());
  return Histogram(bins, sum, sq_sum, sq_sum_relu, nonfinite);
}

void bind_histogram_class(py::module_& m) {
  py::class_<Histogram>(m, "Histogram", R"doc(
Histogram(counts=[0] * 256, sum=0.0, sq_sum=0.0, sq_sum_relu=0.0, nonfinite=0)

One distribution of pre-activations x: 128 bins of |x| for x > 0, then 128 for x <= 0, and its exact moments over the
finite values (sums of x, x^2 and ReLU(x)^2). nonfinite counts NaN and infinities, which are in no bin. It answers for
every hardness what the swap to ReLU costs.

Raises ValueError for another number of counts and for negative ones; every question raises ValueError where the
histogram is empty or has seen NaN or infinity, and for a hardness that is not finite and positive.)doc")
      .def(py::init(&make_histogram), "counts"_a = std::vector<std::int64_t>(lambda_gelu::kHistogramBins),
           "sum"_a = 0.0, "sq_sum"_a = 0.0, "sq_sum_relu"_a = 0.0, "nonfinite"_a = 0)
      .def("add", &Histogram::add, "x"_a, "Adds one value.")
      .def("merge", &Histogram::merge, "other"_a, "Adds what another histogram has seen.")
      .def_property_readonly(
          "counts", [](const Histogram& h) { return std::vector<std::int64_t>(h.counts().begin(), h.counts().end()); })
      .def_property_readonly("sum", &Histogram::sum)
      .def_property_readonly("sq_sum", &Histogram::sq_sum)
      .def_property_readonly("sq_sum_relu", &Histogram::sq_sum_relu)
      .def_property_readonly("nonfinite", &Histogram::nonfinite)
      .def_property_readonly("count", &Histogram::count, "finite values seen")
      .def("mean", &Histogram::mean)
      .def("std", &Histogram::std, "of the population")
      .def("zero_share", &Histogram::zero_share, "the share of x <= 0")
      .def("expected_sq_relu", &Histogram::expected_sq_relu, "E[ReLU(x)^2]")
      .def("expected_gap", &Histogram::expected_gap, "hardness"_a, "E[ReLU(x) - f(x)]")
      .def("expected_sq_gap", &Histogram::expected_sq_gap, "hardness"_a, "E[(ReLU(x) - f(x))^2]")
      .def("ser_db", &Histogram::ser_db, "hardness"_a, R"doc(
ser_db(hardness) -> float

10 log10(E[ReLU(x)^2] / E[(ReLU(x) - f(x))^2]): inf where every x is 0, -inf where no x is positive.)doc")
      .def("effective_hardness", &Histogram::effective_hardness, "hardness"_a, "kappa = lambda std")
      .def("near_zero_share", &Histogram::near_zero_share, "hardness"_a, "threshold"_a = 0.01,
           "The share of x whose gate Phi(lambda x) is below threshold, in (0, 1).")
      .def("target_from_ser", &Histogram::target_from_ser, "decibels"_a, R"doc(
target_from_ser(decibels) -> float

The hardness at which ser_db(hardness) = decibels. Raises ValueError where none in [1e-6, 1e9] reaches it.)doc")
      .def("target_from_gap", &Histogram::target_from_gap, "gap"_a, R"doc(
target_from_gap(gap) -> float

The hardness at which expected_gap(hardness) = gap. Raises ValueError where none in [1e-6, 1e9] has it.)doc");
}

using Channels = std::vector<Histogram>;
using Values = std::vector<double>;

void bind_pooled(py::module_& m) {
  m.def("histogram_edges", &lambda_gelu::histogram_edges, "The 129 edges of the bins of |x|.");
  m.def("histogram_bin", &lambda_gelu::histogram_bin, "x"_a, "The bin of x; 256 for NaN and infinities.");
  m.def(
      "pooled_expected_gap", [](const Channels& h, const Values& l) { return lambda_gelu::expected_gap(h, l); },
      "channels"_a, "hardness"_a, R"doc(
pooled_expected_gap(channels, hardness) -> float

E[ReLU(x) - f(x)] over all channels of a site; hardness has 1 value or one for each channel. This and the functions
below raise ValueError as Histogram does; channels that have seen nothing are left out as long as one has.)doc");
  m.def(
      "pooled_expected_sq_gap", [](const Channels& h, const Values& l) { return lambda_gelu::expected_sq_gap(h, l); },
      "channels"_a, "hardness"_a, "E[(ReLU(x) - f(x))^2] over all channels of a site.");
  m.def(
      "pooled_ser_db", [](const Channels& h, const Values& l) { return lambda_gelu::ser_db(h, l); }, "channels"_a,
      "hardness"_a, "Signal-to-error ratio of the swap in dB over all channels of a site.");
  m.def(
      "pooled_near_zero_share",
      [](const Channels& h, const Values& l, double threshold) {
        return lambda_gelu::near_zero_share(h, l, threshold);
      },
      "channels"_a, "hardness"_a, "threshold"_a = 0.01, "The share of gates below threshold over all channels.");
  m.def(
      "merged_histogram", [](const Channels& h) { return lambda_gelu::merged(h); }, "channels"_a,
      "All channels as one distribution.");
}

void bind_targets(py::module_& m) {
  using lambda_gelu::BudgetTargets;
  py::class_<BudgetTargets>(m, "BudgetTargets")
      .def_readonly("hardness", &BudgetTargets::hardness, "by site")
      .def_readonly("capped", &BudgetTargets::capped, "whether the site is at the cap and costs more than its share")
      .def_readonly("cost", &BudgetTargets::cost, "weight times expected gap at that hardness, by site")
      .def_readonly("share", &BudgetTargets::share, "the cost of every site that is neither at its floor nor capped")
      .def_readonly("total", &BudgetTargets::total, "of the costs; above the budget only where sites are capped");
  m.def(
      "tolerance_target",
      [](const Histogram& site, double decibels, double cap) {
        const auto target = lambda_gelu::tolerance_target(site, decibels, cap);
        return std::pair(target.hardness, target.capped);
      },
      "site"_a, "decibels"_a, "cap"_a, R"doc(
tolerance_target(site, decibels, cap) -> tuple[float, bool]

The smallest lambda, at most cap, with an SER of at least `decibels` (1 where every lambda has it), and whether the cap
does not reach that. A histogram without a positive value gets the cap, unless its error vanishes at 1 already.

Raises ValueError unless decibels is finite and cap is finite and positive, and as Histogram does.)doc");
  m.def(
      "budget_targets",
      [](const Channels& sites, const Values& weights, double budget, const Values& floors, double cap) {
        return lambda_gelu::budget_targets(sites, weights, budget, floors, cap);
      },
      "sites"_a, "weights"_a, "budget"_a, "floors"_a, "cap"_a, R"doc(
budget_targets(sites, weights, budget, floors, cap) -> BudgetTargets

About the least hardening (the smallest sum of ln lambda) whose predicted cost, the sum of weight times expected gap over the
sites, is at most budget. sites: one histogram for each site. floors: the lambda that every site has and keeps at least.
A negative weight counts as zero.

Raises ValueError for other numbers of values, a budget or cap that is not finite and positive, and as Histogram does.)doc");
}

}  // namespace

void bind_histogram(py::module_& m) {
  bind_histogram_class(m);
  bind_pooled(m);
  bind_targets(m);
}
