// The operator that collects statistics of pre-activations: schema, checks, CPU, composite and Meta kernels.
#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <lambda_gelu/ops/observe.h>
#include <math/histogram_bins.h>
#include <torch/library.h>

#include <algorithm>

#include "kernels/cpu/observe.h"
#include "ops/checks.h"
#include "ops/cpu/run_units.h"
#include "ops/layout.h"

namespace lambda_gelu {
namespace {

using histogram::kBins;

constexpr int64_t kMoments = 4;

void check(const at::Tensor& input, const at::Tensor& counts, const at::Tensor& moments, int64_t channel_dim) {
  check_input(input);
  check_accumulator(counts, "counts", at::kLong, kBins, input);
  check_accumulator(moments, "moments", at::kDouble, kMoments, input);
  const auto rows = counts.sym_size(0);
  TORCH_CHECK_VALUE(TORCH_GUARD_OR_TRUE(moments.sym_size(0).sym_eq(rows)), "moments must have as many rows as counts, ",
                    rows, ", got ", moments.sym_size(0));
  if (TORCH_GUARD_OR_FALSE(rows.sym_eq(1))) return;
  TORCH_CHECK_VALUE(input.dim() > 0, "counts must have 1 row for an input without dimensions, got ", rows);
  const auto dim = checked_channel_dim(channel_dim, input);
  TORCH_CHECK_VALUE(TORCH_GUARD_OR_TRUE(input.sym_size(dim).sym_eq(rows)), "counts must have 1 or ",
                    input.sym_size(dim), " rows (input.size(", dim, ")), got ", rows);
}

void observe_meta(const at::Tensor& input, const at::Tensor& counts, const at::Tensor& moments, int64_t channel_dim) {
  check(input, counts, moments, channel_dim);
}

void observe_cpu(const at::Tensor& input, const at::Tensor& counts, const at::Tensor& moments, int64_t channel_dim) {
  check(input, counts, moments, channel_dim);
  if (input.numel() == 0) return;
  // Which element comes when does not matter to a histogram: only holes and repetitions need a copy.
  const auto x = input.is_non_overlapping_and_dense() ? input : input.contiguous();
  kernels::Observation kernel(kernel_dtype(x.scalar_type()),
                              make_geometry(x, memory_order(x), counts.size(0), channel_dim), x.const_data_ptr(),
                              counts.mutable_data_ptr<int64_t>(), moments.mutable_data_ptr<double>());
  cpu::run_units(kernel, x.numel());
  kernel.finish();
}

template <class T>
at::Tensor bins_of(const at::Tensor& x, at::ScalarType integer) {
  using B = histogram::Bits<T>;
  const auto bits = x.view(integer);
  const auto bin = (bits.bitwise_and(B::kMagnitude).bitwise_right_shift(B::kShift) - B::kFirst)
                       .clamp(0, histogram::kBinsPerSign - 1)
                       .to(at::kLong);
  return bin + (x > 0).logical_not() * histogram::kBinsPerSign;
}

void observe_composite(const at::Tensor& input, const at::Tensor& counts, const at::Tensor& moments,
                       int64_t channel_dim) {
  check(input, counts, moments, channel_dim);
  if (input.numel() == 0) return;
  const auto rows = counts.size(0);
  // (elements of a row, rows)
  const auto shaped = rows == 1 ? input.reshape({-1, 1}) : input.movedim(channel_dim, -1).reshape({-1, rows});
  const bool is_double = input.scalar_type() == at::kDouble;
  const auto x = is_double ? shaped : shaped.to(at::kFloat);
  const auto finite = x.isfinite();

  // Values crowd into few bins: tables side by side keep the atomic additions of a GPU out of each other's way.
  const auto tables = std::max<int64_t>(1, std::min<int64_t>(256 / rows, x.size(0)));
  const auto table = at::arange(x.size(0), counts.options()).remainder(tables).unsqueeze(1);
  const auto row = at::arange(rows, counts.options());
  const auto bins = is_double ? bins_of<double>(x, at::kLong) : bins_of<float>(x, at::kInt);
  const auto places = (table * rows + row) * kBins + bins;
  const auto counted = at::zeros({tables * rows * kBins}, counts.options())
                           .scatter_add_(0, places.flatten(), finite.to(at::kLong).flatten());
  const auto values = at::where(finite, x, at::zeros_like(x)).to(at::kDouble);
  const auto positive = values.clamp_min(0);
  counts.add_(counted.view({tables, rows, kBins}).sum(0));
  moments.add_(at::stack(
      {values.sum(0), values.square().sum(0), positive.square().sum(0), finite.logical_not().sum(0).to(at::kDouble)},
      1));
}

}  // namespace

void observe_(const at::Tensor& input, const at::Tensor& counts, const at::Tensor& moments, int64_t channel_dim) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("lambda_gelu::observe_", "")
                             .typed<void(const at::Tensor&, const at::Tensor&, const at::Tensor&, int64_t)>();
  op.call(input, counts, moments, channel_dim);
}

TORCH_LIBRARY_FRAGMENT(lambda_gelu, m) {
  m.def("observe_(Tensor input, Tensor(a!) counts, Tensor(b!) moments, int channel_dim=1) -> ()",
        {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(lambda_gelu, Meta, m) {
  m.impl("observe_", observe_meta);
}
TORCH_LIBRARY_IMPL(lambda_gelu, CPU, m) {
  m.impl("observe_", observe_cpu);
}
TORCH_LIBRARY_IMPL(lambda_gelu, CompositeExplicitAutograd, m) {
  m.impl("observe_", observe_composite);
}
// Nested tensors are no backend of the alias above; here its checks refuse them in words.
TORCH_LIBRARY_IMPL(lambda_gelu, NestedTensorCPU, m) {
  m.impl("observe_", observe_composite);
}
TORCH_LIBRARY_IMPL(lambda_gelu, NestedTensorCUDA, m) {
  m.impl("observe_", observe_composite);
}
// Nothing to differentiate: an input that requires a gradient is observed as it is.
TORCH_LIBRARY_IMPL(lambda_gelu, Autograd, m) {
  m.impl("observe_", torch::CppFunction::makeFallthrough());
}

}  // namespace lambda_gelu
