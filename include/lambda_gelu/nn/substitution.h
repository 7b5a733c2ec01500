#pragma once

#include <lambda_gelu/export.h>
#include <lambda_gelu/nn/sites.h>

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
};

/// What to_relu_ did. What it cost depends on lambda times the standard deviation of the pre-activations, which is not
/// known here: compare the validation metric under ReluSubstituted with the plain one.
struct SubstitutionReport {
  std::vector<SubstitutedSite> sites;
};
/// A table, one line for every site.
LAMBDA_GELU_API std::ostream& operator<<(std::ostream& stream, const SubstitutionReport& report);

/// Makes every site of a model compute ReLU, without touching a weight. A mode of the modules that is saved with them
/// (C++ cannot replace the children of an arbitrary module). Throws c10::ValueError where the model has no site (left).
LAMBDA_GELU_API SubstitutionReport to_relu_(torch::nn::Module& model);

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
