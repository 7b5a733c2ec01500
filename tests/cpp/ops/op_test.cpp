// Values of the operator and its backward: dtypes, layouts, devices, threads.
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <lambda_gelu/math/hardness.h>
#include <lambda_gelu/ops/functional.h>
#include <torch/csrc/autograd/autograd.h>

#include <tuple>

#include "testing.h"

namespace lambda_gelu::testing {
namespace {

class DTypes : public ::testing::TestWithParam<at::ScalarType> {
 protected:
  void SetUp() override { at::manual_seed(0); }
};
INSTANTIATE_TEST_SUITE_P(Op, DTypes, ::testing::Values(at::kFloat, at::kDouble, at::kBFloat16, at::kHalf),
                         [](const auto& param) { return std::string(c10::toString(param.param)); });

TEST_P(DTypes, EqualsScaledGeluInEveryLayoutAndChannelDimension) {
  for (const auto& layout : layouts()) {
    const auto x = layout.make(GetParam());
    for (const int64_t channel_dim : {0, 1, 2, 3, -1, -4}) {
      SCOPED_TRACE(layout.name + ", channel_dim " + std::to_string(channel_dim));
      const auto wrapped = channel_dim < 0 ? channel_dim + 4 : channel_dim;
      const auto hardness = hardness_for(x, wrapped);
      const auto y = lambda_gelu(x, hardness, channel_dim);
      EXPECT_EQ(y.scalar_type(), x.scalar_type());
      EXPECT_EQ(y.strides(), at::gelu(x).strides());  // TensorIterator's rule
      expect_close(y, reference(x, hardness, wrapped), relative_tolerance(GetParam()), 2e-7);
    }
  }
}

TEST_P(DTypes, OneHardnessForTheWholeInput) {
  for (const auto& layout : layouts()) {
    SCOPED_TRACE(layout.name);
    const auto x = layout.make(GetParam());
    const auto hardness = at::full({1}, 1.75, at::kFloat);
    const auto y = lambda_gelu(x, hardness);
    expect_close(y, reference(x, hardness), relative_tolerance(GetParam()), 2e-7);
    EXPECT_TRUE(at::equal(y, lambda_gelu(x, 1.75)));
    EXPECT_TRUE(at::equal(y, lambda_gelu(x, hardness, /*channel_dim=*/17)));  // ignored
  }
}

TEST_P(DTypes, GradientsEqualThoseOfScaledGeluInEveryLayout) {
  for (const auto& layout : layouts()) {
    for (const auto& grad_layout : layouts()) {
      const auto x = layout.make(GetParam());
      const auto g = grad_layout.make(GetParam());
      for (const int64_t channel_dim : {0, 1, 3}) {
        SCOPED_TRACE(layout.name + ", gradient " + grad_layout.name + ", channel_dim " + std::to_string(channel_dim));
        const auto hardness = hardness_for(x, channel_dim);
        const auto [dx, dh] = lambda_gelu_backward(g, x, hardness, channel_dim);
        const auto [expected_dx, expected_dh] = reference_gradients(g, x, hardness, channel_dim);
        EXPECT_EQ(dx.scalar_type(), x.scalar_type());
        EXPECT_EQ(dh.scalar_type(), hardness.scalar_type());
        EXPECT_EQ(dx.strides(), at::empty_like(x).strides());
        const double atol = GetParam() == at::kDouble ? 1e-13 : 2e-6;
        expect_close(dx, expected_dx, relative_tolerance(GetParam()), atol);
        expect_close(dh, expected_dh, 1e-5, 10 * atol);
      }
    }
  }
}

TEST_P(DTypes, NonFiniteInputsPassThrough) {
  const auto x = at::tensor({kInfinity, -kInfinity, kNaN, 0.0, -0.0}, at::kDouble).to(GetParam());
  const auto y = lambda_gelu(x, 2.0).to(at::kDouble);
  EXPECT_EQ(y[0].item<double>(), kInfinity);
  EXPECT_EQ(y[1].item<double>(), 0.0);
  EXPECT_TRUE(std::isnan(y[2].item<double>()));
  EXPECT_EQ(y[3].item<double>(), 0.0);
  EXPECT_EQ(y[4].item<double>(), 0.0);

  const auto [dx, dh] = lambda_gelu_backward(at::ones_like(x), x, at::full({1}, 2.0));
  const auto d = dx.to(at::kDouble);
  EXPECT_EQ(d[0].item<double>(), 1.0);
  EXPECT_EQ(d[1].item<double>(), 0.0);
  EXPECT_TRUE(std::isnan(d[2].item<double>()));
  EXPECT_EQ(d[3].item<double>(), 0.5);
  EXPECT_EQ(d[4].item<double>(), 0.5);
}

TEST_P(DTypes, SameGradientBitsForAnyNumberOfThreads) {
  const int before = at::get_num_threads();
  for (const auto& sizes : std::vector<std::vector<int64_t>>{{1'000'003}, {501, 33, 61}}) {
    const auto x = normal(sizes, GetParam());
    const auto g = normal(sizes, GetParam());
    const auto hardness = sizes.size() == 1 ? at::full({1}, 1.7) : at::rand({33}) + 1;
    at::set_num_threads(1);
    const auto [dx, dh] = lambda_gelu_backward(g, x, hardness);
    const auto y = lambda_gelu(x, hardness);
    for (const int threads : {2, 3, 4}) {
      at::set_num_threads(threads);
      const auto [dx_again, dh_again] = lambda_gelu_backward(g, x, hardness);
      EXPECT_TRUE(at::equal(dx, dx_again)) << threads << " threads";
      EXPECT_TRUE(at::equal(dh, dh_again)) << threads << " threads";
      EXPECT_TRUE(at::equal(y, lambda_gelu(x, hardness))) << threads << " threads";
    }
  }
  at::set_num_threads(before);
}

TEST(Op, HardnessMayBeOfAnotherFloatingPointTypeThanTheInput) {
  for (const auto input_dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
    for (const auto hardness_dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
      const auto x = normal({7, 3}, input_dtype);
      const auto hardness = at::tensor({1.0, 1.5, 3.0}, at::kDouble).to(hardness_dtype);
      const auto [dx, dh] = lambda_gelu_backward(at::ones_like(x), x, hardness);
      EXPECT_EQ(lambda_gelu(x, hardness).scalar_type(), input_dtype);
      EXPECT_EQ(dx.scalar_type(), input_dtype);
      EXPECT_EQ(dh.scalar_type(), hardness_dtype);
      expect_close(dh, std::get<1>(reference_gradients(at::ones_like(x), x, hardness, 1)),
                   relative_tolerance(hardness_dtype) + 1e-5, 1e-6);
    }
  }
}

TEST(Op, StridedHardnessIsReadByItsStride) {
  const auto x = normal({5, 3}, at::kFloat);
  const auto hardness = at::tensor({1.0, 9.0, 2.0, 9.0, 3.0}, at::kFloat).slice(0, 0, 5, 2);
  const auto expanded = at::full({1}, 2.0).expand({3});
  EXPECT_TRUE(at::equal(lambda_gelu(x, hardness), lambda_gelu(x, hardness.contiguous())));
  EXPECT_TRUE(at::equal(lambda_gelu(x, expanded), lambda_gelu(x, 2.0)));
  const auto dh = std::get<1>(lambda_gelu_backward(at::ones_like(x), x, expanded));
  const auto per_channel = std::get<1>(lambda_gelu_backward(at::ones_like(x), x, expanded.contiguous()));
  EXPECT_TRUE(at::equal(dh, per_channel));
}

TEST(Op, EmptyAndDimensionlessInputs) {
  for (const auto& [sizes, count] : std::vector<std::pair<std::vector<int64_t>, int64_t>>{
           {{0}, 1}, {{0, 4}, 4}, {{3, 0, 2}, 1}, {{3, 4, 0}, 4}, {{3, 0}, 0}}) {
    const auto x = at::empty(sizes, at::kFloat);
    const auto hardness = at::ones({count});
    EXPECT_EQ(lambda_gelu(x, hardness).sizes(), x.sizes());
    const auto [dx, dh] = lambda_gelu_backward(x, x, hardness);
    EXPECT_EQ(dx.sizes(), x.sizes());
    EXPECT_TRUE(at::equal(dh, at::zeros({count})));
  }
  const auto scalar = at::scalar_tensor(0.75, at::kDouble);
  expect_close(lambda_gelu(scalar, 2.0), at::gelu(scalar * 2) / 2, 1e-14, 0);
  EXPECT_EQ(lambda_gelu(scalar, 2.0).dim(), 0);
}

TEST(Op, TemperatureMeansTheHardnessThatSoftplusGives) {
  const auto x = normal({50, 4}, at::kFloat);
  const auto g = normal({50, 4}, at::kFloat);
  const double temperature = 0.1;
  const auto raw = at::tensor({-0.3, 0.0, 0.2, 1.5}, at::kFloat);
  auto hardness = at::empty({4}, at::kFloat);
  auto derivative = at::empty({4}, at::kDouble);
  for (int64_t i = 0; i < 4; ++i) {
    hardness[i] = static_cast<float>(hardness_from_raw(raw[i].item<double>(), temperature));
    derivative[i] = hardness_derivative(raw[i].item<double>(), temperature);
  }
  EXPECT_TRUE(at::equal(softplus_lambda_gelu(x, raw, temperature), lambda_gelu(x, hardness)));
  EXPECT_TRUE(at::equal(lambda_gelu(x, raw, 1, temperature), lambda_gelu(x, hardness)));

  const auto [dx, ds] = lambda_gelu_backward(g, x, raw, 1, temperature);
  const auto [expected_dx, dh] = lambda_gelu_backward(g, x, hardness);
  EXPECT_TRUE(at::equal(dx, expected_dx));
  expect_close(ds, dh.to(at::kDouble) * derivative, 2e-7, 0);
}

TEST(Op, MetaGivesShapesDtypesAndStrides) {
  for (const auto& layout : layouts()) {
    SCOPED_TRACE(layout.name);
    const auto x = layout.make(at::kBFloat16);
    const auto hardness = at::ones({6}, at::kFloat);
    const auto meta = at::empty_strided(x.sizes(), x.strides(), x.options().device(at::kMeta));
    const auto y = lambda_gelu(meta, hardness.to(at::kMeta));
    EXPECT_TRUE(y.is_meta());
    EXPECT_EQ(y.strides(), lambda_gelu(x, hardness).strides());
    const auto [dx, dh] = lambda_gelu_backward(meta, meta, hardness.to(at::kMeta));
    EXPECT_EQ(dx.strides(), y.strides());
    EXPECT_EQ(dx.scalar_type(), at::kBFloat16);
    EXPECT_EQ(dh.sizes(), hardness.sizes());
    EXPECT_EQ(dh.scalar_type(), at::kFloat);
  }
}

// What a device without kernels runs: the kernels registered for PrivateUse1, given CPU tensors.
struct Composite {
  template <class Signature, class... Args>
  static auto call(const char* name, const Args&... args) {
    static const c10::DispatchKeySet keys(c10::DispatchKey::PrivateUse1);
    const auto op = c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
    return op.redispatch(keys, args...);
  }
  static at::Tensor forward(const at::Tensor& x, const at::Tensor& h, int64_t dim, std::optional<double> temperature) {
    using Signature = at::Tensor(const at::Tensor&, const at::Tensor&, int64_t, std::optional<double>);
    return call<Signature>("lambda_gelu::lambda_gelu", x, h, dim, temperature);
  }
  static std::tuple<at::Tensor, at::Tensor> backward(const at::Tensor& g, const at::Tensor& x, const at::Tensor& h,
                                                     int64_t dim, std::optional<double> temperature) {
    using Signature = std::tuple<at::Tensor, at::Tensor>(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                                         int64_t, std::optional<double>);
    return call<Signature>("lambda_gelu::lambda_gelu_backward", g, x, h, dim, temperature);
  }
};

TEST_P(DTypes, CompositeOfOtherDevicesAgreesWithTheKernels) {
  const at::NoGradGuard no_grad;
  const double rtol = GetParam() == at::kDouble ? 1e-13 : 2 * relative_tolerance(GetParam());
  const double atol = GetParam() == at::kDouble ? 1e-15 : 1e-6;
  for (const auto& layout : layouts()) {
    for (const auto temperature : {std::optional<double>(), std::optional<double>(0.4)}) {
      SCOPED_TRACE(layout.name);
      const auto x = layout.make(GetParam());
      const auto g = normal(x.sizes(), GetParam());
      const auto hardness = hardness_for(x, 1).to(at::kFloat);
      const auto y = Composite::forward(x, hardness, 1, temperature);
      EXPECT_EQ(y.scalar_type(), GetParam());
      EXPECT_EQ(y.strides(), lambda_gelu(x, hardness, 1, temperature).strides());
      expect_close(y, lambda_gelu(x, hardness, 1, temperature), rtol, atol);

      const auto [dx, dh] = Composite::backward(g, x, hardness, 1, temperature);
      const auto [kernel_dx, kernel_dh] = lambda_gelu_backward(g, x, hardness, 1, temperature);
      EXPECT_EQ(dh.scalar_type(), hardness.scalar_type());
      expect_close(dx, kernel_dx, rtol, 4 * atol);
      expect_close(dh, kernel_dh, 1e-5, 1e-5);
    }
  }
}

TEST(Op, CompositePassesNonFiniteInputsThrough) {
  const auto x = at::tensor({kInfinity, -kInfinity, kNaN, 3e38, -3e38}, at::kFloat);
  const auto hardness = at::full({1}, 2.0);
  const auto y = Composite::forward(x, hardness, 1, std::nullopt);
  EXPECT_TRUE(at::equal(y.nan_to_num(7, kInfinity), at::tensor({kInfinity, 0.0, 7.0, 3e38, 0.0}, at::kFloat)));
  const auto dx = std::get<0>(Composite::backward(at::ones({5}), x, hardness, 1, std::nullopt));
  EXPECT_TRUE(at::equal(dx.nan_to_num(7), at::tensor({1.0, 0.0, 7.0, 1.0, 0.0}, at::kFloat)));
}

}  // namespace
}  // namespace lambda_gelu::testing
