#include <lambda_gelu/nn/param_groups.h>

#include <unordered_set>

#include "nn/modules.h"

namespace lambda_gelu {

SplitParameters split_parameters(const torch::nn::Module& model) {
  // Only looked through; torch's walk over shared_ptrs has no const version.
  const auto sites = find_modules(const_cast<torch::nn::Module&>(model));
  TORCH_CHECK_VALUE(!sites.empty(), "model must have a LambdaGELU module, ", model.name(), " has none");
  SplitParameters result;
  std::unordered_set<const at::TensorImpl*> seen;  // a shared parameter is listed under every name it has
  const auto is_new = [&](const at::Tensor& parameter) {
    return parameter.defined() && seen.insert(parameter.unsafeGetTensorImpl()).second;
  };
  for (const auto& site : sites) {
    if (is_new(site.module->raw_hardness)) result.hardness.push_back(site.module->raw_hardness);
  }
  for (const auto& parameter : model.parameters()) {
    if (is_new(parameter)) result.others.push_back(parameter);
  }
  return result;
}

}  // namespace lambda_gelu
