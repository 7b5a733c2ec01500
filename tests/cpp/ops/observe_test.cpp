// observe_ on tensors: layouts, devices, what it refuses.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <gtest/gtest.h>
#include <lambda_gelu/math/histogram.h>
#include <lambda_gelu/ops/observe.h>

#include "../expect_refusal.h"
#include "testing.h"

namespace lambda_gelu::testing {
namespace {

struct Tables {
  at::Tensor counts, moments;

  explicit Tables(int64_t rows)
      : counts(at::zeros({rows, kHistogramBins}, at::kLong)), moments(at::zeros({rows, 4}, at::kDouble)) {}
};

Histogram histogram_of(const at::Tensor& x) {
  const auto values = x.to(at::kDouble).flatten().contiguous();
  Histogram histogram;
  for (int64_t i = 0; i < values.numel(); ++i) histogram.add(values.const_data_ptr<double>()[i]);
  return histogram;
}

void expect_row(const Tables& tables, int64_t row, const at::Tensor& x) {
  const auto expected = histogram_of(x);
  const auto counts = at::tensor(at::ArrayRef<int64_t>(expected.counts().data(), expected.counts().size()), at::kLong);
  EXPECT_TRUE(at::equal(tables.counts[row], counts)) << "row " << row;
  const auto moments =
      at::tensor({expected.sum(), expected.sq_sum(), expected.sq_sum_relu(), static_cast<double>(expected.nonfinite())},
                 at::kDouble);
  EXPECT_TRUE(at::allclose(tables.moments[row], moments, 1e-12, 1e-10)) << tables.moments[row] << moments;
}

at::Tensor with_specials(at::Tensor x) {
  const auto places = x.as_strided({4}, {1}, x.storage_offset());  // what they are does not depend on the layout
  places.copy_(at::tensor({kNaN, -kInfinity, 0.0, -0.0}, at::kDouble));
  return x;
}

class ObserveDTypes : public ::testing::TestWithParam<at::ScalarType> {
 protected:
  void SetUp() override { at::manual_seed(0); }
};
INSTANTIATE_TEST_SUITE_P(Observe, ObserveDTypes, ::testing::Values(at::kFloat, at::kDouble, at::kBFloat16, at::kHalf),
                         [](const auto& param) { return std::string(c10::toString(param.param)); });

TEST_P(ObserveDTypes, CountsInEveryLayoutAndChannelDimension) {
  for (const auto& layout : layouts()) {
    const auto x = with_specials(layout.make(GetParam()));
    Tables whole(1);
    observe_(x, whole.counts, whole.moments, /*channel_dim=*/17);  // ignored
    SCOPED_TRACE(layout.name);
    expect_row(whole, 0, x);
    for (const int64_t channel_dim : {0, 1, 2, 3, -1, -4}) {
      Tables tables(x.size(channel_dim));
      observe_(x, tables.counts, tables.moments, channel_dim);
      for (int64_t row = 0; row < x.size(channel_dim); ++row) expect_row(tables, row, x.select(channel_dim, row));
    }
  }
}

// What every other device runs.
TEST_P(ObserveDTypes, CompositeCountsTheSame) {
  const auto op = c10::Dispatcher::singleton()
                      .findSchemaOrThrow("lambda_gelu::observe_", "")
                      .typed<void(const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t)>();
  for (const auto& layout : layouts()) {
    SCOPED_TRACE(layout.name);
    const auto x = with_specials(layout.make(GetParam()));
    for (const int64_t rows : {1, 6}) {
      Tables expected(rows), composite(rows);
      observe_(x, expected.counts, expected.moments);
      op.redispatch(c10::DispatchKeySet(c10::DispatchKey::XPU), x, composite.counts, composite.moments, 1);
      EXPECT_TRUE(at::equal(composite.counts, expected.counts));
      EXPECT_TRUE(at::allclose(composite.moments, expected.moments, 1e-12, 1e-10));
    }
  }
}

TEST(Observe, AddsAndRecordsNothing) {
  const auto x = at::randn({3, 5}).requires_grad_();
  Tables tables(1);
  observe_(x, tables.counts, tables.moments);
  observe_(x, tables.counts, tables.moments);
  EXPECT_EQ(tables.counts.sum().item<int64_t>(), 30);
  EXPECT_FALSE(tables.moments.requires_grad());
  EXPECT_FALSE(tables.counts.grad_fn());
  x.sum().backward();
  EXPECT_TRUE(at::equal(x.grad(), at::ones({3, 5})));
}

TEST(Observe, SameBitsForAnyNumberOfThreads) {
  at::manual_seed(0);
  const auto x = at::randn({3000, 100});
  std::vector<Tables> results;
  const auto before = at::get_num_threads();
  for (const int threads : {1, 2, 3, 4}) {
    at::set_num_threads(threads);
    for (const int64_t rows : {1, 100}) {
      results.emplace_back(rows);
      observe_(x, results.back().counts, results.back().moments);
    }
  }
  at::set_num_threads(before);
  for (size_t i = 2; i < results.size(); ++i) {
    EXPECT_TRUE(at::equal(results[i].counts, results[i % 2].counts));
    EXPECT_TRUE(at::equal(results[i].moments, results[i % 2].moments));
  }
}

TEST(Observe, TakesWhatHasNoElementsOrNoDimensions) {
  Tables tables(1);
  observe_(at::empty({0, 3}), tables.counts, tables.moments);
  EXPECT_EQ(tables.counts.sum().item<int64_t>(), 0);
  observe_(at::full({}, 2.5), tables.counts, tables.moments);
  expect_row(tables, 0, at::full({1}, 2.5));
  Tables channels(3);
  observe_(at::empty({0, 3}), channels.counts, channels.moments, 1);
  EXPECT_EQ(channels.counts.sum().item<int64_t>(), 0);
}

TEST(Observe, RefusesByNameAndChangesNothing) {
  const auto x = at::ones({2, 3});
  const Tables tables(1), rows(3);
  const auto& [counts, moments] = tables;
  const auto refuse = [&](auto error, auto&& call, auto... words) {
    expect_refusal<decltype(error)>(call, words...);
    EXPECT_EQ(counts.sum().item<int64_t>() + rows.counts.sum().item<int64_t>(), 0);
  };
  const c10::TypeError type({__func__, __FILE__, __LINE__}, "");
  const c10::ValueError value({__func__, __FILE__, __LINE__}, "");
  const c10::Error plain({__func__, __FILE__, __LINE__}, "");
  refuse(type, [&] { observe_(x.to(at::kInt), counts, moments); }, "input", "float32", "got int32");
  refuse(type, [&] { observe_(x.to_sparse(), counts, moments); }, "input", "dense", "Sparse");
  refuse(type, [&] { observe_(x, counts.to(at::kInt), moments); }, "counts", "int64", "got int32");
  refuse(type, [&] { observe_(x, counts, moments.to(at::kFloat)); }, "moments", "float64", "got float32");
  refuse(value, [&] { observe_(x, at::zeros({1, 255}, at::kLong), moments); }, "counts", "(rows, 256)", "255");
  refuse(value, [&] { observe_(x, at::zeros({256}, at::kLong), moments); }, "counts", "(rows, 256)", "[256]");
  refuse(value, [&] { observe_(x, counts, at::zeros({1, 3}, at::kDouble)); }, "moments", "(rows, 4)", "[1, 3]");
  refuse(value, [&] { observe_(x, rows.counts, moments); }, "moments", "as many rows", "3, got 1");
  refuse(value, [&] { observe_(x, rows.counts, rows.moments, 0); }, "counts", "1 or 2 rows", "input.size(0)", "got 3");
  refuse(value, [&] { observe_(x, rows.counts, rows.moments, 2); }, "channel_dim", "[-2, 1]", "got 2");
  refuse(value, [&] { observe_(at::ones({}), rows.counts, rows.moments); }, "counts", "without dimensions", "got 3");
  refuse(
      value, [&] { observe_(x, at::zeros({256, 1}, at::kLong).t().expand({3, 256}), rows.moments); }, "counts",
      "contiguous");
  refuse(plain, [&] { observe_(x, counts.to(at::kMeta), moments); }, "counts", "input's device cpu", "got meta");
}

}  // namespace
}  // namespace lambda_gelu::testing
