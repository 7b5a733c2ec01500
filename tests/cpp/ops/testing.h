// Helpers of the op's tests: inputs in every layout, an independent reference, comparisons.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <functional>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

namespace lambda_gelu::testing {

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();
inline constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

struct Layout {
  std::string name;
  std::function<at::Tensor(at::ScalarType)> make;  // always of shape (4, 6, 5, 3)
};

inline at::Tensor normal(at::IntArrayRef sizes, at::ScalarType dtype) {
  return (2 * at::randn(sizes, at::kDouble)).to(dtype);
}

inline std::vector<Layout> layouts() {
  return {
      {"contiguous", [](auto dtype) { return normal({4, 6, 5, 3}, dtype); }},
      {"channels_last",
       [](auto dtype) { return normal({4, 6, 5, 3}, dtype).contiguous(at::MemoryFormat::ChannelsLast); }},
      {"permuted", [](auto dtype) { return normal({5, 3, 4, 6}, dtype).permute({2, 3, 0, 1}); }},
      {"chunk", [](auto dtype) { return normal({4, 12, 5, 3}, dtype).chunk(2, 1)[1]; }},
      {"every second", [](auto dtype) { return normal({4, 6, 5, 6}, dtype).slice(3, 0, 6, 2); }},
      {"sliced and permuted",
       [](auto dtype) { return normal({3, 7, 9, 4}, dtype).permute({3, 1, 2, 0}).narrow(1, 1, 6).narrow(2, 2, 5); }},
      {"expanded", [](auto dtype) { return normal({4, 1, 5, 1}, dtype).expand({4, 6, 5, 3}); }},
  };
}

/// lambda shaped to broadcast along `channel_dim` of a tensor with `ndim` dimensions, in double.
inline at::Tensor broadcastable(const at::Tensor& hardness, int64_t channel_dim, int64_t ndim) {
  std::vector<int64_t> shape(ndim, 1);
  if (hardness.numel() > 1) shape[channel_dim] = hardness.numel();
  return hardness.to(at::kDouble).reshape(shape);
}

/// GELU(lambda x) / lambda with PyTorch's GELU in double.
inline at::Tensor reference(const at::Tensor& input, const at::Tensor& hardness, int64_t channel_dim = 1) {
  const auto lambda = broadcastable(hardness, channel_dim, input.dim());
  return at::gelu(input.to(at::kDouble) * lambda) / lambda;
}

/// One lambda per index of `channel_dim`, in [0.5, 3.5), in double.
inline at::Tensor hardness_for(const at::Tensor& input, int64_t channel_dim) {
  return at::rand({input.size(channel_dim)}, at::kDouble) * 3 + 0.5;
}

/// d input and d hardness of sum(g * reference) by PyTorch's own GELU in double.
inline std::tuple<at::Tensor, at::Tensor> reference_gradients(const at::Tensor& g, const at::Tensor& input,
                                                              const at::Tensor& hardness, int64_t channel_dim) {
  const auto x = input.detach().to(at::kDouble).contiguous().requires_grad_();
  const auto l = hardness.detach().to(at::kDouble).requires_grad_();
  const auto grads = torch::autograd::grad({reference(x, l, channel_dim)}, {x, l}, {g.to(at::kDouble)});
  return {grads[0], grads[1]};
}

/// Half an ULP for rounding the result to `dtype`, doubled; in float32 and float64, room for the kernel's own error.
inline double relative_tolerance(at::ScalarType dtype) {
  switch (dtype) {
    case at::kBFloat16:
      return std::exp2(-8);
    case at::kHalf:
      return std::exp2(-11);
    case at::kFloat:
      return 1e-6;
    default:
      return 1e-14;
  }
}

inline void expect_close(const at::Tensor& actual, const at::Tensor& expected, double rtol, double atol) {
  const auto a = actual.detach().to(at::kDouble);
  const auto b = expected.detach().to(at::kDouble);
  ASSERT_EQ(a.sizes(), b.sizes());
  EXPECT_TRUE(at::allclose(a, b, rtol, atol)) << "largest difference " << (a - b).abs().max().item<double>();
}

}  // namespace lambda_gelu::testing
