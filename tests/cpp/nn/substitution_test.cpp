#include <lambda_gelu/math/relu_gap.h>
#include <lambda_gelu/nn/substitution.h>

#include <stdexcept>

#include "support.h"

namespace lambda_gelu {
namespace {

// The model of make_mlp() with ReLU written out.
at::Tensor relu_network(torch::nn::Sequential& model, const at::Tensor& input) {
  const auto linear = [&](size_t index, const at::Tensor& x) {
    return model->ptr(index)->as<torch::nn::LinearImpl>()->forward(x);
  };
  return linear(4, at::relu(linear(2, at::relu(linear(0, input)))));
}

TEST(ToRelu, MakesTheModelAReluNetworkWithTheSameWeights) {
  auto model = make_mlp();
  const auto x = at::randn({16, 3});
  const auto expected = relu_network(model, x);
  EXPECT_FALSE(at::equal(model->forward(x), expected));
  to_relu_(*model);
  expect_same(model->forward(x).detach(), expected.detach());
}

TEST(ToRelu, GradientIsThatOfRelu) {
  LambdaGELU site;
  to_relu_(*site);
  const auto x = tensor_of({-2, -0.1, 0.3, 4}).requires_grad_();
  site(x).sum().backward();
  expect_same(x.grad(), tensor_of({0, 0, 1, 1}));
  EXPECT_FALSE(site->raw_hardness.grad().defined());
}

TEST(ToRelu, ReportsEverySite) {
  LambdaGELU shared(LambdaGELUOptions(3));
  shared->freeze_hardness();
  shared->set_hardness(tensor_of({2, 4, 9}));
  torch::nn::Sequential model(shared, LambdaGELU(), shared);
  const auto report = to_relu_(*model);
  ASSERT_EQ(report.sites.size(), 2);
  EXPECT_EQ(report.sites[0].name, "0");
  EXPECT_EQ(report.sites[0].also_at, std::vector<std::string>{"2"});
  EXPECT_EQ(report.sites[0].hardness_min, 2);
  EXPECT_EQ(report.sites[0].hardness_mean, 5);
  EXPECT_EQ(report.sites[0].hardness_max, 9);
  EXPECT_EQ(report.sites[0].gate_gap, gate_gap(2));
  EXPECT_EQ(report.sites[1].name, "1");
  EXPECT_EQ(report.sites[1].hardness_min, report.sites[1].hardness_max);

  std::ostringstream text;
  text << report;
  EXPECT_EQ(text.str(),
            "2 sites are ReLU now\n"
            "site hardness min         mean          max     gate gap\n"
            "0, 2            2            5            9       0.3989\n"
            "1           1.693        1.693        1.693       0.4712\n");
}

TEST(ToRelu, IsSavedWithTheModel) {
  auto model = make_mlp(), other = make_mlp();
  to_relu_(*model);
  load_from(saved(model), other);
  const auto x = at::randn({4, 3});
  expect_same(other->forward(x).detach(), relu_network(model, x).detach());
}

TEST(ToRelu, AModelWithoutASiteIsRefused) {
  torch::nn::Sequential without(torch::nn::Linear(2, 2));
  expect_value_error([&] { to_relu_(*without); }, "LambdaGELU", "has none");
  auto model = make_mlp();
  to_relu_(*model);
  expect_value_error([&] { to_relu_(*model); }, "LambdaGELU", "has none");
}

TEST(ToRelu, CanBeTakenBack) {
  LambdaGELU site;
  const auto x = at::randn({100});
  const auto before = site(x).detach();
  to_relu_(*site);
  site->set_substituted(false);
  expect_same(site(x).detach(), before);
}

// --- ReluSubstituted ---------------------------------------------------------------------------------------------

TEST(ReluSubstituted, LastsAsLongAsItLives) {
  auto model = make_mlp();
  const auto x = at::randn({16, 3});
  const auto before = model->forward(x).detach();
  {
    ReluSubstituted guard(*model);
    expect_same(model->forward(x).detach(), relu_network(model, x).detach());
    {
      ReluSubstituted inner(*model);
    }
    expect_same(model->forward(x).detach(), relu_network(model, x).detach());
  }
  expect_same(model->forward(x).detach(), before);
}

TEST(ReluSubstituted, EndsWithAnException) {
  auto model = make_mlp();
  const auto x = at::randn({16, 3});
  const auto before = model->forward(x).detach();
  const auto fail = [&] {
    ReluSubstituted guard(*model);
    throw std::runtime_error("in the middle of an evaluation");
  };
  EXPECT_THROW(fail(), std::runtime_error);
  expect_same(model->forward(x).detach(), before);
}

TEST(ReluSubstituted, IsNeitherSavedNorCopied) {
  auto model = make_mlp(), loaded = make_mlp();
  const auto x = at::randn({16, 3});
  const auto before = model->forward(x).detach();
  torch::nn::Sequential copy;
  {
    ReluSubstituted guard(*model);
    copy = torch::nn::Sequential(std::dynamic_pointer_cast<torch::nn::SequentialImpl>(model->clone()));
    load_from(saved(model), loaded);
  }
  expect_same(copy->forward(x).detach(), before);
  expect_same(loaded->forward(x).detach(), before);
}

TEST(ReluSubstituted, SurvivesALoadAndAResetMeanwhile) {
  LambdaGELU site, other;
  const auto x = at::randn({100});
  {
    ReluSubstituted guard(*site);
    load_from(saved(other), site);
    expect_same(site(x), at::relu(x));
    site->reset_parameters();
    expect_same(site(x), at::relu(x));
  }
  EXPECT_FALSE(at::equal(site(x), at::relu(x)));
}

TEST(ReluSubstituted, AModelWithoutASiteIsRefused) {
  torch::nn::Sequential without(torch::nn::Linear(2, 2));
  expect_value_error([&] { ReluSubstituted guard(*without); }, "LambdaGELU", "has none");
}

}  // namespace
}  // namespace lambda_gelu
