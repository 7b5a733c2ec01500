#include <ATen/ATen.h>
#include <lambda_gelu/nn/bias_correction.h>
#include <lambda_gelu/nn/statistics.h>
#include <lambda_gelu/nn/substitution.h>
#include <torch/nn/modules/batchnorm.h>
#include <torch/nn/modules/conv.h>

#include <limits>

#include "support.h"

namespace lambda_gelu {
namespace {

const std::vector<double> kGap = {0.1, 0, 0.3, 0.02};

// What is added to every element of channel c of an input of these sizes.
at::Tensor shift(at::IntArrayRef sizes) {
  std::vector<int64_t> shape(sizes.size(), 1);
  shape[1] = 4;
  return tensor_of(kGap, at::kDouble).view(shape).expand(sizes);
}

// The correction takes out exactly what the shift puts in, away from padding.
template <class Module>
void expect_exact(Module& module, at::IntArrayRef sizes) {
  module->to(at::kDouble);
  const auto x = at::randn(sizes, at::kDouble);
  const auto expected = module->forward(x).detach();
  correct_bias_(*module, kGap);
  expect_close(module->forward(x + shift(sizes)).detach(), expected, 0, 1e-12);
}

TEST(CorrectBias, TakesTheMeanGapOutOfWhatTheNextLayerComputes) {
  at::manual_seed(0);
  torch::nn::Linear linear(4, 3);
  expect_exact(linear, {7, 4});
  torch::nn::Conv1d conv1d(torch::nn::Conv1dOptions(4, 6, 3).groups(2));
  expect_exact(conv1d, {2, 4, 9});
  torch::nn::Conv2d conv2d(torch::nn::Conv2dOptions(4, 4, {3, 2}).groups(4).stride(2).dilation(2));
  expect_exact(conv2d, {2, 4, 9, 8});
  torch::nn::Conv3d conv3d(torch::nn::Conv3dOptions(4, 5, 2));
  expect_exact(conv3d, {2, 4, 3, 4, 5});
  torch::nn::BatchNorm1d norm1d(4);
  torch::nn::BatchNorm2d norm2d(4);
  norm2d->forward(at::randn({5, 4, 3, 3}));  // running statistics that are not 0 and 1
  norm1d->eval();
  norm2d->eval();
  expect_exact(norm1d, {6, 4});
  expect_exact(norm2d, {6, 4, 3, 2});
}

TEST(CorrectBias, RollsBackToTheLastBit) {
  at::manual_seed(0);
  torch::nn::Linear linear(4, 3);
  const auto before = linear->bias.detach().clone();
  auto correction = correct_bias_(*linear, {0.1, 0.7, 0.3, 1e-3});
  EXPECT_FALSE(at::equal(linear->bias, before));
  correction.rollback();
  expect_same(linear->bias.detach(), before);
}

// A network that was never hardened: most of what the swap costs is the shift.
TEST(CorrectBias, UndoesMostOfWhatASwapWithoutHardeningCosts) {
  at::manual_seed(0);
  auto model = make_mlp();
  const auto x = at::randn({2000, 3});
  const auto expected = model->forward(x).detach();
  ActivationStatistics statistics;
  {
    ObserveActivations observe(*model, ObserveOptions().per_channel(true).channel_dims({{"1", -1}, {"3", -1}}));
    model->forward(x);
    statistics = observe.statistics();
  }
  const double hardness = site_of(model, 1).hardness().item<double>();
  to_relu_(*model, statistics);
  const auto error = [&] { return (model->forward(x).detach() - expected).square().mean().item<double>(); };
  const double swapped = error();
  correct_bias_(*model->ptr(2), statistics.at("1").expected_gaps({hardness}));
  correct_bias_(*model->ptr(4), statistics.at("3").expected_gaps({hardness}));
  EXPECT_LT(error(), swapped / 3);
}

TEST(CorrectBias, RefusesAndChangesNothing) {
  torch::nn::Linear linear(4, 3);
  const auto before = linear->bias.detach().clone();
  expect_value_error([&] { correct_bias_(*linear, {1, 2}); }, "expected_gap", "4 values", "got 2");
  expect_value_error([&] { correct_bias_(*linear, {1, 2, 3, std::numeric_limits<double>::quiet_NaN()}); },
                     "expected_gap", "finite");
  expect_same(linear->bias.detach(), before);
  torch::nn::Linear bare(torch::nn::LinearOptions(4, 3).bias(false));
  expect_value_error([&] { correct_bias_(*bare, kGap); }, "bias", "has none");
  torch::nn::BatchNorm1d norm(torch::nn::BatchNorm1dOptions(4).track_running_stats(false));
  expect_value_error([&] { correct_bias_(*norm, kGap); }, "running statistics", "has none");
  LambdaGELU other;
  expect_value_error([&] { correct_bias_(*other, kGap); }, "successor", "Linear, Conv1d", "LambdaGELU");
}

}  // namespace
}  // namespace lambda_gelu
