// What the tests of the nn floor share.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <lambda_gelu/nn/lambda_gelu.h>
#include <torch/nn/modules/container/sequential.h>
#include <torch/nn/modules/linear.h>
#include <torch/serialize.h>

#include <sstream>
#include <vector>

#include "../expect_refusal.h"

namespace lambda_gelu {

template <typename Call, typename... Words>
void expect_value_error(Call&& call, const Words&... words) {
  expect_refusal<c10::ValueError>(call, words...);
}

inline at::Tensor tensor_of(const std::vector<double>& values, at::ScalarType dtype = at::kFloat) {
  auto tensor = at::empty({static_cast<int64_t>(values.size())}, at::kDouble);
  std::copy(values.begin(), values.end(), tensor.mutable_data_ptr<double>());
  return tensor.to(dtype);
}

inline std::string shown(const at::Tensor& tensor) {
  std::ostringstream text;
  text << tensor.flatten().slice(0, 0, 8);
  return text.str();
}

/// Equal to the last bit; NaN equals NaN.
inline void expect_same(const at::Tensor& value, const at::Tensor& expected) {
  ASSERT_EQ(value.scalar_type(), expected.scalar_type());
  EXPECT_TRUE(at::equal(value.nan_to_num(-1e30), expected.nan_to_num(-1e30))) << shown(value) << "\nis not\n"
                                                                              << shown(expected);
}

inline void expect_close(const at::Tensor& value, const at::Tensor& expected, double relative, double absolute = 0) {
  EXPECT_TRUE(at::allclose(value, expected, relative, absolute)) << shown(value) << "\nis not\n" << shown(expected);
}

/// The identity f(x; lambda) = GELU(lambda x) / lambda, in float64.
inline at::Tensor reference(const at::Tensor& input, const at::Tensor& hardness) {
  const auto x = input.to(at::kDouble), h = hardness.to(at::kDouble);
  return at::gelu(h * x) / h;
}

/// Two hidden layers: sites "1" and "3".
inline torch::nn::Sequential make_mlp(const LambdaGELUOptions& options = {}) {
  return torch::nn::Sequential(torch::nn::Linear(3, 5), LambdaGELU(options), torch::nn::Linear(5, 5),
                               LambdaGELU(options), torch::nn::Linear(5, 1));
}

inline LambdaGELUImpl& site_of(torch::nn::Sequential& model, size_t index) {
  return *model->ptr(index)->as<LambdaGELUImpl>();
}

template <typename Value>
std::string saved(const Value& value) {
  std::ostringstream stream;
  torch::save(value, stream);
  return stream.str();
}

template <typename Value>
void load_from(const std::string& bytes, Value& value) {
  std::istringstream stream(bytes);
  torch::load(value, stream);
}

}  // namespace lambda_gelu
