// Autograd on CUDA: the engine runs the nodes on their own threads and streams.
#include <c10/core/StreamGuard.h>
#include <lambda_gelu/ops/functional.h>
#include <lambda_gelu/ops/gradient_reuse.h>
#include <simt.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/forward_grad.h>

#include <functional>
#include <vector>

#include "cuda_testing.h"

namespace lambda_gelu::testing {
namespace {

using Tensors = std::vector<at::Tensor>;

class CudaAutograd : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    input = normal({16, 6}, at::kFloat);
    weight = at::randn({6, 6});
    hardness = at::rand({6}) + 1;
  }
  static Tensors leaves(const Tensors& tensors, at::Device device) {
    Tensors result;
    for (const auto& tensor : tensors) result.push_back(tensor.to(device).requires_grad_());
    return result;
  }
  // The same function on the CPU and on the device gives the same.
  void expect_same(const std::function<Tensors(const Tensors&)>& function, double tolerance) {
    const auto expected = function(leaves({input, weight, hardness}, at::kCPU));
    const auto actual = function(leaves({input, weight, hardness}, cuda(1)));
    ASSERT_EQ(actual.size(), expected.size());
    for (size_t i = 0; i < actual.size(); ++i) {
      SCOPED_TRACE(i);
      EXPECT_EQ(actual[i].device(), cuda(1));
      expect_close(actual[i].cpu(), expected[i], tolerance, tolerance);
    }
  }
  static at::Tensor activation(const Tensors& in) { return lambda_gelu(at::mm(in[0], in[1]), in[2], 1, 0.8); }

  at::Tensor input, weight, hardness;
};

TEST_F(CudaAutograd, FirstOrder) {
  expect_same([](const Tensors& in) { return torch::autograd::grad({activation(in).pow(2).sum()}, in); }, 1e-5);
}

TEST_F(CudaAutograd, SecondOrder) {
  expect_same(
      [](const Tensors& in) {
        const auto first = torch::autograd::grad({activation(in).pow(2).sum()}, in, {}, true, /*create_graph=*/true);
        at::Tensor sum;
        for (const auto& grad : first) sum = sum.defined() ? sum + grad.sin().sum() : grad.sin().sum();
        return torch::autograd::grad({sum}, in);
      },
      1e-4);
}

TEST_F(CudaAutograd, ForwardMode) {
  const auto x_direction = at::randn_like(input);
  const auto hardness_direction = at::randn_like(hardness);
  expect_same(
      [&](const Tensors& in) {
        const auto level = torch::autograd::ForwardADLevel::get_next_idx();
        const auto x = in[0].detach().clone();
        const auto h = in[2].detach().clone();
        x._set_fw_grad(x_direction.to(x.device()), level, /*is_inplace_op=*/false);
        h._set_fw_grad(hardness_direction.to(h.device()), level, false);
        const auto tangent = lambda_gelu(x, h)._fw_grad(level).clone();
        torch::autograd::ForwardADLevel::release_idx(level);
        return Tensors{tangent};
      },
      1e-5);
}

TEST_F(CudaAutograd, BackwardRunsOnTheStreamOfItsForward) {
  const auto in = leaves({input, weight, hardness}, cuda(1));
  const auto side = fake_cuda::stream(1, 2);
  const auto hidden = at::mm(in[0], in[1]);
  const auto y = [&] {
    const c10::StreamGuard guard(side);
    return lambda_gelu(hidden, in[2]);
  }();
  const auto loss = y.pow(2).sum();
  const simt::Recording recording;
  torch::autograd::grad({loss}, in);
  ASSERT_FALSE(recording.launches().empty());
  for (const auto& launch : recording.launches()) {
    EXPECT_EQ(launch.stream, fake_cuda::native_handle(side));
    EXPECT_EQ(launch.device, 1);
  }
}

TEST_F(CudaAutograd, WritesIntoTheMemoryOfTheGradient) {
  const auto in = leaves({input, weight, hardness}, cuda());
  const auto hidden = at::mm(in[0], in[1]);
  const auto y = lambda_gelu(hidden, in[2]);
  const void* incoming = nullptr;
  const void* outgoing = nullptr;
  y.register_hook([&](at::Tensor grad) { incoming = grad.const_data_ptr(); });
  hidden.register_hook([&](at::Tensor grad) { outgoing = grad.const_data_ptr(); });
  const auto before = gradient_reuse_count();
  torch::autograd::grad({y.pow(2).sum()}, in);
  EXPECT_EQ(gradient_reuse_count() - before, 1);
  EXPECT_EQ(incoming, outgoing);
  EXPECT_NE(incoming, nullptr);
}

TEST_F(CudaAutograd, ReusingTheGradientChangesNoGradient) {
  const auto in = leaves({input, weight, hardness}, cuda());
  const auto step = [&](bool reuse) {
    set_gradient_reuse(reuse);
    const auto y = activation(in);
    return torch::autograd::grad({lambda_gelu(y, in[2]).pow(2).sum() + y.sin().sum()}, in);
  };
  const auto expected = step(false);
  const auto actual = step(true);
  for (size_t i = 0; i < in.size(); ++i) EXPECT_TRUE(at::equal(actual[i], expected[i])) << i;
}

}  // namespace
}  // namespace lambda_gelu::testing
