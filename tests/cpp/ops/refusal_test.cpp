// Every refusal: before anything is computed, in words that name the argument, what was expected and what came.
#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>
#include <lambda_gelu/ops/functional.h>

#include <limits>
#include <string>
#include <vector>

#include "../expect_refusal.h"

namespace lambda_gelu::testing {
namespace {

class Refusal : public ::testing::TestWithParam<at::DeviceType> {
 protected:
  at::Tensor zeros(at::IntArrayRef sizes, at::ScalarType dtype = at::kFloat) const {
    return at::zeros(sizes, at::TensorOptions().device(GetParam()).dtype(dtype));
  }
  at::Tensor ones(int64_t count, at::ScalarType dtype = at::kFloat) const { return zeros({count}, dtype) + 1; }
};
INSTANTIATE_TEST_SUITE_P(Op, Refusal, ::testing::Values(at::kCPU, at::kMeta),
                         [](const auto& param) { return at::DeviceTypeName(param.param); });

TEST(InplaceBackward, WritingToMemoryThatTheInputReads) {
  const auto op =
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("lambda_gelu::lambda_gelu_backward_", "")
          .typed<at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t, std::optional<double>)>();
  const auto memory = at::zeros({7});
  expect_refusal<c10::ValueError>(
      [&] { op.call(memory.slice(0, 1), memory.slice(0, 0, 6), at::ones({1}), 1, std::nullopt); },
      "grad_output must not share part of input's memory");
}

TEST_P(Refusal, InputDtype) {
  for (const auto& [dtype, name] : std::vector<std::pair<at::ScalarType, std::string>>{
           {at::kLong, "int64"}, {at::kByte, "uint8"}, {at::kBool, "bool"}, {at::kComplexFloat, "complex64"}}) {
    expect_refusal<c10::TypeError>([&, d = dtype] { lambda_gelu(zeros({2, 3}, d), ones(1)); },
                                   "input must be float32, float64, bfloat16 or float16, got " + name);
  }
}

TEST_P(Refusal, HardnessDtype) {
  for (const auto& [dtype, name] : std::vector<std::pair<at::ScalarType, std::string>>{
           {at::kLong, "int64"}, {at::kBool, "bool"}, {at::kComplexFloat, "complex64"}}) {
    expect_refusal<c10::TypeError>([&, d = dtype] { lambda_gelu(zeros({2, 3}), zeros({1}, d)); },
                                   "hardness must be float32, float64, bfloat16 or float16, got " + name);
  }
}

TEST_P(Refusal, HardnessShape) {
  expect_refusal<c10::ValueError>([&] { lambda_gelu(zeros({2, 64, 5}), ones(32)); },
                                  "hardness must have 1 or 64 elements (input.size(1)), got 32");
  expect_refusal<c10::ValueError>([&] { lambda_gelu(zeros({2, 64, 5}), ones(64), -1); },
                                  "hardness must have 1 or 5 elements (input.size(2)), got 64");
  expect_refusal<c10::ValueError>([&] { lambda_gelu(zeros({2, 64, 5}), ones(0)); },
                                  "hardness must have 1 or 64 elements (input.size(1)), got 0");
  expect_refusal<c10::ValueError>([&] { lambda_gelu(zeros({2, 3}), zeros({3, 1})); },
                                  "hardness must have one dimension, got shape [3, 1]");
  expect_refusal<c10::ValueError>([&] { lambda_gelu(zeros({2, 3}), zeros({})); },
                                  "hardness must have one dimension, got shape []");
  expect_refusal<c10::ValueError>([&] { lambda_gelu(zeros({}), ones(3)); },
                                  "hardness must have 1 element for an input without dimensions, got 3");
}

TEST_P(Refusal, HardnessDevice) {
  const auto other = GetParam() == at::kCPU ? at::kMeta : at::kCPU;
  expect_refusal<c10::Error>([&] { lambda_gelu(zeros({2, 3}), at::ones({1}, other)); },
                             "hardness must be on input's device");
}

TEST_P(Refusal, ChannelDim) {
  expect_refusal<c10::ValueError>([&] { lambda_gelu(zeros({2, 64, 5}), ones(64), 3); },
                                  "channel_dim must be in [-3, 2] for an input of shape [2, 64, 5], got 3");
  expect_refusal<c10::ValueError>([&] { lambda_gelu(zeros({2, 64, 5}), ones(64), -4); },
                                  "channel_dim must be in [-3, 2] for an input of shape [2, 64, 5], got -4");
  expect_refusal<c10::ValueError>([&] { lambda_gelu(zeros({64}), ones(64)); },
                                  "channel_dim must be in [-1, 0] for an input of shape [64], got 1");
}

TEST_P(Refusal, Temperature) {
  for (const auto& [value, text] :
       std::vector<std::pair<double, std::string>>{{0.0, "0"},
                                                   {-0.5, "-0.5"},
                                                   {std::numeric_limits<double>::infinity(), "inf"},
                                                   {std::numeric_limits<double>::quiet_NaN(), "nan"}}) {
    expect_refusal<c10::ValueError>([&, v = value] { softplus_lambda_gelu(zeros({2, 3}), ones(1), v); },
                                    "temperature must be finite and positive, got " + text);
    expect_refusal<c10::ValueError>(
        [&, v = value] { lambda_gelu_backward(zeros({2, 3}), zeros({2, 3}), ones(1), 1, v); },
        "temperature must be finite and positive, got " + text);
  }
}

TEST_P(Refusal, HardnessAsANumber) {
  for (const double value :
       {0.0, -1.0, std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN(), 1e300, 1e-50}) {
    expect_refusal<c10::ValueError>([&] { lambda_gelu(zeros({2, 3}), value); },
                                    "hardness must be finite and positive in Float, got");
  }
  EXPECT_NO_THROW(lambda_gelu(zeros({2, 3}, at::kDouble), 1e300));
}

TEST_P(Refusal, GradOutput) {
  expect_refusal<c10::ValueError>([&] { lambda_gelu_backward(zeros({3, 2}), zeros({2, 3}), ones(1)); },
                                  "grad_output must have input's shape [2, 3], got [3, 2]");
  expect_refusal<c10::ValueError>([&] { lambda_gelu_backward(zeros({2, 3, 1}), zeros({2, 3}), ones(1)); },
                                  "grad_output must have input's shape [2, 3], got [2, 3, 1]");
  expect_refusal<c10::TypeError>([&] { lambda_gelu_backward(zeros({2, 3}, at::kDouble), zeros({2, 3}), ones(1)); },
                                 "grad_output must be of input's dtype float32, got float64");
}

TEST_P(Refusal, BackwardRepeatsTheChecksOfForward) {
  expect_refusal<c10::ValueError>([&] { lambda_gelu_backward(zeros({2, 3}), zeros({2, 3}), ones(2)); },
                                  "hardness must have 1 or 3 elements (input.size(1)), got 2");
  expect_refusal<c10::TypeError>(
      [&] { lambda_gelu_backward(zeros({2, 3}, at::kLong), zeros({2, 3}, at::kLong), ones(1)); },
      "input must be float32, float64, bfloat16 or float16, got int64");
}

TEST(RefusalOfLayouts, SparseQuantizedAndNested) {
  const auto dense = at::ones({2, 3});
  const auto hardness = at::ones({1});
  expect_refusal<c10::TypeError>([&] { lambda_gelu(dense.to_sparse(), hardness); },
                                 "input must be a dense tensor, got layout Sparse");
  expect_refusal<c10::TypeError>([&] { lambda_gelu(dense.to_sparse_csr(), hardness); },
                                 "input must be a dense tensor, got layout SparseCsr");
  expect_refusal<c10::TypeError>([&] { lambda_gelu(at::quantize_per_tensor(dense, 0.1, 0, at::kQUInt8), hardness); },
                                 "input must be float32, float64, bfloat16 or float16, got quint8");
  expect_refusal<c10::TypeError>(
      [&] {
        lambda_gelu(at::_nested_tensor_from_tensor_list({at::ones({2}), at::ones({3})}, {}, {}, {}, {}), hardness);
      },
      "input must be a dense tensor, got a nested tensor");
  expect_refusal<c10::TypeError>([&] { lambda_gelu(dense, hardness.to_sparse()); },
                                 "hardness must be a dense tensor, got layout Sparse");
  expect_refusal<c10::TypeError>([&] { lambda_gelu_backward(dense.to_sparse(), dense, hardness); },
                                 "grad_output must be a dense tensor, got layout Sparse");
}

TEST(RefusalOfLayouts, WhereAGradientIsAskedForToo) {
  expect_refusal<c10::TypeError>([] { lambda_gelu(at::ones({2, 3}).to_sparse().requires_grad_(), at::ones({1})); },
                                 "input must be a dense tensor, got layout Sparse");
  expect_refusal<c10::ValueError>(
      [] { lambda_gelu(at::ones({2, 3}).requires_grad_(), at::ones({2}).requires_grad_()); },
      "hardness must have 1 or 3 elements (input.size(1)), got 2");
}

}  // namespace
}  // namespace lambda_gelu::testing
