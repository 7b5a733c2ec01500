#pragma once

#include <c10/util/Exception.h>
#include <lambda_gelu/export.h>
#include <torch/nn/module.h>
#include <torch/optim/optimizer.h>

#include <cmath>
#include <limits>
#include <memory>
#include <type_traits>
#include <vector>

namespace lambda_gelu {

struct HardnessGroupOptions {
  /// alpha: s learns with lr * lr_multiplier. Finite and not negative (the default is ours). It does not transfer
  /// between optimizers: a step of SGD moves lambda in proportion to alpha, lr and its gradient, one of Adam in
  /// proportion to alpha and lr.
  TORCH_ARG(double, lr_multiplier) = 10.0;
};

/// Every parameter of a model once, those of its LambdaGELU modules apart.
struct SplitParameters {
  std::vector<at::Tensor> hardness;  ///< raw_hardness of every LambdaGELU
  std::vector<at::Tensor> others;
};
/// Throws c10::ValueError where the model has no LambdaGELU.
LAMBDA_GELU_API SplitParameters split_parameters(const torch::nn::Module& model);

namespace detail {

/// torch::optim::Optimizer replaces a field of a group that equals the field's built-in default by the value in the
/// optimizer's own options (optimizer.h, "constructor-default comparison"). An explicit value that happens to equal the
/// built-in default therefore has to be moved by the least amount to be respected.
template <typename Options>
Options hardness_group_options(const Options& options, double lr_multiplier) {
  double built_in_lr = 1e-3;
  if constexpr (std::is_default_constructible_v<Options>) built_in_lr = Options().lr();
  double lr = options.lr() * lr_multiplier;
  if (lr == built_in_lr) lr = std::nextafter(lr, 1.0);
  // No decay at all: the smallest double is 0 once it meets a float32 parameter, and changes no float64 one.
  const bool zero_is_built_in = Options(built_in_lr).weight_decay() == 0;
  const double weight_decay = zero_is_built_in ? std::numeric_limits<double>::denorm_min() : 0.0;
  Options result = options;
  result.lr(lr).weight_decay(weight_decay);
  return result;
}

}  // namespace detail

/// Parameter groups for an optimizer: all other parameters with `options`, then the hardness of every LambdaGELU with
/// options.lr() * lr_multiplier and without weight decay (arXiv 2603.21991: its own learning rate, no weight decay).
/// Every parameter is in exactly one group, once; an empty group is left out.
///
/// Options: torch::optim::SGDOptions, AdamOptions, AdamWOptions or RMSpropOptions. Give the same `options` to the
/// optimizer's constructor. Its weight decay never reaches the hardness.
/// Throws c10::ValueError for a model without a LambdaGELU and for a learning rate or multiplier that is negative or
/// not finite.
template <typename Options>
std::vector<torch::optim::OptimizerParamGroup> make_param_groups(const torch::nn::Module& model, const Options& options,
                                                                 const HardnessGroupOptions& hardness_options = {}) {
  const double multiplier = hardness_options.lr_multiplier();
  TORCH_CHECK_VALUE(std::isfinite(options.lr()) && options.lr() >= 0, "lr must be finite and not negative, got ",
                    options.lr());
  TORCH_CHECK_VALUE(std::isfinite(multiplier) && multiplier >= 0, "lr_multiplier must be finite and not negative, got ",
                    multiplier);
  auto parameters = split_parameters(model);
  std::vector<torch::optim::OptimizerParamGroup> groups;
  if (!parameters.others.empty()) {
    groups.emplace_back(std::move(parameters.others), std::make_unique<Options>(options));
  }
  groups.emplace_back(std::move(parameters.hardness),
                      std::make_unique<Options>(detail::hardness_group_options(options, multiplier)));
  return groups;
}

}  // namespace lambda_gelu
