// Values of the operators on CUDA: every dtype and layout, with the tolerances of the CPU's tests.
#include <lambda_gelu/ops/functional.h>
#include <simt.h>
#include <torch/csrc/autograd/autograd.h>

#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "cuda_testing.h"
#include "ops/operators.h"

namespace lambda_gelu::testing {
namespace {

class CudaDTypes : public CudaTest, public ::testing::WithParamInterface<at::ScalarType> {};
INSTANTIATE_TEST_SUITE_P(Op, CudaDTypes, ::testing::Values(at::kFloat, at::kDouble, at::kBFloat16, at::kHalf),
                         [](const auto& param) { return std::string(c10::toString(param.param)); });

TEST_P(CudaDTypes, EqualsScaledGeluInEveryLayoutAndChannelDimension) {
  for (const auto& layout : layouts()) {
    const auto x = layout.make(GetParam());
    for (const int64_t channel_dim : {0, 1, 2, 3, -1, -4}) {
      SCOPED_TRACE(layout.name + ", channel_dim " + std::to_string(channel_dim));
      const auto wrapped = channel_dim < 0 ? channel_dim + 4 : channel_dim;
      const auto hardness = hardness_for(x, wrapped);
      const auto y = lambda_gelu(to_cuda(x), to_cuda(hardness), channel_dim);
      EXPECT_EQ(y.device(), cuda());
      EXPECT_EQ(y.scalar_type(), x.scalar_type());
      EXPECT_EQ(y.strides(), lambda_gelu(x, hardness, channel_dim).strides());
      expect_close(y.cpu(), reference(x, hardness, wrapped), relative_tolerance(GetParam()), 2e-7);
    }
  }
}

TEST_P(CudaDTypes, OneHardnessForTheWholeInput) {
  for (const auto& layout : layouts()) {
    SCOPED_TRACE(layout.name);
    const auto x = layout.make(GetParam());
    const auto hardness = at::full({1}, 1.75, at::kFloat);
    const auto y = lambda_gelu(to_cuda(x), hardness.to(cuda()));
    expect_close(y.cpu(), reference(x, hardness), relative_tolerance(GetParam()), 2e-7);
    EXPECT_TRUE(at::equal(y.cpu(), lambda_gelu(to_cuda(x), 1.75).cpu()));
  }
}

TEST_P(CudaDTypes, GradientsEqualThoseOfScaledGeluInEveryLayout) {
  const double atol = GetParam() == at::kDouble ? 1e-13 : 2e-6;
  for (const auto& layout : layouts()) {
    for (const auto& grad_layout : layouts()) {
      const auto x = layout.make(GetParam());
      const auto g = grad_layout.make(GetParam());
      for (const int64_t channel_dim : {0, 1, 3}) {
        SCOPED_TRACE(layout.name + ", gradient " + grad_layout.name + ", channel_dim " + std::to_string(channel_dim));
        const auto hardness = hardness_for(x, channel_dim);
        const auto [dx, dh] = lambda_gelu_backward(to_cuda(g), to_cuda(x), to_cuda(hardness), channel_dim);
        const auto [expected_dx, expected_dh] = reference_gradients(g, x, hardness, channel_dim);
        EXPECT_EQ(dx.scalar_type(), x.scalar_type());
        EXPECT_EQ(dh.scalar_type(), hardness.scalar_type());
        EXPECT_EQ(dx.strides(), at::empty_like(x).strides());
        expect_close(dx.cpu(), expected_dx, relative_tolerance(GetParam()), atol);
        expect_close(dh.cpu(), expected_dh, 1e-5, 10 * atol);
      }
    }
  }
}

TEST_P(CudaDTypes, AgreesWithTheCpuOnManyTiles) {
  for (const auto& sizes : std::vector<std::vector<int64_t>>{{100'003}, {3, 5, 4099}, {40, 3, 7, 7}, {999, 33}}) {
    const auto x = normal(sizes, GetParam());
    const auto g = normal(sizes, GetParam());
    const auto hardness = sizes.size() == 1 ? at::full({1}, 1.7) : at::rand({sizes[1]}) + 1;
    const auto [dx, dh] = lambda_gelu_backward(to_cuda(g), to_cuda(x), to_cuda(hardness));
    const auto [cpu_dx, cpu_dh] = lambda_gelu_backward(g, x, hardness);
    const double atol = GetParam() == at::kDouble ? 1e-14 : 1e-6;
    expect_close(lambda_gelu(to_cuda(x), to_cuda(hardness)).cpu(), lambda_gelu(x, hardness),
                 2 * relative_tolerance(GetParam()), atol);
    expect_close(dx.cpu(), cpu_dx, 2 * relative_tolerance(GetParam()), 2 * atol);
    expect_close(dh.cpu(), cpu_dh, 1e-5, 1e-4);
  }
}

TEST_P(CudaDTypes, TheGradientReplacesTheIncomingOne) {
  for (const auto& layout : layouts()) {
    const auto x = layout.make(GetParam());
    if (!x.is_non_overlapping_and_dense()) continue;
    SCOPED_TRACE(layout.name);
    const auto g = to_cuda(at::empty_like(x).copy_(normal(x.sizes(), GetParam())));
    for (const int64_t count : {1, 6}) {
      const auto raw = to_cuda(at::rand({count}));
      const auto [expected_dx, expected_ds] = lambda_gelu_backward(g, to_cuda(x), raw, 1, 0.7);
      const auto grad = to_cuda(g.cpu());
      const auto* const memory = grad.const_data_ptr();
      const auto ds = lambda_gelu_backward_(grad, to_cuda(x), raw, 1, 0.7);
      EXPECT_EQ(grad.const_data_ptr(), memory);
      EXPECT_TRUE(at::equal(grad.cpu(), expected_dx.cpu()));
      EXPECT_TRUE(at::equal(ds.cpu(), expected_ds.cpu()));
    }
  }
}

TEST_P(CudaDTypes, NonFiniteInputsPassThrough) {
  const auto x = at::tensor({kInfinity, -kInfinity, kNaN, 0.0, -0.0}, at::kDouble).to(GetParam());
  const auto y = lambda_gelu(to_cuda(x), 2.0).cpu();
  EXPECT_TRUE(at::equal(y.nan_to_num(7, kInfinity), at::tensor({kInfinity, 0.0, 7.0, 0.0, 0.0}).to(GetParam())));
  const auto [dx, dh] = lambda_gelu_backward(at::ones_like(to_cuda(x)), to_cuda(x), at::full({1}, 2.0, cuda()));
  EXPECT_TRUE(at::equal(dx.cpu().nan_to_num(7), at::tensor({1.0, 0.0, 7.0, 0.5, 0.5}).to(GetParam())));
}

class CudaOp : public CudaTest {};

TEST_F(CudaOp, HardnessMayBeFloat32Float64OrOfTheInputsType) {
  for (const auto input_dtype : {at::kFloat, at::kDouble, at::kBFloat16, at::kHalf}) {
    for (const auto hardness_dtype : {at::kFloat, at::kDouble, input_dtype}) {
      const auto x = normal({7, 3}, input_dtype);
      const auto hardness = at::tensor({1.0, 1.5, 3.0}, at::kDouble).to(hardness_dtype);
      const auto [dx, dh] = lambda_gelu_backward(to_cuda(at::ones_like(x)), to_cuda(x), to_cuda(hardness));
      EXPECT_EQ(lambda_gelu(to_cuda(x), to_cuda(hardness)).scalar_type(), input_dtype);
      EXPECT_EQ(dx.scalar_type(), input_dtype);
      EXPECT_EQ(dh.scalar_type(), hardness_dtype);
      expect_close(dh.cpu(), std::get<1>(reference_gradients(at::ones_like(x), x, hardness, 1)),
                   relative_tolerance(hardness_dtype) + 1e-5, 1e-6);
    }
  }
}

TEST_F(CudaOp, StridedHardnessIsReadByItsStride) {
  const auto x = to_cuda(normal({5, 3}, at::kFloat));
  const auto hardness = to_cuda(at::tensor({1.0, 9.0, 2.0, 9.0, 3.0}, at::kFloat)).slice(0, 0, 5, 2);
  const auto expanded = at::full({1}, 2.0, cuda()).expand({3});
  EXPECT_TRUE(at::equal(lambda_gelu(x, hardness), lambda_gelu(x, hardness.contiguous())));
  EXPECT_TRUE(at::equal(lambda_gelu(x, expanded), lambda_gelu(x, 2.0)));
  for (const auto& strided : {hardness, expanded}) {
    const auto dh = std::get<1>(lambda_gelu_backward(at::ones_like(x), x, strided));
    EXPECT_TRUE(at::equal(dh, std::get<1>(lambda_gelu_backward(at::ones_like(x), x, strided.contiguous()))));
  }
}

TEST_F(CudaOp, TemperatureMeansTheHardnessThatSoftplusGives) {
  const auto x = normal({50, 4}, at::kFloat);
  const auto g = normal({50, 4}, at::kFloat);
  const auto raw = at::tensor({-0.3, 0.0, 0.2, 1.5}, at::kFloat);
  const auto hardness = (at::softplus(raw.to(at::kDouble) / 0.1) + 1).to(at::kFloat);
  EXPECT_TRUE(
      at::equal(softplus_lambda_gelu(to_cuda(x), to_cuda(raw), 0.1), lambda_gelu(to_cuda(x), to_cuda(hardness))));

  const auto [dx, ds] = lambda_gelu_backward(to_cuda(g), to_cuda(x), to_cuda(raw), 1, 0.1);
  const auto [expected_dx, dh] = lambda_gelu_backward(to_cuda(g), to_cuda(x), to_cuda(hardness));
  EXPECT_TRUE(at::equal(dx, expected_dx));
  expect_close(ds.cpu(), dh.cpu().to(at::kDouble) * at::sigmoid(raw.to(at::kDouble) / 0.1) / 0.1, 2e-7, 0);
}

TEST_F(CudaOp, EmptyAndDimensionlessInputs) {
  for (const auto& [sizes, count] : std::vector<std::pair<std::vector<int64_t>, int64_t>>{
           {{0}, 1}, {{0, 4}, 4}, {{3, 0, 2}, 1}, {{3, 4, 0}, 4}, {{3, 0}, 0}}) {
    const auto x = at::empty(sizes, cuda(1));
    const auto hardness = at::ones({count}, cuda(1));
    const simt::Recording launches;
    EXPECT_EQ(lambda_gelu(x, hardness).sizes(), x.sizes());
    const auto [dx, dh] = lambda_gelu_backward(x, x, hardness);
    EXPECT_EQ(dx.sizes(), x.sizes());
    EXPECT_EQ(dx.device(), cuda(1));
    EXPECT_TRUE(at::equal(dh.cpu(), at::zeros({count})));
    EXPECT_TRUE(launches.launches().empty());
  }
  const auto scalar = at::scalar_tensor(0.75, at::kDouble);
  const auto y = lambda_gelu(scalar.to(cuda()), 2.0);
  expect_close(y.cpu(), at::gelu(scalar * 2) / 2, 1e-14, 0);
  EXPECT_EQ(y.dim(), 0);
}

TEST_F(CudaOp, AnyNumberOfDimensions) {
  std::vector<int64_t> sizes(17, 2);
  std::vector<int64_t> reversed(17);
  for (int64_t i = 0; i < 17; ++i) reversed[i] = 16 - i;
  const auto x = normal(sizes, at::kFloat);
  const auto g = normal(sizes, at::kFloat).permute(reversed);
  const auto hardness = at::tensor({1.0, 2.0}, at::kFloat);
  const auto [dx, dh] = lambda_gelu_backward(to_cuda(g), to_cuda(x), to_cuda(hardness));
  const auto [cpu_dx, cpu_dh] = lambda_gelu_backward(g, x, hardness);
  expect_close(dx.cpu(), cpu_dx, 2e-6, 2e-6);
  expect_close(dh.cpu(), cpu_dh, 1e-5, 1e-4);
}

TEST_F(CudaOp, ALazyCopyOfAGradientDetachesBeforeItIsWrittenTo) {
  const auto mine = to_cuda(at::full({16, 8}, 0.5));
  const auto x = to_cuda(normal({16, 8}, at::kFloat));
  const auto hardness = at::full({1}, 1.5, cuda());
  const auto copy = at::_lazy_clone(mine);
  lambda_gelu_backward_(copy, x, hardness, 1, std::nullopt);
  EXPECT_TRUE(at::equal(mine.cpu(), at::full({16, 8}, 0.5)));
  EXPECT_TRUE(at::equal(copy, std::get<0>(lambda_gelu_backward(mine, x, hardness))));
}

}  // namespace
}  // namespace lambda_gelu::testing
