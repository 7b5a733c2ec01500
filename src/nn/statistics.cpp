#include <ATen/core/grad_mode.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <lambda_gelu/nn/statistics.h>
#include <lambda_gelu/ops/observe.h>

#include <algorithm>

#include "nn/site_observer.h"
#include "nn/value_error.h"

namespace lambda_gelu {
namespace {

constexpr int64_t kMoments = 4;

std::vector<Histogram> histograms_of(const at::Tensor& counts, const at::Tensor& moments) {
  std::vector<Histogram> histograms;
  const auto bins = counts.to(at::kCPU).contiguous(), sums = moments.to(at::kCPU).contiguous();
  const auto* bin = bins.const_data_ptr<int64_t>();
  const auto* sum = sums.const_data_ptr<double>();
  for (int64_t row = 0; row < bins.size(0); ++row, bin += kHistogramBins, sum += kMoments) {
    Histogram::Counts values;
    std::copy_n(bin, kHistogramBins, values.begin());
    histograms.push_back(
        with_value_errors([&] { return Histogram(values, sum[0], sum[1], sum[2], static_cast<int64_t>(sum[3])); }));
  }
  return histograms;
}

bool is_reached(const SiteStatistics& site) {
  return std::any_of(site.channels.begin(), site.channels.end(),
                     [](const Histogram& channel) { return channel.count() + channel.nonfinite() > 0; });
}

std::string listed(const std::vector<std::string>& names) {
  std::string text;
  for (const auto& name : names) text += (text.empty() ? "'" : ", '") + name + "'";
  return text;
}

std::vector<std::string> names_of(const std::vector<SiteStatistics>& sites) {
  std::vector<std::string> names;
  for (const auto& site : sites) names.push_back(site.name);
  return names;
}

void require_names(const std::vector<std::string>& names, const std::vector<std::string>& expected) {
  TORCH_CHECK_VALUE(names == expected, "these are the statistics of another model: they have the sites ", listed(names),
                    ", expected ", listed(expected));
}

}  // namespace

namespace detail {

void SiteObserver::add(const at::Tensor& input) {
  if (channel_dim) {
    TORCH_CHECK_VALUE(*channel_dim >= -input.dim() && *channel_dim < input.dim(), "channel_dim of '", name,
                      "' must be in [", -input.dim(), ", ", input.dim() - 1, "] for an input of shape ", input.sizes(),
                      ", got ", *channel_dim);
  }
  at::NoGradGuard no_grad;
  const auto rows = channel_dim ? input.size(*channel_dim) : 1;
  if (!counts.defined()) {
    counts = at::zeros({rows, kHistogramBins}, input.options().dtype(at::kLong));
    moments = at::zeros({rows, kMoments}, input.options().dtype(at::kDouble));
  }
  TORCH_CHECK_VALUE(counts.size(0) == rows, "the input of '", name, "' had ", counts.size(0), " channels in dimension ",
                    channel_dim.value_or(0), ", and now ", rows);
  if (counts.device() != input.device()) {
    counts = counts.to(input.device());
    moments = moments.to(input.device());
  }
  observe_(input, counts, moments, channel_dim.value_or(0));
}

}  // namespace detail

std::vector<double> SiteStatistics::expected_gaps(const std::vector<double>& hardness) const {
  return with_value_errors([&] {
    if (hardness.size() != 1 && hardness.size() != channels.size()) {
      throw std::invalid_argument("hardness must have 1 or " + std::to_string(channels.size()) +
                                  " values, one for each channel of '" + name + "', got " +
                                  std::to_string(hardness.size()));
    }
    std::vector<double> gaps;
    for (size_t i = 0; i < channels.size(); ++i) {
      gaps.push_back(channels[i].expected_gap(hardness[hardness.size() == 1 ? 0 : i]));
    }
    return gaps;
  });
}

const SiteStatistics& ActivationStatistics::at(const std::string& name) const {
  const auto found =
      std::find_if(sites_.begin(), sites_.end(), [&](const SiteStatistics& site) { return site.name == name; });
  TORCH_CHECK_VALUE(found != sites_.end(), "the statistics have the sites ", listed(names_of(sites_)), ", got '", name,
                    "'");
  return *found;
}

void ActivationStatistics::merge(const ActivationStatistics& other) {
  require_names(names_of(other.sites_), names_of(sites_));
  for (size_t i = 0; i < sites_.size(); ++i) {
    const auto mine = sites_[i].channels.size(), its = other.sites_[i].channels.size();
    TORCH_CHECK_VALUE(mine == its || mine == 0 || its == 0, "'", sites_[i].name, "' has ", mine,
                      " channels here, and in the other statistics ", its);
  }
  for (size_t i = 0; i < sites_.size(); ++i) {
    auto& channels = sites_[i].channels;
    const auto& more = other.sites_[i].channels;
    if (channels.empty()) channels.resize(more.size());
    for (size_t c = 0; c < more.size(); ++c) channels[c].merge(more[c]);
  }
}

void ActivationStatistics::require_complete(std::string_view purpose) const {
  std::vector<std::string> unreached, broken;
  for (const auto& site : sites_) {
    if (!is_reached(site)) unreached.push_back(site.name);
    if (site.whole().nonfinite() > 0) broken.push_back(site.name);
  }
  TORCH_CHECK_VALUE(unreached.size() < sites_.size(), purpose,
                    ": there is no calibration data, no site was executed while it was observed");
  TORCH_CHECK_VALUE(unreached.empty(), purpose, ": never executed while it was observed: ", listed(unreached));
  TORCH_CHECK_VALUE(broken.empty(), purpose, ": activations that are NaN or infinite at ", listed(broken));
}

void ActivationStatistics::check_model(torch::nn::Module& model) const {
  const auto sites = find_sites(model);
  std::vector<std::string> names;
  for (const auto& site : sites) names.push_back(site.name);
  require_names(names_of(sites_), names);
  for (size_t i = 0; i < sites.size(); ++i) {
    const auto count = static_cast<size_t>(sites[i].module->num_parameters());
    TORCH_CHECK_VALUE(count == 1 || sites_[i].channels.empty() || sites_[i].channels.size() == count,
                      "these are the statistics of another model: '", names[i], "' has ", count,
                      " lambda, and they have ", sites_[i].channels.size(), " channels");
  }
}

void ActivationStatistics::save(torch::serialize::OutputArchive& archive) const {
  c10::List<std::string> names;
  c10::List<int64_t> rows;
  std::vector<at::Tensor> counts{at::empty({0, kHistogramBins}, at::kLong)},
      moments{at::empty({0, kMoments}, at::kDouble)};
  for (const auto& site : sites_) {
    names.push_back(site.name);
    rows.push_back(static_cast<int64_t>(site.channels.size()));
    for (const auto& channel : site.channels) {
      counts.push_back(at::empty({1, kHistogramBins}, at::kLong));
      std::copy(channel.counts().begin(), channel.counts().end(), counts.back().mutable_data_ptr<int64_t>());
      moments.push_back(at::empty({1, kMoments}, at::kDouble));
      const double sums[] = {channel.sum(), channel.sq_sum(), channel.sq_sum_relu(),
                             static_cast<double>(channel.nonfinite())};
      std::copy(std::begin(sums), std::end(sums), moments.back().mutable_data_ptr<double>());
    }
  }
  archive.write("sites", names);
  archive.write("channels", rows);
  archive.write("counts", at::cat(counts), /*is_buffer=*/true);
  archive.write("moments", at::cat(moments), /*is_buffer=*/true);
}

void ActivationStatistics::load(torch::serialize::InputArchive& archive) {
  c10::IValue names, rows;
  at::Tensor counts, moments;
  const bool is_whole = archive.try_read("sites", names) && archive.try_read("channels", rows) &&
                        archive.try_read("counts", counts, true) && archive.try_read("moments", moments, true);
  TORCH_CHECK_VALUE(is_whole && names.isList() && rows.isIntList(), "this archive has no ActivationStatistics");
  const auto sites = names.toListRef();
  const auto channels = rows.toIntVector();
  int64_t total = 0;
  for (const auto count : channels) total += count;
  TORCH_CHECK_VALUE(sites.size() == channels.size() && counts.scalar_type() == at::kLong &&
                        counts.sizes() == at::IntArrayRef({total, kHistogramBins}) &&
                        moments.scalar_type() == at::kDouble && moments.sizes() == at::IntArrayRef({total, kMoments}),
                    "this archive has no ActivationStatistics: counts of shape ", counts.sizes(), " for ", total,
                    " channels of ", sites.size(), " sites");
  std::vector<SiteStatistics> loaded;
  int64_t first = 0;
  for (size_t i = 0; i < channels.size(); ++i) {
    loaded.push_back({sites[i].toStringRef(),
                      histograms_of(counts.narrow(0, first, channels[i]), moments.narrow(0, first, channels[i]))});
    first += channels[i];
  }
  sites_ = std::move(loaded);
}

torch::serialize::OutputArchive& operator<<(torch::serialize::OutputArchive& archive,
                                            const ActivationStatistics& statistics) {
  statistics.save(archive);
  return archive;
}

torch::serialize::InputArchive& operator>>(torch::serialize::InputArchive& archive, ActivationStatistics& statistics) {
  statistics.load(archive);
  return archive;
}

ObserveActivations::ObserveActivations(torch::nn::Module& model, const ObserveOptions& options)
    : sites_(find_sites(model)) {
  for (const auto& [name, dim] : options.channel_dims()) {
    std::vector<std::string> names;
    for (const auto& site : sites_) names.push_back(site.name);
    TORCH_CHECK_VALUE(std::find(names.begin(), names.end(), name) != names.end(), "channel_dims must name the sites ",
                      listed(names), ", got '", name, "'");
  }
  for (const auto& site : sites_) {
    auto observer = std::make_shared<detail::SiteObserver>();
    observer->name = site.name;
    const auto given = options.channel_dims().find(site.name);
    if (given != options.channel_dims().end()) {
      observer->channel_dim = given->second;
    } else if (options.per_channel() || site.module->num_parameters() > 1) {
      observer->channel_dim = site.module->channel_dim();
    }
    observers_.push_back(std::move(observer));
  }
  for (size_t i = 0; i < sites_.size(); ++i) sites_[i].module->observers_.push_back(observers_[i]);
}

ObserveActivations::~ObserveActivations() {
  for (size_t i = 0; i < sites_.size(); ++i) std::erase(sites_[i].module->observers_, observers_[i]);
}

ActivationStatistics ObserveActivations::statistics() const {
  std::vector<SiteStatistics> sites;
  for (const auto& observer : observers_) {
    sites.push_back({observer->name, {}});
    if (observer->counts.defined()) sites.back().channels = histograms_of(observer->counts, observer->moments);
  }
  return ActivationStatistics(std::move(sites));
}

}  // namespace lambda_gelu
