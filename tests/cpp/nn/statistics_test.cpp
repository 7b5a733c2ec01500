#include <ATen/ATen.h>
#include <lambda_gelu/nn/hardness_scheduler.h>
#include <lambda_gelu/nn/statistics.h>
#include <lambda_gelu/nn/substitution.h>
#include <lambda_gelu/nn/targets.h>

#include <cmath>
#include <limits>

#include "support.h"

namespace lambda_gelu {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// What a site is given, counted value by value.
Histogram histogram_of(const at::Tensor& x) {
  const auto values = x.detach().to(at::kDouble).flatten().contiguous();
  Histogram histogram;
  for (int64_t i = 0; i < values.numel(); ++i) histogram.add(values.const_data_ptr<double>()[i]);
  return histogram;
}

void expect_same_histogram(const Histogram& value, const Histogram& expected) {
  EXPECT_EQ(value.counts(), expected.counts());
  EXPECT_EQ(value.nonfinite(), expected.nonfinite());
  EXPECT_NEAR(value.sum(), expected.sum(), 1e-9);
  EXPECT_NEAR(value.sq_sum(), expected.sq_sum(), 1e-9);
  EXPECT_NEAR(value.sq_sum_relu(), expected.sq_sum_relu(), 1e-9);
}

// The pre-activations of both sites of make_mlp().
std::pair<at::Tensor, at::Tensor> pre_activations(torch::nn::Sequential& model, const at::Tensor& x) {
  const auto first = model->ptr(0)->as<torch::nn::LinearImpl>()->forward(x);
  const auto second = model->ptr(2)->as<torch::nn::LinearImpl>()->forward(site_of(model, 1).forward(first));
  return {first, second};
}

ActivationStatistics observed(torch::nn::Sequential& model, const at::Tensor& x, const ObserveOptions& options = {}) {
  ObserveActivations observe(*model, options);
  model->forward(x);
  return observe.statistics();
}

TEST(ObserveActivations, CountsWhatEverySiteIsGivenWhileItLives) {
  at::manual_seed(0);
  auto model = make_mlp();
  const auto x = at::randn({40, 3}), y = at::randn({30, 3});
  const auto [first, second] = pre_activations(model, at::cat({x, y}));
  ActivationStatistics statistics;
  {
    ObserveActivations observe(*model);
    model->forward(x);
    model->forward(y);
    statistics = observe.statistics();
  }
  model->forward(x);  // counts nowhere
  ASSERT_EQ(statistics.sites().size(), 2);
  EXPECT_EQ(statistics.sites()[0].name, "1");
  ASSERT_EQ(statistics.at("3").channels.size(), 1);
  expect_same_histogram(statistics.at("1").whole(), histogram_of(first));
  expect_same_histogram(statistics.at("3").whole(), histogram_of(second));
}

TEST(ObserveActivations, PerChannelCountsEveryChannelApart) {
  at::manual_seed(0);
  auto model = make_mlp();
  const auto x = at::randn({40, 3});
  const auto [first, second] = pre_activations(model, x);
  const auto statistics = observed(model, x, ObserveOptions().per_channel(true).channel_dims({{"3", -1}}));
  for (const auto& [name, input] : {std::pair(std::string("1"), first), std::pair(std::string("3"), second)}) {
    ASSERT_EQ(statistics.at(name).channels.size(), 5);
    for (int64_t c = 0; c < 5; ++c)
      expect_same_histogram(statistics.at(name).channels[c], histogram_of(input.select(1, c)));
  }
}

TEST(ObserveActivations, SiteWithALambdaForEachChannelHasTheirHistogramsApart) {
  auto model = make_mlp(LambdaGELUOptions(5));
  EXPECT_EQ(observed(model, at::randn({7, 3})).at("1").channels.size(), 5);
}

TEST(ObserveActivations, LeavesOutputAndGradientsAloneAndIsNotCopied) {
  at::manual_seed(0);
  auto model = make_mlp();
  const auto x = at::randn({8, 3});
  const auto expected = model->forward(x).detach();
  ObserveActivations observe(*model);
  const auto copy = std::dynamic_pointer_cast<torch::nn::SequentialImpl>(model->clone());
  copy->forward(x);
  const auto y = model->forward(x);
  expect_same(y.detach(), expected);
  y.sum().backward();
  EXPECT_EQ(observe.statistics().at("1").whole().count(), 8 * 5);
}

TEST(ObserveActivations, NestedGuardsAndGuardsOfReluCountToo) {
  auto model = make_mlp();
  const auto x = at::randn({8, 3});
  ObserveActivations outer(*model);
  model->forward(x);
  {
    ObserveActivations inner(*model);
    const ReluSubstituted relu(*model);
    model->forward(x);
    EXPECT_EQ(inner.statistics().at("1").whole().count(), 40);
  }
  model->forward(x);
  EXPECT_EQ(outer.statistics().at("1").whole().count(), 120);
}

TEST(ObserveActivations, RefusesWhatItCannotObserve) {
  auto model = make_mlp();
  expect_value_error([&] { ObserveActivations(*model, ObserveOptions().channel_dims({{"7", 1}})); }, "channel_dims",
                     "'1', '3'", "got '7'");
  torch::nn::Linear none(2, 2);
  expect_value_error([&] { ObserveActivations observe(*none); }, "LambdaGELU", "none");
  ObserveActivations observe(*model, ObserveOptions().per_channel(true).channel_dims({{"1", 2}}));
  expect_value_error([&] { model->forward(at::ones({2, 3})); }, "channel_dim of '1'", "[-2, 1]", "got 2");
}

TEST(ObserveActivations, RefusesAnotherNumberOfChannels) {
  LambdaGELU site;
  ObserveActivations observe(*site, ObserveOptions().per_channel(true));
  site(at::ones({2, 3}));
  expect_value_error([&] { site(at::ones({2, 4})); }, "3 channels in dimension 1", "now 4");
  EXPECT_EQ(observe.statistics().sites()[0].whole().count(), 6);
}

TEST(ActivationStatistics, MergeAddsWhatOthersHaveSeen) {
  at::manual_seed(0);
  auto model = make_mlp();
  const auto x = at::randn({40, 3}), y = at::randn({30, 3});
  auto statistics = observed(model, x);
  statistics.merge(observed(model, y));
  expect_same_histogram(statistics.at("3").whole(), observed(model, at::cat({x, y})).at("3").whole());

  ActivationStatistics empty({{"1", {}}, {"3", {}}});
  empty.merge(statistics);
  expect_same_histogram(empty.at("1").whole(), statistics.at("1").whole());
}

TEST(ActivationStatistics, MergeRefusesThoseOfAnotherModelAndChangesNothing) {
  auto model = make_mlp();
  auto statistics = observed(model, at::randn({4, 3}));
  const auto before = statistics.at("1").whole().counts();
  torch::nn::Sequential other(torch::nn::Linear(3, 5), LambdaGELU());
  expect_value_error([&] { statistics.merge(observed(other, at::randn({4, 3}))); }, "another model", "'1'", "'3'");
  expect_value_error([&] { statistics.merge(observed(model, at::randn({4, 3}), ObserveOptions().per_channel(true))); },
                     "'1' has 1 channels", "5");
  EXPECT_EQ(statistics.at("1").whole().counts(), before);
}

TEST(ActivationStatistics, RoundTripThroughAnArchive) {
  auto model = make_mlp();
  const auto statistics = observed(model, at::randn({40, 3}), ObserveOptions().per_channel(true));
  ActivationStatistics loaded;
  load_from(saved(statistics), loaded);
  ASSERT_EQ(loaded.sites().size(), 2);
  for (const std::string name : {"1", "3"}) {
    ASSERT_EQ(loaded.at(name).channels.size(), 5);
    for (size_t c = 0; c < 5; ++c) {
      EXPECT_EQ(loaded.at(name).channels[c].counts(), statistics.at(name).channels[c].counts());
      EXPECT_EQ(loaded.at(name).channels[c].sum(), statistics.at(name).channels[c].sum());
      EXPECT_EQ(loaded.at(name).channels[c].ser_db(2), statistics.at(name).channels[c].ser_db(2));
    }
  }
  const auto before = saved(loaded);
  expect_value_error([&] { load_from(saved(tensor_of({1, 2})), loaded); }, "no ActivationStatistics");
  EXPECT_EQ(saved(loaded).size(), before.size());
}

TEST(ActivationStatistics, RefuseWhatTheyCannotBeUsedFor) {
  auto model = make_mlp();
  ActivationStatistics none;
  {
    ObserveActivations observe(*model);
    none = observe.statistics();
  }
  expect_value_error([&] { none.require_complete("targets"); }, "targets", "no calibration data");
  ActivationStatistics part({{"1", {histogram_of(at::randn({9}))}}, {"3", {}}});
  expect_value_error([&] { part.require_complete("targets"); }, "never executed", "'3'");
  const auto broken = observed(model, at::full({2, 3}, kNaN));
  expect_value_error([&] { broken.require_complete("targets"); }, "NaN or infinite", "'1', '3'");
  expect_value_error([&] { part.at("2"); }, "'1', '3'", "got '2'");
  expect_value_error([&] { part.at("1").expected_gaps({1, 2}); }, "hardness", "'1'", "got 2");
}

TEST(ActivationStatistics, AreCheckedAgainstTheModel) {
  auto model = make_mlp();
  const auto statistics = observed(model, at::randn({4, 3}));
  statistics.check_model(*model);
  torch::nn::Sequential other{LambdaGELU(), LambdaGELU()};
  expect_value_error([&] { statistics.check_model(*other); }, "another model", "'1', '3'", "'0', '1'");
  auto per_channel = make_mlp(LambdaGELUOptions(5));
  expect_value_error([&] { statistics.check_model(*per_channel); }, "another model", "'1' has 5 lambda", "1 channels");
}

TEST(SuggestTargets, ReachTheToleranceInDecibels) {
  at::manual_seed(0);
  auto model = make_mlp();
  const auto x = at::randn({4000, 3});
  const auto statistics = observed(model, x, ObserveOptions().per_channel(true));
  const auto direct = [](const at::Tensor& input, double hardness) {
    const auto v = input.detach().to(at::kDouble), relu = at::relu(v);
    const auto error = relu - reference(v, tensor_of({hardness}, at::kDouble));
    return 10 * std::log10(relu.square().sum().item<double>() / error.square().sum().item<double>());
  };
  const auto [first, second] = pre_activations(model, x);
  const auto whole = suggest_targets(statistics, 30);
  EXPECT_NEAR(direct(first, whole.targets.at("1").values.at(0)), 30, 0.5);
  EXPECT_NEAR(direct(second, whole.targets.at("3").values.at(0)), 30, 0.5);
  EXPECT_TRUE(whole.capped.empty());
  const auto channels = suggest_targets(statistics, 25, 64, /*per_channel=*/true);
  ASSERT_EQ(channels.targets.at("1").values.size(), 5);
  for (int64_t c = 0; c < 5; ++c) {
    const double hardness = channels.targets.at("1").values[c];
    if (hardness < 64) {
      EXPECT_NEAR(direct(first.select(1, c), hardness), 25, 0.5);
    }
  }
}

TEST(SuggestTargets, ReportsWhatTheCapDoesNotReach) {
  const ActivationStatistics statistics({{"a", {histogram_of(1e-3 * at::randn({999}))}},
                                         {"b", {histogram_of(at::randn({999}))}},
                                         {"dead", {histogram_of(-at::rand({99}))}},
                                         {"far", {histogram_of(-1e3 - at::rand({99}))}},
                                         {"zero", {histogram_of(at::zeros({9}))}}});
  const auto suggested = suggest_targets(statistics, 30, 20);
  ASSERT_EQ(suggested.capped.size(), 2);
  EXPECT_EQ(suggested.capped[0].name, "a");
  EXPECT_EQ(suggested.capped[0].channels, 1);
  EXPECT_EQ(suggested.capped[0].ser_db, statistics.at("a").whole().ser_db(20));
  EXPECT_EQ(suggested.capped[1].name, "dead");
  EXPECT_EQ(suggested.targets.at("a").values, std::vector<double>{20});
  EXPECT_LT(suggested.targets.at("b").values[0], 20);
  EXPECT_EQ(suggested.targets.at("zero").values, std::vector<double>{1});
  // Without a signal nothing is to be kept, and the error vanishes at 1 already.
  EXPECT_EQ(suggested.targets.at("far").values, std::vector<double>{1});
  // What every lambda keeps asks for none.
  const ActivationStatistics positive({{"up", {histogram_of(10 + at::rand({99}))}}});
  EXPECT_EQ(suggest_targets(positive, 5).targets.at("up").values, std::vector<double>{1});
}

TEST(SuggestTargets, RefusesWhatHasNoMeaning) {
  auto model = make_mlp();
  const auto statistics = observed(model, at::randn({4, 3}));
  for (const double value : {0.0, -30.0, kInf, kNaN}) {
    expect_value_error([&] { suggest_targets(statistics, value); }, "tolerance_db", "finite and positive", "got");
    expect_value_error([&] { suggest_targets(statistics, 30, value); }, "cap", "finite and positive", "got");
  }
  expect_value_error([&] { suggest_targets(ActivationStatistics(std::vector<SiteStatistics>{{"1", {}}})); },
                     "no calibration data");
}

// From the statistics over the schedule to the swap.
TEST(SuggestTargets, AreWhatTheSchedulerTakes) {
  at::manual_seed(0);
  auto model = make_mlp(LambdaGELUOptions(5));
  const auto x = at::randn({500, 3});
  const auto statistics = observed(model, x);
  const auto targets = suggest_targets(statistics, 30, 64, /*per_channel=*/true).targets;
  HardnessScheduler scheduler(*model, 4, HardnessSchedulerOptions().start(0).site_targets(targets));
  for (int i = 0; i < 4; ++i) scheduler.step();
  expect_close(site_of(model, 1).hardness(), tensor_of(targets.at("1").values).clamp_min(1 + std::log(2.0)), 1e-6);
  const auto report = to_relu_(*model, statistics);
  EXPECT_GE(*report.sites[0].ser_db, 27);  // every channel alone has 30, but capped ones
}

}  // namespace
}  // namespace lambda_gelu
