#pragma once

#include <lambda_gelu/export.h>
#include <lambda_gelu/nn/sites.h>
#include <lambda_gelu/nn/statistics.h>

#include <optional>
#include <ostream>
#include <string>
#include <vector>

namespace lambda_gelu {

/// One site that to_relu_ made a ReLU.
struct SubstitutedSite {
  std::string name;
  std::vector<std::string> also_at;  ///< further places of the same module
  double hardness_min;               ///< over its lambda, as the two below
  double hardness_mean;
  double hardness_max;
  double gate_gap;  ///< sqrt(2 / pi) / hardness_min, the largest L1 distance of its gates from ReLU's step

  // Known where statistics were given, as predicted from them.
  std::optional<double> effective_hardness = std::nullopt;  ///< kappa = hardness_mean * std of the pre-activations
  std::optional<double> ser_db = std::nullopt;              ///< signal-to-error ratio of the swap in dB
  std::optional<double> expected_gap = std::nullopt;        ///< what the swap adds to the outputs in the mean
  std::optional<double> zeros_before = std::nullopt;        ///< share of gates Phi(lambda x) below 0.01
  std::optional<double> zeros_after = std::nullopt;         ///< share of x <= 0, the exact zeros of ReLU
};

/// What to_relu_ did. What it cost depends on lambda times the standard deviation of the pre-activations, which only
/// statistics know; the last word has the validation metric under ReluSubstituted, against the plain one.
struct SubstitutionReport {
  std::vector<SubstitutedSite> sites;
};
/// A table, one line for every site; with the columns that are known.
LAMBDA_GELU_API std::ostream& operator<<(std::ostream& stream, const SubstitutionReport& report);
/// A header and one line for every site; names of one site are separated by blanks, what is not known is empty.
LAMBDA_GELU_API std::string to_csv(const SubstitutionReport& report);
/// As Python's SubstitutionReport.to_json writes it, for its from_json: strict JSON, numbers to their last bit ("inf",
/// "-inf" and "nan" as strings), null where a value is not known.
LAMBDA_GELU_API std::string to_json(const SubstitutionReport& report);

/// Makes every site of a model compute ReLU, without touching a weight. A mode of the modules that is saved with them
/// (C++ cannot replace the children of an arbitrary module). Throws c10::ValueError where the model has no site (left).
LAMBDA_GELU_API SubstitutionReport to_relu_(torch::nn::Module& model);

/// The same, and tells what the statistics predict of it. They must be of this model and complete: throws
/// c10::ValueError for those of another model, sites that were never executed and NaN; nothing is changed then.
LAMBDA_GELU_API SubstitutionReport to_relu_(torch::nn::Module& model, const ActivationStatistics& statistics);

/// While it lives, every site of the model computes ReLU, as after to_relu_; afterwards lambda-GELU again, also after
/// an exception. Guards nest. Copies and checkpoints made meanwhile are not substituted. Other threads that run the
/// same model meanwhile see it too.
///
///     { ReluSubstituted guard(*model); accuracy_as_relu = evaluate(model); }
class LAMBDA_GELU_API ReluSubstituted {
 public:
  /// Throws c10::ValueError where the model has no site.
  explicit ReluSubstituted(torch::nn::Module& model);
  ~ReluSubstituted();
  ReluSubstituted(const ReluSubstituted&) = delete;
  ReluSubstituted& operator=(const ReluSubstituted&) = delete;

 private:
  std::vector<Site> sites_;
};

}  // namespace lambda_gelu
