#include <lambda_gelu/nn/param_groups.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>

#include <limits>
#include <map>

#include "support.h"

namespace lambda_gelu {
namespace {

using namespace torch::optim;

template <typename OptimizerType, typename OptionsType>
struct Case {
  using Optimizer = OptimizerType;
  using Options = OptionsType;
};
template <typename T>
class ParamGroups : public testing::Test {};
using Optimizers = testing::Types<Case<SGD, SGDOptions>, Case<Adam, AdamOptions>, Case<AdamW, AdamWOptions>,
                                  Case<RMSprop, RMSpropOptions>>;
TYPED_TEST_SUITE(ParamGroups, Optimizers);

template <typename Options>
const Options& options_of(const OptimizerParamGroup& group) {
  return static_cast<const Options&>(group.options());
}

TYPED_TEST(ParamGroups, EveryParameterOnceAndTheHardnessApart) {
  auto model = make_mlp();
  const auto groups = make_param_groups(*model, typename TypeParam::Options(0.01));
  ASSERT_EQ(groups.size(), 2);
  std::map<const at::TensorImpl*, int> group_of;
  for (int i = 0; i < 2; ++i) {
    for (const auto& parameter : groups[i].params()) {
      EXPECT_TRUE(group_of.emplace(parameter.unsafeGetTensorImpl(), i).second) << "listed twice";
    }
  }
  EXPECT_EQ(group_of.size(), model->parameters().size());
  for (const auto& item : model->named_parameters()) {
    const bool is_hardness = item.key().ends_with("raw_hardness");
    EXPECT_EQ(group_of.at(item.value().unsafeGetTensorImpl()), is_hardness ? 1 : 0) << item.key();
  }
}

TYPED_TEST(ParamGroups, TheHardnessLearnsFasterAndDoesNotDecay) {
  using Options = typename TypeParam::Options;
  auto model = make_mlp();
  const auto groups =
      make_param_groups(*model, Options(0.02).weight_decay(0.3), HardnessGroupOptions().lr_multiplier(5));
  EXPECT_EQ(options_of<Options>(groups[0]).lr(), 0.02);
  EXPECT_EQ(options_of<Options>(groups[0]).weight_decay(), 0.3);
  EXPECT_DOUBLE_EQ(options_of<Options>(groups[1]).lr(), 0.1);
  EXPECT_LE(options_of<Options>(groups[1]).weight_decay(), std::numeric_limits<double>::denorm_min());
}

// What the optimizer itself makes of the groups, which it merges with its own options.
TYPED_TEST(ParamGroups, TheOptimizerKeepsTheLearningRates) {
  using Options = typename TypeParam::Options;
  for (double lr : {1e-4, 1e-3, 0.02}) {  // ten times the first and the second are built-in defaults
    auto model = make_mlp();
    const auto options = Options(lr).weight_decay(0.3);
    typename TypeParam::Optimizer optimizer(make_param_groups(*model, options), options);
    EXPECT_DOUBLE_EQ(optimizer.param_groups()[0].options().get_lr(), lr);
    EXPECT_DOUBLE_EQ(optimizer.param_groups()[1].options().get_lr(), 10 * lr);
  }
}

// With zero gradients only weight decay moves anything.
TYPED_TEST(ParamGroups, WeightDecayOfTheOptimizerNeverReachesTheHardness) {
  for (auto dtype : {at::kFloat, at::kDouble}) {
    auto model = make_mlp();
    model->to(dtype);
    site_of(model, 1).set_hardness(1.9);
    const auto raw = site_of(model, 1).raw_hardness.detach().clone();
    const auto weight = model->parameters()[0].detach().clone();
    const auto options = typename TypeParam::Options(0.1).weight_decay(0.5);
    typename TypeParam::Optimizer optimizer(make_param_groups(*model, options), options);
    for (auto& parameter : model->parameters()) parameter.mutable_grad() = at::zeros_like(parameter);
    for (int i = 0; i < 3; ++i) optimizer.step();
    expect_same(site_of(model, 1).raw_hardness.detach(), raw);
    EXPECT_FALSE(at::equal(model->parameters()[0], weight));
  }
}

TYPED_TEST(ParamGroups, WithoutAMultiplierTheHardnessDoesNotLearn) {
  auto model = make_mlp();
  const auto options = typename TypeParam::Options(0.1);
  const auto raw = site_of(model, 1).raw_hardness.detach().clone();
  typename TypeParam::Optimizer optimizer(make_param_groups(*model, options, HardnessGroupOptions().lr_multiplier(0)),
                                          options);
  model->forward(at::randn({4, 3})).sum().backward();
  optimizer.step();
  expect_same(site_of(model, 1).raw_hardness.detach(), raw);
}

TYPED_TEST(ParamGroups, RefusesWhatHasNoMeaning) {
  using Options = typename TypeParam::Options;
  torch::nn::Sequential without(torch::nn::Linear(2, 2));
  expect_value_error([&] { make_param_groups(*without, Options(0.1)); }, "LambdaGELU", "has none");
  auto model = make_mlp();
  for (double value : {-1.0, std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN()}) {
    expect_value_error([&] { make_param_groups(*model, Options(value)); }, "lr must be finite and not negative", "got");
    expect_value_error([&] { make_param_groups(*model, Options(0.1), HardnessGroupOptions().lr_multiplier(value)); },
                       "lr_multiplier must be finite and not negative", "got");
  }
}

TEST(ParamGroups, OtherOptionsAreTheSameInBothGroups) {
  auto model = make_mlp();
  const auto options = SGDOptions(0.1).momentum(0.9).dampening(0.2);
  for (const auto& group : make_param_groups(*model, options)) {
    EXPECT_EQ(options_of<SGDOptions>(group).momentum(), 0.9);
    EXPECT_EQ(options_of<SGDOptions>(group).dampening(), 0.2);
  }
}

TEST(ParamGroups, ASharedModuleIsListedOnce) {
  LambdaGELU site;
  torch::nn::Linear linear(2, 2);
  torch::nn::Sequential model(linear, site, linear, site);
  const auto groups = make_param_groups(*model, AdamOptions());
  EXPECT_EQ(groups[0].params().size(), 2);
  EXPECT_EQ(groups[1].params().size(), 1);
}

TEST(ParamGroups, AModelOfHardnessOnlyHasOneGroup) {
  LambdaGELU site;
  const auto groups = make_param_groups(*site, AdamOptions());
  ASSERT_EQ(groups.size(), 1);
  EXPECT_EQ(groups[0].params()[0].unsafeGetTensorImpl(), site->raw_hardness.unsafeGetTensorImpl());
}

TEST(ParamGroups, ASubstitutedSiteKeepsItsPlace) {
  auto model = make_mlp();
  site_of(model, 1).set_substituted(true);
  EXPECT_EQ(make_param_groups(*model, AdamOptions())[1].params().size(), 2);
}

}  // namespace
}  // namespace lambda_gelu
