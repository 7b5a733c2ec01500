#include <ATen/ATen.h>
#include <lambda_gelu/math/hardness.h>
#include <lambda_gelu/nn/init.h>
#include <lambda_gelu/nn/sites.h>

#include <algorithm>
#include <cmath>
#include <numbers>

namespace lambda_gelu {
namespace {

std::vector<double> profile(std::string_view mode, double low, double high, size_t count) {
  if (mode == "uniform") return std::vector<double>(count, 1 + std::numbers::ln2);
  const double first = mode == "increasing" ? low : high, last = mode == "increasing" ? high : low;
  std::vector<double> values;
  for (size_t i = 0; i < count; ++i) {
    values.push_back(
        std::lerp(first, last, static_cast<double>(i) / static_cast<double>(std::max<size_t>(count - 1, 1))));
  }
  return values;
}

}  // namespace

std::vector<std::pair<std::string, double>> init_hardness_(torch::nn::Module& model, std::string_view mode, double low,
                                                           double high) {
  TORCH_CHECK_VALUE(mode == "uniform" || mode == "increasing" || mode == "decreasing",
                    "mode must be 'uniform', 'increasing' or 'decreasing', got '", mode, "'");
  TORCH_CHECK_VALUE(1 < low && low <= high && std::isfinite(high),
                    "low and high must be finite with 1 < low <= high, got ", low, " and ", high);
  const auto sites = find_sites(model);
  for (const auto& site : sites) {
    TORCH_CHECK_VALUE(!site.module->is_frozen(), "hardness must be learned at every site, it is frozen at '", site.name,
                      "'; unfreeze_hardness() first");
    const auto dtype = site.module->raw_hardness.scalar_type();
    const auto raw = at::full({1}, raw_from_hardness(high, site.module->temperature()), at::dtype(at::kDouble));
    TORCH_CHECK_VALUE(at::isfinite(raw.to(dtype)).item<bool>(), "high must be in the range of ", dtype, " at '",
                      site.name, "', got ", high);
  }
  const auto values = profile(mode, low, high, sites.size());
  std::vector<std::pair<std::string, double>> result;
  for (size_t i = 0; i < sites.size(); ++i) {
    sites[i].module->set_hardness(values[i]);
    result.emplace_back(sites[i].name, values[i]);
  }
  return result;
}

}  // namespace lambda_gelu
