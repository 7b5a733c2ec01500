#include <lambda_gelu/math/relu_gap.h>
#include <lambda_gelu/nn/substitution.h>

#include <cmath>
#include <limits>
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
  expect_value_error([&] { to_relu_(*model); }, "LambdaGELU", "substituted already", "its 2 are ReLU");
}

// --- with statistics ----------------------------------------------------------------------------------------------

struct Observed {
  torch::nn::Sequential model = make_mlp(LambdaGELUOptions(5));
  at::Tensor first;  // the pre-activations of site "1"
  ActivationStatistics statistics;

  Observed() {
    at::manual_seed(0);
    const auto x = at::randn({3000, 3});
    site_of(model, 1).set_hardness(tensor_of({2, 3, 4, 5, 6}));
    first = model->ptr(0)->as<torch::nn::LinearImpl>()->forward(x).detach().to(at::kDouble);
    ObserveActivations observe(*model);
    model->forward(x);
    statistics = observe.statistics();
  }
};

TEST(ToRelu, TellsWhatTheStatisticsPredict) {
  Observed run;
  const auto hardness = site_of(run.model, 1).hardness().detach().to(at::kDouble);
  const auto report = to_relu_(*run.model, run.statistics);
  const auto& x = run.first;
  const auto relu = at::relu(x), gap = relu - reference(x, hardness);
  const auto mean = [](const at::Tensor& tensor) { return tensor.to(at::kDouble).mean().item<double>(); };
  const auto& site = report.sites[0];
  EXPECT_NEAR(*site.ser_db, 10 * std::log10(mean(relu.square()) / mean(gap.square())), 0.1);
  EXPECT_NEAR(*site.expected_gap, mean(gap), 0.01 * mean(gap));
  EXPECT_NEAR(*site.effective_hardness, 4 * x.std(/*unbiased=*/false).item<double>(), 1e-6);
  EXPECT_NEAR(*site.zeros_before, mean(at::special_ndtr(hardness * x) < 0.01), 0.01);
  EXPECT_DOUBLE_EQ(*site.zeros_after, mean(relu == 0));
  EXPECT_TRUE(site_of(run.model, 1).is_substituted());
}

TEST(ToRelu, RefusesStatisticsThatItCannotUseAndChangesNothing) {
  Observed run;
  const auto before = saved(run.model);
  auto other = make_mlp(LambdaGELUOptions(4));
  expect_value_error([&] { to_relu_(*other, run.statistics); }, "another model", "4 lambda", "5 channels");
  expect_value_error([&] { to_relu_(*run.model, ActivationStatistics({{"1", {}}, {"3", {}}})); }, "to_relu_",
                     "no calibration data");
  expect_value_error([&] { to_relu_(*run.model, ActivationStatistics(std::vector<SiteStatistics>{{"0", {}}})); },
                     "another model", "'0'", "'1'");
  EXPECT_EQ(saved(run.model), before);
}

TEST(SubstitutionReport, AsCsvAndJsonHoldsEveryDigit) {
  SubstitutionReport report;
  report.sites.push_back({"a\"b", {"c", "d,e"}, 1.1, 2, 0.1 + 0.2, 1.0 / 3});
  report.sites.push_back({"f", {}, 1, 1, 1, 0.5, 4.5, std::numeric_limits<double>::infinity(), 0.25, 0.5, 0.75});
  EXPECT_EQ(to_csv(report),
            "name,also_at,hardness_min,hardness_mean,hardness_max,gate_gap,effective_hardness,ser_db,expected_gap,"
            "zeros_before,zeros_after\n"
            "\"a\"\"b\",\"c d,e\",1.1,2,0.30000000000000004,0.3333333333333333,,,,,\n"
            "f,,1,1,1,0.5,4.5,inf,0.25,0.5,0.75\n");
  EXPECT_EQ(to_json(report),
            "{\n  \"sites\": [\n"
            "    {\"name\": \"a\\\"b\", \"also_at\": [\"c\", \"d,e\"], \"hardness_min\": 1.1, \"hardness_mean\": 2, "
            "\"hardness_max\": 0.30000000000000004, \"gate_gap\": 0.3333333333333333, \"effective_hardness\": null, "
            "\"ser_db\": null, \"expected_gap\": null, \"zeros_before\": null, \"zeros_after\": null},\n"
            "    {\"name\": \"f\", \"also_at\": [], \"hardness_min\": 1, \"hardness_mean\": 1, \"hardness_max\": 1, "
            "\"gate_gap\": 0.5, \"effective_hardness\": 4.5, \"ser_db\": \"inf\", \"expected_gap\": 0.25, "
            "\"zeros_before\": 0.5, \"zeros_after\": 0.75}\n  ]\n}\n");
}

TEST(SubstitutionReport, TableHasTheColumnsThatAreKnown) {
  SubstitutionReport report;
  report.sites.push_back({"a", {}, 1, 2, 3, 0.5, 4, 31.25});
  std::ostringstream text;
  text << report;
  EXPECT_EQ(text.str(),
            "1 site is ReLU now\n"
            "site hardness min         mean          max     gate gap        kappa       SER dB\n"
            "a               1            2            3          0.5            4        31.25\n");
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
