#include <lambda_gelu/nn/init.h>
#include <lambda_gelu/nn/sites.h>
#include <lambda_gelu/nn/substitution.h>

#include <limits>
#include <numbers>

#include "support.h"

namespace lambda_gelu {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

std::vector<std::string> names(const std::vector<Site>& sites) {
  std::vector<std::string> result;
  for (const auto& site : sites) result.push_back(site.name);
  return result;
}

struct Nested : torch::nn::Module {
  torch::nn::Sequential mlp = register_module("mlp", make_mlp());
  LambdaGELU last = register_module("last", LambdaGELU());
};

TEST(FindSites, InOrderOfRegistration) {
  Nested model;  // on the stack
  EXPECT_EQ(names(find_sites(model)), (std::vector<std::string>{"mlp.1", "mlp.3", "last"}));
}

TEST(FindSites, ASharedModuleIsOneSite) {
  LambdaGELU shared;
  torch::nn::Sequential model(shared, torch::nn::Linear(2, 2), shared, LambdaGELU());
  const auto sites = find_sites(*model);
  ASSERT_EQ(names(sites), (std::vector<std::string>{"0", "3"}));
  EXPECT_EQ(sites[0].also_at, std::vector<std::string>{"2"});
  EXPECT_EQ(sites[0].module, shared.ptr());
  EXPECT_TRUE(sites[1].also_at.empty());
}

TEST(FindSites, AModelThatIsASite) {
  LambdaGELU owned;
  EXPECT_EQ(names(find_sites(*owned)), std::vector<std::string>{""});
  EXPECT_EQ(find_sites(*owned)[0].module, owned.ptr());
  LambdaGELUImpl on_the_stack;
  EXPECT_EQ(find_sites(on_the_stack)[0].module.get(), &on_the_stack);
}

TEST(FindSites, AModelWithoutOneIsRefused) {
  torch::nn::Sequential model(torch::nn::Linear(2, 2));
  expect_value_error([&] { find_sites(*model); }, "LambdaGELU", "Sequential", "has none");
}

TEST(FindSites, SubstitutedModulesAreNoSites) {
  auto model = make_mlp();
  site_of(model, 1).set_substituted(true);
  EXPECT_EQ(names(find_sites(*model)), std::vector<std::string>{"3"});
}

// --- init_hardness_ ----------------------------------------------------------------------------------------------

torch::nn::Sequential five_sites() {
  torch::nn::Sequential model;
  for (int i = 0; i < 5; ++i) model->push_back(LambdaGELU());
  return model;
}

void expect_hardness(torch::nn::Sequential& model, const std::vector<double>& expected) {
  for (size_t i = 0; i < expected.size(); ++i) {
    expect_close(site_of(model, i).hardness().detach(), tensor_of({expected[i]}), 1e-6);
  }
}

TEST(InitHardness, ModesOverDepth) {
  auto model = five_sites();
  const auto increasing = init_hardness_(*model, "increasing", 1.2, 2.0);
  expect_hardness(model, {1.2, 1.4, 1.6, 1.8, 2.0});
  ASSERT_EQ(increasing.size(), 5);
  EXPECT_EQ(increasing[0].first, "0");
  EXPECT_EQ(increasing[0].second, 1.2);
  EXPECT_EQ(increasing[4].second, 2.0);
  init_hardness_(*model, "decreasing", 1.2, 2.0);
  expect_hardness(model, {2.0, 1.8, 1.6, 1.4, 1.2});
  init_hardness_(*model);
  expect_hardness(model, std::vector<double>(5, 1 + std::numbers::ln2));
}

TEST(InitHardness, DefaultRange) {
  auto model = five_sites();
  init_hardness_(*model, "increasing");
  expect_hardness(model, {1.1, 1.325, 1.55, 1.775, 2.0});
}

TEST(InitHardness, ASingleSiteGetsTheFirstValue) {
  torch::nn::Sequential model{LambdaGELU()};
  init_hardness_(*model, "increasing", 1.3, 1.9);
  expect_hardness(model, {1.3});
  init_hardness_(*model, "decreasing", 1.3, 1.9);
  expect_hardness(model, {1.9});
}

TEST(InitHardness, SetsEveryChannel) {
  torch::nn::Sequential model(LambdaGELU(LambdaGELUOptions(3)), LambdaGELU(LambdaGELUOptions(2)));
  init_hardness_(*model, "increasing", 1.5, 3);
  expect_close(site_of(model, 0).hardness().detach(), tensor_of({1.5, 1.5, 1.5}), 1e-6);
  expect_close(site_of(model, 1).hardness().detach(), tensor_of({3, 3}), 1e-6);
}

TEST(InitHardness, RefusesWithoutChangingAnything) {
  auto model = five_sites();
  init_hardness_(*model, "decreasing");
  const auto before = saved(model);
  expect_value_error([&] { init_hardness_(*model, "random"); }, "mode", "'uniform'", "'increasing'", "'decreasing'",
                     "got 'random'");
  const double ranges[][2] = {{1.0, 2}, {0.5, 2}, {2, 1.5}, {1.1, kInf}, {kNaN, 2}, {1.1, kNaN}};
  for (const auto& [low, high] : ranges) {
    expect_value_error([&, low = low, high = high] { init_hardness_(*model, "increasing", low, high); },
                       "1 < low <= high", "got");
  }
  expect_value_error([&] { init_hardness_(*model, "increasing", 1.1, 1e300); }, "high", "range of Float", "got 1e+300");
  torch::nn::Sequential without(torch::nn::Linear(2, 2));
  expect_value_error([&] { init_hardness_(*without); }, "LambdaGELU");
  EXPECT_EQ(saved(model), before);

  site_of(model, 4).freeze_hardness();
  const auto frozen = saved(model);
  expect_value_error([&] { init_hardness_(*model); }, "frozen at '4'");
  EXPECT_EQ(saved(model), frozen);
}

}  // namespace
}  // namespace lambda_gelu
