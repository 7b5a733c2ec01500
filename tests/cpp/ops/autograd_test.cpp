// Derivatives against finite differences, in C++ alone.
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <lambda_gelu/ops/functional.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/forward_grad.h>

#include <functional>
#include <limits>
#include <optional>
#include <vector>

#include "testing.h"

namespace lambda_gelu::testing {
namespace {

using Tensors = std::vector<at::Tensor>;
using Function = std::function<at::Tensor(const Tensors&)>;  // to a scalar

Tensors gradients(const Function& f, const Tensors& inputs, bool create_graph = false) {
  return torch::autograd::grad({f(inputs)}, inputs, {}, /*retain_graph=*/true, create_graph, /*allow_unused=*/true);
}

// Central differences of f in every element of every input.
void expect_gradients_are_right(const Function& f, const Tensors& inputs, double tolerance) {
  constexpr double kStep = 1e-5;
  const auto analytic = gradients(f, inputs);
  for (size_t i = 0; i < inputs.size(); ++i) {
    auto numeric = at::zeros(inputs[i].sizes(), at::kDouble);
    for (int64_t k = 0; k < inputs[i].numel(); ++k) {
      const auto at_offset = [&](double offset) {
        Tensors moved;
        for (const auto& input : inputs) moved.push_back(input.detach().clone());
        moved[i].view({-1})[k] += offset;
        for (auto& input : moved) input.requires_grad_();
        return f(moved).item<double>();
      };
      numeric.view({-1})[k] = (at_offset(kStep) - at_offset(-kStep)) / (2 * kStep);
    }
    SCOPED_TRACE("input " + std::to_string(i));
    expect_close(analytic[i], numeric, tolerance, tolerance);
  }
}

struct Case {
  int64_t count;
  std::optional<double> temperature;
};

class Derivatives : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    at::manual_seed(0);
    x = at::randn({3, 4, 2}, at::kDouble).requires_grad_();
    hardness = (at::rand({GetParam().count}, at::kDouble) + 0.5).requires_grad_();
    weight = at::randn({3, 4, 2}, at::kDouble);
  }
  at::Tensor loss(const Tensors& inputs) const {
    return (lambda_gelu(inputs[0], inputs[1], 1, GetParam().temperature) * weight).sum();
  }
  at::Tensor x, hardness, weight;
};
INSTANTIATE_TEST_SUITE_P(Autograd, Derivatives,
                         ::testing::Values(Case{1, {}}, Case{4, {}}, Case{1, 0.7}, Case{4, 0.7}));

TEST_P(Derivatives, FirstOrder) {
  expect_gradients_are_right([&](const Tensors& inputs) { return loss(inputs); }, {x, hardness}, 1e-8);
}

TEST_P(Derivatives, SecondOrder) {
  const auto sum_of_gradients = [&](const Tensors& inputs) {
    const auto grads = gradients([&](const Tensors& in) { return loss(in); }, inputs, /*create_graph=*/true);
    return grads[0].sin().sum() + grads[1].sin().sum();
  };
  expect_gradients_are_right(sum_of_gradients, {x, hardness}, 1e-7);
}

TEST_P(Derivatives, ThirdOrder) {
  const auto second = [&](const Tensors& inputs) {
    const auto first = gradients([&](const Tensors& in) { return loss(in); }, inputs, true);
    const auto grads =
        torch::autograd::grad({first[0].sin().sum() + first[1].sin().sum()}, inputs, {}, true, /*create_graph=*/true);
    return grads[0].sin().sum() + grads[1].sin().sum();
  };
  expect_gradients_are_right(second, {x, hardness}, 1e-6);
}

TEST_P(Derivatives, TangentsAreDirectionalDerivatives) {
  const auto x_direction = at::randn_like(x);
  const auto hardness_direction = at::randn_like(hardness);
  const auto level = torch::autograd::ForwardADLevel::get_next_idx();
  const auto dual_x = x.detach().clone();
  const auto dual_hardness = hardness.detach().clone();
  dual_x._set_fw_grad(x_direction, level, /*is_inplace_op=*/false);
  dual_hardness._set_fw_grad(hardness_direction, level, false);
  const auto tangent = loss({dual_x, dual_hardness})._fw_grad(level).clone();
  torch::autograd::ForwardADLevel::release_idx(level);

  const auto grads = gradients([&](const Tensors& inputs) { return loss(inputs); }, {x, hardness});
  expect_close(tangent, (grads[0] * x_direction).sum() + (grads[1] * hardness_direction).sum(), 1e-12, 1e-12);
}

TEST(Autograd, OnlyWhatIsAskedForIsReturned) {
  const auto x = at::randn({5}, at::kDouble).requires_grad_();
  const auto hardness = at::full({1}, 1.5, at::kDouble);
  lambda_gelu(x, hardness).sum().backward();
  EXPECT_TRUE(x.grad().defined());
  EXPECT_FALSE(hardness.grad().defined());

  const auto constant = x.detach();
  const auto learned = hardness.clone().requires_grad_();
  lambda_gelu(constant, learned).sum().backward();
  EXPECT_FALSE(constant.grad().defined());
  EXPECT_TRUE(learned.grad().defined());
}

TEST(Autograd, EveryOrderIsFiniteForHugeInputs) {
  for (const double value : {1e30, -1e30, 20.0, -20.0, 0.0}) {
    SCOPED_TRACE(value);
    const auto x = at::full({1}, value, at::kFloat).requires_grad_();
    const auto hardness = at::full({1}, 1.5, at::kFloat).requires_grad_();
    auto outputs = Tensors{lambda_gelu(x, hardness).sum()};
    for (int order = 1; order <= 3; ++order) {
      auto sum = at::zeros({});
      for (const auto& output : outputs) sum = sum + output.sum();
      outputs = torch::autograd::grad({sum}, {x, hardness}, {}, true, /*create_graph=*/true);
      for (const auto& output : outputs) EXPECT_TRUE(at::isfinite(output).all().item<bool>()) << "order " << order;
    }
  }
}

TEST(Autograd, ChangingASavedTensorInPlaceIsAnError) {
  const auto x = at::randn({5}).requires_grad_();
  const auto hidden = x * 1;
  const auto y = lambda_gelu(hidden, 2.0);
  hidden.add_(1);
  EXPECT_THROW(y.sum().backward(), c10::Error);
}

TEST(Autograd, AFreedGraphIsAnError) {
  const auto x = at::randn({5}).requires_grad_();
  const auto loss = lambda_gelu(x, 2.0).sum();
  loss.backward();
  EXPECT_THROW(loss.backward(), c10::Error);
}

TEST(Autograd, ALongChainIsFreedWithoutOverflowingTheStack) {
  auto y = at::randn({1}).requires_grad_() * 1;
  const auto hardness = at::ones({1}).requires_grad_();
  for (int i = 0; i < 100'000; ++i) y = lambda_gelu(y, hardness);
  EXPECT_TRUE(y.requires_grad());
  y.reset();
}

TEST(Autograd, NoGraphWithoutGradMode) {
  const at::NoGradGuard no_grad;
  const auto x = at::randn({5}).requires_grad_();
  EXPECT_FALSE(lambda_gelu(x, 2.0).requires_grad());
}

}  // namespace
}  // namespace lambda_gelu::testing
