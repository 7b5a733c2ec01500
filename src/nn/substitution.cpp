#include <lambda_gelu/math/relu_gap.h>
#include <lambda_gelu/nn/substitution.h>

#include <algorithm>
#include <iomanip>
#include <sstream>

namespace lambda_gelu {
namespace {

SubstitutedSite describe(const Site& site) {
  at::NoGradGuard no_grad;
  const auto hardness = site.module->hardness();
  const double least = hardness.min().item<double>();
  return {site.name,      site.also_at, least, hardness.mean().item<double>(), hardness.max().item<double>(),
          gate_gap(least)};
}

std::string all_names(const SubstitutedSite& site) {
  std::string names = site.name;
  for (const auto& name : site.also_at) names += ", " + name;
  return names;
}

}  // namespace

std::ostream& operator<<(std::ostream& stream, const SubstitutionReport& report) {
  size_t width = 4;
  for (const auto& site : report.sites) width = std::max(width, all_names(site).size());
  std::ostringstream text;  // keeps the format flags of `stream` as they are
  const auto row = [&](const std::string& name, const auto&... cells) {
    text << "\n" << std::left << std::setw(static_cast<int>(width)) << name << std::right;
    ((text << std::setw(13) << cells), ...);
  };
  text << report.sites.size() << (report.sites.size() == 1 ? " site is" : " sites are") << " ReLU now"
       << std::setprecision(4);
  row("site", "hardness min", "mean", "max", "gate gap");
  for (const auto& site : report.sites) {
    row(all_names(site), site.hardness_min, site.hardness_mean, site.hardness_max, site.gate_gap);
  }
  return stream << text.str() << "\n";
}

SubstitutionReport to_relu_(torch::nn::Module& model) {
  const auto sites = find_sites(model);
  SubstitutionReport report;
  for (const auto& site : sites) report.sites.push_back(describe(site));
  for (const auto& site : sites) site.module->set_substituted(true);
  return report;
}

ReluSubstituted::ReluSubstituted(torch::nn::Module& model) : sites_(find_sites(model)) {
  for (const auto& site : sites_) ++site.module->relu_guards_;
}

ReluSubstituted::~ReluSubstituted() {
  for (const auto& site : sites_) --site.module->relu_guards_;
}

}  // namespace lambda_gelu
