#include <lambda_gelu/nn/sites.h>

#include <algorithm>

#include "nn/modules.h"

namespace lambda_gelu {
namespace {

std::shared_ptr<LambdaGELUImpl> shared(LambdaGELUImpl& module) {
  if (auto owned = std::dynamic_pointer_cast<LambdaGELUImpl>(module.weak_from_this().lock())) return owned;
  return {std::shared_ptr<void>(), &module};  // owned by the caller
}

}  // namespace

std::vector<Site> find_modules(torch::nn::Module& model) {
  std::vector<Site> sites;
  if (auto* module = model.as<LambdaGELUImpl>()) sites.push_back({"", {}, shared(*module)});
  for (const auto& item : model.named_modules(/*name_prefix=*/"", /*include_self=*/false)) {
    auto module = std::dynamic_pointer_cast<LambdaGELUImpl>(item.value());
    if (!module) continue;
    const auto known =
        std::find_if(sites.begin(), sites.end(), [&](const Site& site) { return site.module == module; });
    if (known == sites.end()) {
      sites.push_back({item.key(), {}, std::move(module)});
    } else {
      known->also_at.push_back(item.key());
    }
  }
  return sites;
}

std::vector<Site> find_sites(torch::nn::Module& model) {
  auto sites = find_modules(model);
  const auto substituted = std::erase_if(sites, [](const Site& site) { return site.module->is_substituted(); });
  TORCH_CHECK_VALUE(!sites.empty() || substituted == 0, "model must have a LambdaGELU module that is not substituted, ",
                    model.name(), " is substituted already: its ", substituted, " are ReLU");
  TORCH_CHECK_VALUE(!sites.empty(), "model must have a LambdaGELU module, ", model.name(), " has none");
  return sites;
}

}  // namespace lambda_gelu
