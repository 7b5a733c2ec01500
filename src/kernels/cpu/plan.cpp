#include <kernels/cpu/plan.h>
#include <kernels/cpu/simd/kernel_table.h>
#include <kernels/gate.h>

#include <algorithm>

namespace lambda_gelu::kernels {
namespace {

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) {
  return (a + b - 1) / b;
}

/// Planes below this go through the column kernels: the end of every span costs about as much as 100 elements.
constexpr std::int64_t kSmallPlane = 512;
/// Columns whose row is aligned to 64 bytes in every dtype.
constexpr std::int64_t kAlignedColumns = 32;
/// Narrower rows spend more on their ends and on the loop than on the columns.
constexpr std::int64_t kWideRow = 256;
/// Rows of a chunk: 8 bytes of partial sum per chunk and column stay below 1 % of the tensor even for 16-bit types.
constexpr std::int64_t kChunkRows = 512;
/// With shorter chunks, laying out the gates costs more than a wider tile gains.
constexpr std::int64_t kShortChunkRows = 128;
constexpr std::int64_t kSmallestChunkRows = 32;
constexpr std::int64_t kSmallestTile = 128;
/// Enough for any small number of threads to share evenly.
constexpr std::int64_t kUnitsWanted = 16;
/// Smaller units would cost more than they bring.
constexpr std::int64_t kSmallestUnit = kSumPiece;

SpanPlan make_span_plan(std::int64_t planes, std::int64_t plane) {
  SpanPlan plan;
  plan.plane = plane;
  plan.planes = planes;
  plan.pieces_per_plane = ceil_div(plane, kSumPiece);
  plan.pieces_per_unit = std::max<std::int64_t>(1, plane > 0 ? kSumPiece / plane : 1);
  return plan;
}

/// How many rows of `width` columns to treat as one; 1 where no small number helps.
std::int64_t rows_to_fold(std::int64_t width, std::int64_t rows) {
  std::int64_t fold = 1;
  while ((width * fold) % kAlignedColumns != 0) fold *= 2;
  while (width * fold < kWideRow) fold *= 2;
  return fold * 8 <= rows ? fold : 1;
}

ColumnPlan make_column_plan(DType dtype, const Geometry& geometry) {
  ColumnPlan plan;
  plan.inner = geometry.inner;
  const std::int64_t width = geometry.channels * geometry.inner;
  const std::int64_t fold = rows_to_fold(width, geometry.outer);
  plan.width = width * fold;
  plan.rows = ceil_div(geometry.outer, fold);
  plan.last_width = geometry.size() - (plan.rows - 1) * plan.width;

  // float64: four constants per column, so that half as many columns fill the cache.
  plan.tile = std::min(plan.width, dtype == DType::kFloat64 ? kTileColumns / 2 : kTileColumns);
  plan.chunk = std::min(plan.rows, kChunkRows);
  const auto units = [&] { return ceil_div(plan.width, plan.tile) * ceil_div(plan.rows, plan.chunk); };
  const auto divisible = [&] { return units() < kUnitsWanted && plan.tile * plan.chunk > kSmallestUnit; };
  const auto halve_chunk_down_to = [&](std::int64_t rows) {
    while (divisible() && plan.chunk > rows) plan.chunk = ceil_div(plan.chunk, 2);
  };
  // Wide tiles read longer runs of memory, but every chunk of a tile has its gates laid out anew.
  halve_chunk_down_to(kShortChunkRows);
  while (divisible() && plan.tile > kSmallestTile) {
    plan.tile = ceil_div(ceil_div(plan.tile, 2), kAlignedColumns) * kAlignedColumns;
  }
  halve_chunk_down_to(kSmallestChunkRows);
  plan.tiles = ceil_div(plan.width, plan.tile);
  plan.chunks = ceil_div(plan.rows, plan.chunk);
  return plan;
}

}  // namespace

std::int64_t Plan::units() const {
  return by_columns ? columns.tiles * columns.chunks : ceil_div(spans.pieces(), spans.pieces_per_unit);
}

std::int64_t Plan::partials() const {
  return by_columns ? columns.chunks * columns.partials_per_chunk() : spans.pieces();
}

Plan make_plan(DType dtype, const Geometry& geometry) {
  Plan plan;
  if (geometry.size() == 0) return plan;
  if (geometry.channels == 1) {
    plan.spans = make_span_plan(1, geometry.size());
  } else if (geometry.inner < kSmallPlane) {
    plan.by_columns = true;
    plan.columns = make_column_plan(dtype, geometry);
  } else {
    plan.spans = make_span_plan(geometry.outer * geometry.channels, geometry.inner);
  }
  return plan;
}

}  // namespace lambda_gelu::kernels
