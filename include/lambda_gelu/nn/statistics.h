#pragma once

#include <lambda_gelu/export.h>
#include <lambda_gelu/math/histogram.h>
#include <lambda_gelu/nn/sites.h>
#include <torch/serialize/archive.h>

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace lambda_gelu {

/// What a site has been given.
struct LAMBDA_GELU_API SiteStatistics {
  std::string name;
  /// One histogram, or one for each channel; none where the site was not called.
  std::vector<Histogram> channels;

  /// All channels as one distribution.
  Histogram whole() const { return merged(channels); }
  /// E[ReLU(x) - f(x)] of every channel: what the swap adds to its outputs in the mean. hardness: one value, or one for
  /// each channel. Throws c10::ValueError as Histogram refuses.
  std::vector<double> expected_gaps(const std::vector<double>& hardness) const;
};

/// The pre-activations of every site of a model, in the order of find_sites. Made by ObserveActivations.
class LAMBDA_GELU_API ActivationStatistics {
 public:
  ActivationStatistics() = default;
  explicit ActivationStatistics(std::vector<SiteStatistics> sites) : sites_(std::move(sites)) {}

  const std::vector<SiteStatistics>& sites() const { return sites_; }
  /// Throws c10::ValueError for a name that is none.
  const SiteStatistics& at(const std::string& name) const;

  /// Adds what others have counted for the same model, on another rank or batch. Throws c10::ValueError that names the
  /// sites where they differ; nothing is changed then. A site that only one of them has reached is taken from there.
  void merge(const ActivationStatistics& other);

  /// Throws c10::ValueError where they cannot be used for `purpose`: no calibration data at all, sites that were never
  /// executed, NaN or infinite activations, by name.
  void require_complete(std::string_view purpose) const;
  /// Throws c10::ValueError where they are those of another model: other sites, or another number of lambda. Models
  /// that differ in neither cannot be told apart.
  void check_model(torch::nn::Module& model) const;

  /// Also torch::save(statistics, ...).
  void save(torch::serialize::OutputArchive& archive) const;
  /// Also torch::load(statistics, ...). Throws c10::ValueError for an archive of something else; nothing is changed
  /// then.
  void load(torch::serialize::InputArchive& archive);

 private:
  std::vector<SiteStatistics> sites_;
};

LAMBDA_GELU_API torch::serialize::OutputArchive& operator<<(torch::serialize::OutputArchive& archive,
                                                            const ActivationStatistics& statistics);
LAMBDA_GELU_API torch::serialize::InputArchive& operator>>(torch::serialize::InputArchive& archive,
                                                           ActivationStatistics& statistics);

struct LAMBDA_GELU_API ObserveOptions {
  /// One histogram for each channel instead of one for each site. Sites with a lambda for each channel have theirs
  /// apart in either case.
  TORCH_ARG(bool, per_channel) = false;
  /// The dimension of its input with a site's channels, by site name; by default the site's own channel_dim(). A bias
  /// correction needs the one that the next layer sums over: -1 before a Linear, 1 before a convolution.
  using ChannelDims = std::map<std::string, int64_t>;
  TORCH_ARG(ChannelDims, channel_dims);
};

/// While it lives, every site of the model counts what it is given, also under ReluSubstituted, at the cost of one pass
/// over the input (ops/observe.h). Guards may be nested, each counts everything. Copies of the model do not count. No
/// other thread may run the model meanwhile.
///
///     ObserveActivations observe(*model);
///     for (auto& batch : calibration) model->forward(batch);
///     const auto targets = suggest_targets(observe.statistics());
class LAMBDA_GELU_API ObserveActivations {
 public:
  /// Throws c10::ValueError where the model has no site, and for channel_dims of unknown sites.
  explicit ObserveActivations(torch::nn::Module& model, const ObserveOptions& options = {});
  ~ObserveActivations();
  ObserveActivations(const ObserveActivations&) = delete;
  ObserveActivations& operator=(const ObserveActivations&) = delete;

  /// What was counted until now.
  ActivationStatistics statistics() const;

 private:
  std::vector<Site> sites_;
  std::vector<std::shared_ptr<detail::SiteObserver>> observers_;
};

}  // namespace lambda_gelu
