#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mv.h>
#include <lambda_gelu/nn/bias_correction.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/conv.h>
#include <torch/nn/modules/linear.h>

#include <algorithm>
#include <cmath>

namespace lambda_gelu {
namespace {

void require_values(const torch::nn::Module& successor, size_t given, int64_t channels) {
  TORCH_CHECK_VALUE(static_cast<int64_t>(given) == channels, "expected_gap must have ", channels,
                    " values, one for each input channel of ", successor.name(), ", got ", given);
}

at::Tensor bias_of(const torch::nn::Module& successor, const at::Tensor& bias) {
  TORCH_CHECK_VALUE(bias.defined(), "successor must have a bias to correct, this ", successor.name(), " has none");
  return bias;
}

// (output channels, input channels of its group): what one unit at an input channel adds far from the border.
at::Tensor gains(const at::Tensor& weight) {
  return weight.to(at::kDouble).flatten(2).sum(2);
}

// The output's change by `gap` at the inputs, with as many groups as the weight's shape says.
at::Tensor response(const at::Tensor& gains, const at::Tensor& gap, int64_t groups) {
  const auto outputs = gains.size(0) / groups, inputs = gains.size(1);
  return at::matmul(gains.view({groups, outputs, inputs}), gap.view({groups, inputs, 1})).flatten();
}

template <class Conv>
bool correct_conv(torch::nn::Module& successor, const at::Tensor& gap, at::Tensor& target, at::Tensor& change) {
  auto* conv = successor.as<Conv>();
  if (!conv) return false;
  require_values(successor, static_cast<size_t>(gap.numel()), conv->options.in_channels());
  target = bias_of(successor, conv->bias);
  change = -response(gains(conv->weight), gap.to(target.device()), conv->options.groups());
  return true;
}

template <class Norm>
bool correct_norm(torch::nn::Module& successor, const at::Tensor& gap, at::Tensor& target, at::Tensor& change) {
  auto* norm = successor.as<Norm>();
  if (!norm) return false;
  require_values(successor, static_cast<size_t>(gap.numel()), norm->options.num_features());
  TORCH_CHECK_VALUE(norm->running_mean.defined(), "successor must have running statistics to correct, this ",
                    successor.name(), " has none");
  target = norm->running_mean;
  change = gap.to(target.device());
  return true;
}

bool correct_linear(torch::nn::Module& successor, const at::Tensor& gap, at::Tensor& target, at::Tensor& change) {
  auto* linear = successor.as<torch::nn::LinearImpl>();
  if (!linear) return false;
  require_values(successor, static_cast<size_t>(gap.numel()), linear->options.in_features());
  target = bias_of(successor, linear->bias);
  change = -at::mv(linear->weight.to(at::kDouble), gap.to(target.device()));
  return true;
}

}  // namespace

void BiasCorrection::rollback() {
  at::NoGradGuard no_grad;
  corrected_.copy_(before_);
}

BiasCorrection correct_bias_(torch::nn::Module& successor, const std::vector<double>& expected_gap) {
  at::NoGradGuard no_grad;
  TORCH_CHECK_VALUE(std::all_of(expected_gap.begin(), expected_gap.end(), [](double x) { return std::isfinite(x); }),
                    "expected_gap must be finite, got values that are not");
  auto gap = at::empty({static_cast<int64_t>(expected_gap.size())}, at::kDouble);
  std::copy(expected_gap.begin(), expected_gap.end(), gap.mutable_data_ptr<double>());
  at::Tensor target, change;
  const bool known = correct_linear(successor, gap, target, change) ||
                     correct_conv<torch::nn::Conv1dImpl>(successor, gap, target, change) ||
                     correct_conv<torch::nn::Conv2dImpl>(successor, gap, target, change) ||
                     correct_conv<torch::nn::Conv3dImpl>(successor, gap, target, change) ||
                     correct_norm<torch::nn::BatchNorm1dImpl>(successor, gap, target, change) ||
                     correct_norm<torch::nn::BatchNorm2dImpl>(successor, gap, target, change) ||
                     correct_norm<torch::nn::BatchNorm3dImpl>(successor, gap, target, change);
  TORCH_CHECK_VALUE(known, "successor must be a Linear, Conv1d to Conv3d or BatchNorm1d to BatchNorm3d, got ",
                    successor.name());
  BiasCorrection correction(target, target.detach().clone());
  target.copy_(target.to(at::kDouble) + change);  // rounded once
  return correction;
}

}  // namespace lambda_gelu
