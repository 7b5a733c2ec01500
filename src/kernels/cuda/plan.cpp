#include <kernels/cuda/plan.h>

#include <algorithm>
#include <numeric>

namespace lambda_gelu::kernels::cuda {
namespace {

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

// Enough blocks for the largest GPU several times over; beyond that a tile grows, so that starting a block and its
// constants cost less and the second stage has less to add.
constexpr std::int64_t kManyTiles = 8192;
constexpr int kMostSpanIterations = 32;
constexpr std::int64_t kManyColumnBlocks = 2048;

template <class Enough>
int doubled_until(int most, const Enough& enough) {
  int iterations = 1;
  while (iterations < most && !enough(iterations)) iterations *= 2;
  return iterations;
}

SpanPlan cut_span(DType dtype, std::int64_t size) {
  const std::int64_t iteration = std::int64_t{kBlockThreads} * kIterationVectors * vector_elements(dtype);
  SpanPlan plan{.size = size};
  plan.iterations = doubled_until(kMostSpanIterations, [&](int n) { return size <= iteration * n * kManyTiles; });
  plan.tile = iteration * plan.iterations;
  plan.tiles = ceil_div(size, plan.tile);
  return plan;
}

PlanePlan cut_planes(DType dtype, const Geometry& geometry) {
  const std::int64_t iteration = std::int64_t{kBlockThreads} * vector_elements(dtype);
  PlanePlan plan{.size = geometry.size(), .plane = geometry.inner, .channels = geometry.channels};
  plan.planes = geometry.outer * geometry.channels;
  plan.iterations =
      doubled_until(kPlaneTileVectors / kBlockThreads, [&](int n) { return plan.size <= iteration * n * kManyTiles; });
  plan.tile = iteration * plan.iterations;
  plan.tiles = ceil_div(plan.size, plan.tile);
  plan.vectors_in_one_plane = plan.plane % vector_elements(dtype) == 0;
  return plan;
}

ColumnPlan cut_columns(DType dtype, const Geometry& geometry) {
  const std::int64_t vector = vector_elements(dtype);
  const std::int64_t row = geometry.channels * geometry.inner;
  ColumnPlan plan{.size = geometry.size(), .inner = geometry.inner, .channels = geometry.channels};
  plan.fold = std::min(std::lcm(row, vector) / row, geometry.outer);
  plan.width = ceil_div(plan.fold * row, vector) * vector;
  plan.rows = ceil_div(plan.size, plan.width);
  const std::int64_t row_vectors = plan.width / vector;
  plan.groups = ceil_div(row_vectors, kGroupVectors);
  plan.group_vectors = static_cast<int>(ceil_div(row_vectors, plan.groups));
  plan.lanes = kBlockThreads / plan.group_vectors;
  plan.rows_per_lane = doubled_until(kSumRows, [&](int n) {
    return plan.groups * ceil_div(plan.rows, std::int64_t{2} * n * plan.lanes) < kManyColumnBlocks;
  });
  plan.chunks = ceil_div(plan.rows, plan.chunk_rows());
  return plan;
}

}  // namespace

std::int64_t Plan::blocks() const {
  switch (cut) {
    case Cut::kSpan:
      return span.tiles;
    case Cut::kPlanes:
      return planes.tiles;
    default:
      return columns.groups * columns.chunks;
  }
}

std::int64_t Plan::partials() const {
  switch (cut) {
    case Cut::kSpan:
      return span.tiles;
    case Cut::kPlanes:
      return planes.planes + planes.tiles;
    default:
      return columns.chunks * columns.width;
  }
}

Plan make_plan(DType dtype, const Geometry& geometry) {
  Plan plan;
  if (geometry.channels == 1) {
    plan.cut = Cut::kSpan;
    plan.span = cut_span(dtype, geometry.size());
  } else if (geometry.inner >= kSmallestPlane) {
    plan.cut = Cut::kPlanes;
    plan.planes = cut_planes(dtype, geometry);
  } else {
    plan.cut = Cut::kColumns;
    plan.columns = cut_columns(dtype, geometry);
  }
  return plan;
}

}  // namespace lambda_gelu::kernels::cuda
