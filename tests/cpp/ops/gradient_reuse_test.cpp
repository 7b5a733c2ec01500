// dx is written into the incoming gradient exactly where nobody else can see that gradient.
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <lambda_gelu/ops/functional.h>
#include <lambda_gelu/ops/gradient_reuse.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/forward_grad.h>

#include <functional>
#include <string>
#include <vector>

#include "testing.h"

namespace lambda_gelu::testing {
namespace {

class GradientReuse : public ::testing::Test {
 protected:
  void SetUp() override {
    at::manual_seed(0);
    set_gradient_reuse(true);
    weight = at::randn({8, 8}).requires_grad_();
    hardness = at::full({1}, 1.7).requires_grad_();
    x = at::randn({16, 8});
  }
  void TearDown() override { set_gradient_reuse(true); }

  // The parameters' gradients of one step; `between` makes the loss from the activation's output.
  std::vector<at::Tensor> step(const std::function<at::Tensor(const at::Tensor&)>& between, bool reuse) {
    set_gradient_reuse(reuse);
    return torch::autograd::grad({between(activation())}, {weight, hardness});
  }
  at::Tensor activation() { return lambda_gelu(at::linear(x, weight), hardness); }

  // Same gradients with and without; how often a gradient was reused.
  int64_t reuses(const std::function<at::Tensor(const at::Tensor&)>& between) {
    const auto expected = step(between, false);
    const auto before = gradient_reuse_count();
    const auto actual = step(between, true);
    for (size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(at::equal(actual[i], expected[i])) << "gradient " << i;
    return gradient_reuse_count() - before;
  }

  at::Tensor weight, hardness, x;
};

TEST_F(GradientReuse, HappensBetweenTwoLinearLayers) {
  const auto next = at::randn({4, 8});
  EXPECT_EQ(reuses([&](const auto& y) { return at::linear(y, next).pow(2).sum(); }), 1);
}

TEST_F(GradientReuse, HappensBetweenLinearLayersOverThreeDimensions) {
  // There the gradient is a view: it has come through a reshape.
  x = at::randn({2, 16, 8});
  const auto next = at::randn({4, 8});
  EXPECT_EQ(reuses([&](const auto& y) { return at::linear(y, next).pow(2).sum(); }), 1);
}

TEST_F(GradientReuse, HappensInAConvolutionalLayer) {
  x = at::randn({2, 3, 8, 8});
  const auto kernel = at::randn({3, 3, 3, 3});
  const auto input = at::conv2d(x, kernel.requires_grad_());
  const auto before = gradient_reuse_count();
  at::conv2d(lambda_gelu(input, hardness), kernel).pow(2).sum().backward();
  EXPECT_EQ(gradient_reuse_count() - before, 1);
}

TEST_F(GradientReuse, WritesIntoTheMemoryOfTheGradient) {
  const auto hidden = at::linear(x, weight);
  const auto y = lambda_gelu(hidden, hardness);
  const void* incoming = nullptr;
  const void* outgoing = nullptr;
  y.register_hook([&](at::Tensor grad) { incoming = grad.const_data_ptr(); });
  hidden.register_hook([&](at::Tensor grad) { outgoing = grad.const_data_ptr(); });
  y.pow(2).sum().backward();
  EXPECT_EQ(incoming, outgoing);
  EXPECT_NE(incoming, nullptr);
}

TEST_F(GradientReuse, CanBeSwitchedOff) {
  set_gradient_reuse(false);
  EXPECT_FALSE(gradient_reuse_enabled());
  const auto before = gradient_reuse_count();
  activation().pow(2).sum().backward();
  EXPECT_EQ(gradient_reuse_count(), before);
}

TEST_F(GradientReuse, InEveryDtypeWithOneHardnessPerChannelAndATemperature) {
  for (const auto dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
    for (const int64_t count : {1, 8}) {
      const auto input = at::randn({64, 8}, dtype).requires_grad_();
      const auto raw = at::zeros({count}).requires_grad_();
      const auto gradients = [&](bool reuse) {
        set_gradient_reuse(reuse);
        return torch::autograd::grad({lambda_gelu(input, raw, 1, 0.1).pow(2).sum()}, {input, raw});
      };
      const auto expected = gradients(false);
      const auto before = gradient_reuse_count();
      const auto actual = gradients(true);
      EXPECT_EQ(gradient_reuse_count() - before, 1);
      EXPECT_TRUE(at::equal(actual[0], expected[0]));
      EXPECT_TRUE(at::equal(actual[1], expected[1]));
    }
  }
}

// --- where somebody else can see the gradient ------------------------------------------------------------------------

TEST_F(GradientReuse, NotOfAGradientThatAHookKeeps) {
  at::Tensor kept, copy;
  EXPECT_EQ(reuses([&](const auto& y) {
              y.register_hook([&](at::Tensor grad) {
                kept = grad;
                copy = grad.clone();
              });
              return y.pow(2).sum();
            }),
            0);
  EXPECT_TRUE(at::equal(kept, copy));
}

TEST_F(GradientReuse, NotOfAGradientWhoseStorageIsKept) {
  c10::Storage kept;
  at::Tensor copy;
  EXPECT_EQ(reuses([&](const auto& y) {
              y.register_hook([&](at::Tensor grad) {
                kept = grad.storage();
                copy = grad.clone();
              });
              return y.pow(2).sum();
            }),
            0);
  EXPECT_TRUE(at::equal(at::empty({0}).set_(kept, 0, copy.sizes(), copy.strides()), copy));
}

TEST_F(GradientReuse, NotOfAGradientOfWhichAHookKeepsAView) {
  at::Tensor kept, copy;
  EXPECT_EQ(reuses([&](const auto& y) {
              y.register_hook([&](at::Tensor grad) {
                kept = grad.view({-1}).slice(0, 0, 3);
                copy = kept.clone();
              });
              return y.pow(2).sum();
            }),
            0);
  EXPECT_TRUE(at::equal(kept, copy));
}

TEST_F(GradientReuse, NotOfAViewWhoseBaseIsKept) {
  at::Tensor base, copy;
  EXPECT_EQ(reuses([&](const auto& y) {
              y.register_hook([&](at::Tensor grad) {
                base = grad.reshape({-1}).clone();
                copy = base.clone();
                return base.view({16, 8});
              });
              return y.pow(2).sum();
            }),
            0);
  EXPECT_TRUE(at::equal(base, copy));
}

TEST_F(GradientReuse, NotOfAViewWhoseStorageIsKept) {
  x = at::randn({2, 16, 8});
  const auto next = at::randn({4, 8});
  c10::Storage kept;
  at::Tensor copy;
  EXPECT_EQ(reuses([&](const auto& y) {
              y.register_hook([&](at::Tensor grad) {
                EXPECT_TRUE(grad.is_view());
                kept = grad.storage();
                copy = grad.clone();
              });
              return at::linear(y, next).pow(2).sum();
            }),
            0);
  EXPECT_TRUE(at::equal(at::empty({0}).set_(kept, 0, copy.sizes(), copy.strides()), copy));
}

TEST_F(GradientReuse, NotOfMemoryThatTorchDoesNotOwn) {
  std::vector<float> mine(16 * 8, 0.5F);
  EXPECT_EQ(reuses([&](const auto& y) {
              y.register_hook([&](at::Tensor) { return at::from_blob(mine.data(), {16, 8}); });
              return y.pow(2).sum();
            }),
            0);
  EXPECT_EQ(mine, std::vector<float>(16 * 8, 0.5F));
}

TEST_F(GradientReuse, ALazyCloneDetachesBeforeItIsWrittenTo) {
  const auto mine = at::full({16, 8}, 0.5);
  reuses([&](const auto& y) {
    y.register_hook([&](at::Tensor) { return at::_lazy_clone(mine); });
    return y.pow(2).sum();
  });
  EXPECT_TRUE(at::equal(mine, at::full({16, 8}, 0.5)));
}

TEST_F(GradientReuse, NotOfAGradientThatTheUserSupplies) {
  const auto mine = at::randn({16, 8});
  const auto copy = mine.clone();
  const auto before = gradient_reuse_count();
  torch::autograd::grad({activation()}, {weight, hardness}, {mine});
  activation().backward(mine);
  (activation() + 1).backward(mine);
  EXPECT_EQ(gradient_reuse_count(), before);
  EXPECT_TRUE(at::equal(mine, copy));
}

TEST_F(GradientReuse, NotOfAnExpandedGradient) {
  EXPECT_EQ(reuses([](const auto& y) { return y.sum(); }), 0);
}

TEST_F(GradientReuse, NotOfAGradientInAnotherLayout) {
  EXPECT_EQ(reuses([](const auto& y) { return y.t().contiguous().pow(2).sum(); }), 0);
}

TEST_F(GradientReuse, NotOfAGradientWithGapsThatMatchTheInputs) {
  reuses([&](const auto& y) {
    const auto z = lambda_gelu(y.repeat({1, 2}).slice(1, 0, 16, 2), hardness);
    z.register_hook([](at::Tensor grad) { return at::empty({16, 16}).slice(1, 0, 16, 2).copy_(grad); });
    return z.pow(2).sum();
  });
}

TEST_F(GradientReuse, NotWhereTheGradientOfTheOutputIsReturned) {
  const auto y = activation();
  const auto expected = y.detach() * 2;
  const auto before = gradient_reuse_count();
  const auto grads = torch::autograd::grad({y.pow(2).sum()}, {y, weight});
  EXPECT_EQ(gradient_reuse_count(), before);
  EXPECT_TRUE(at::equal(grads[0], expected));
}

TEST_F(GradientReuse, NotWhereAGraphIsCreated) {
  const auto constant = at::randn({16, 8});
  const auto before = gradient_reuse_count();
  for (const auto& loss : {activation().pow(2).sum(), (activation() * constant).sum()}) {
    const auto grads = torch::autograd::grad({loss}, {weight, hardness}, {}, true, /*create_graph=*/true);
    EXPECT_TRUE(grads[0].requires_grad());
    EXPECT_TRUE(grads[1].requires_grad());
  }
  EXPECT_EQ(gradient_reuse_count(), before);
}

TEST_F(GradientReuse, NotWhereTangentsFlow) {
  const auto level = torch::autograd::ForwardADLevel::get_next_idx();
  const auto with_tangent = [&](const at::Tensor& tensor) {
    tensor._set_fw_grad(at::ones_like(tensor), level, /*is_inplace_op=*/false);
    return tensor;
  };
  const auto input = at::randn({16, 8}).requires_grad_();
  const auto plain = input * 1;
  const auto dual = with_tangent(input * 1);
  const auto constant = at::randn({16, 8});
  const auto dual_constant = with_tangent(constant.clone());
  const auto before = gradient_reuse_count();
  const auto expect_tangent = [&](const at::Tensor& loss, const at::Tensor& with_respect_to) {
    const auto grad = torch::autograd::grad({loss}, {with_respect_to})[0];
    EXPECT_TRUE(grad._fw_grad(level).defined());
  };
  expect_tangent((lambda_gelu(dual, hardness) * constant).sum(), dual);         // of the input alone
  expect_tangent((lambda_gelu(plain, hardness) * dual_constant).sum(), plain);  // of the gradient alone
  expect_tangent((lambda_gelu(plain * 1, with_tangent(hardness * 1)) * constant).sum(), plain);  // of the hardness
  EXPECT_EQ(gradient_reuse_count(), before);
  torch::autograd::ForwardADLevel::release_idx(level);
}

TEST_F(GradientReuse, NotOfAGradientThatHasAHistory) {
  EXPECT_EQ(reuses([&](const auto& y) {
              y.register_hook([&](at::Tensor grad) {
                const at::AutoGradMode enable(true);
                return grad * hardness;
              });
              return y.pow(2).sum();
            }),
            0);
}

TEST_F(GradientReuse, NotOfAnInferenceTensor) {
  EXPECT_EQ(reuses([](const auto& y) {
              y.register_hook([](at::Tensor grad) {
                const c10::InferenceMode inference;
                return grad.clone();
              });
              return y.pow(2).sum();
            }),
            0);
}

TEST_F(GradientReuse, NotOfOrBesideALazilyNegatedTensor) {
  EXPECT_EQ(reuses([](const auto& y) {
              y.register_hook([](at::Tensor grad) { return at::_neg_view(grad.clone()); });
              return y.pow(2).sum();
            }),
            0);
  EXPECT_EQ(reuses([&](const auto& y) { return lambda_gelu(at::_neg_view(y.sin()), hardness).pow(2).sum(); }), 1);
}

TEST_F(GradientReuse, RetainedOutputGradientIsTheGradientOfTheOutput) {
  const auto y = activation();
  y.retain_grad();
  y.pow(2).sum().backward();
  EXPECT_TRUE(at::equal(y.grad(), y.detach() * 2));
}

TEST_F(GradientReuse, SeveralConsumersOfTheOutput) {
  reuses([](const auto& y) { return y.pow(2).sum() + y.sin().sum() + (y * y).sum(); });
  reuses([](const auto& y) { return (y + y.exp()).pow(2).sum(); });
}

TEST_F(GradientReuse, OneGradientForTwoActivations) {
  // The backward of an addition hands the same tensor to both.
  reuses([&](const auto& y) { return (y + lambda_gelu(x * weight.sum(), hardness)).pow(2).sum(); });
}

TEST_F(GradientReuse, AChainOfActivations) {
  EXPECT_EQ(reuses([&](const auto& y) { return lambda_gelu(lambda_gelu(y, hardness), hardness).pow(2).sum(); }), 3);
}

TEST_F(GradientReuse, ARetainedGraphGivesTheSameTwice) {
  const auto loss = activation().pow(2).sum();
  const auto before = gradient_reuse_count();
  const auto first = torch::autograd::grad({loss}, {weight, hardness}, {}, /*retain_graph=*/true);
  const auto second = torch::autograd::grad({loss}, {weight, hardness});
  EXPECT_EQ(gradient_reuse_count() - before, 2);
  EXPECT_TRUE(at::equal(first[0], second[0]));
  EXPECT_TRUE(at::equal(first[1], second[1]));
}

}  // namespace
}  // namespace lambda_gelu::testing
