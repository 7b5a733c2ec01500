// How the work of one tensor is cut for the GPU. Everything here depends on dtype and geometry only, never on the GPU:
// the sums of the backward pass are added along these cuts.
#pragma once

#include <kernels/gate.h>
#include <kernels/geometry.h>

#include <cstdint>

namespace lambda_gelu::kernels::cuda {

constexpr int vector_elements(DType dtype) {
  return static_cast<int>(16 / element_size(dtype));
}

/// One lambda: a block takes a tile of consecutive elements and leaves one partial sum.
struct SpanPlan {
  std::int64_t size = 0;
  std::int64_t tile = 0;  ///< elements
  std::int64_t tiles = 0;
  int iterations = 0;
};

/// One lambda per plane of at least kSmallestPlane elements: a block takes a tile of consecutive elements, whatever
/// planes it crosses, and leaves one partial sum for each of them. That of plane p in tile t is number p + t:
/// neighbouring tiles may share a plane, and a step to the next of either makes the number grow.
struct PlanePlan {
  std::int64_t size = 0;
  std::int64_t plane = 0;  ///< elements
  std::int64_t planes = 0;
  std::int64_t channels = 0;
  std::int64_t tile = 0;  ///< elements
  std::int64_t tiles = 0;
  int iterations = 0;
  bool vectors_in_one_plane = false;
};

inline constexpr std::int64_t kSmallestPlane = 64;
/// Vectors of a tile.
inline constexpr int kPlaneTileVectors = 1024;
/// In the search for the plane of an element a longer plane counts as one of this length: longer than any tile.
inline constexpr std::int64_t kLongPlane = 32768;

/// Smaller planes and the last dimension: the tensor is `rows` rows of `width` columns, column j belonging to channel
/// (j / inner) % channels. Where a row of the tensor is no multiple of a vector, several of them make one row here; the
/// last row may then be shorter. A thread takes the same vector of columns in many rows; a block is a group of columns
/// times a chunk of rows and leaves one partial sum per column.
struct ColumnPlan {
  std::int64_t size = 0;
  std::int64_t inner = 1;
  std::int64_t channels = 0;
  std::int64_t fold = 1;   ///< rows of the tensor in a row: at most all of them
  std::int64_t width = 0;  ///< elements, a multiple of a vector
  std::int64_t rows = 0;   ///< the last one included
  std::int64_t groups = 0;
  std::int64_t chunks = 0;
  int group_vectors = 0;  ///< vectors of a row in a group, at most kGroupVectors
  int lanes = 0;          ///< rows that a block works on at a time
  int rows_per_lane = 0;  ///< at most kSumRows

  std::int64_t chunk_rows() const { return static_cast<std::int64_t>(lanes) * rows_per_lane; }
};

inline constexpr int kGroupVectors = 32;

enum class Cut : std::uint8_t { kSpan, kPlanes, kColumns };

struct Plan {
  Cut cut = Cut::kSpan;
  SpanPlan span;
  PlanePlan planes;
  ColumnPlan columns;

  /// Blocks of the first kernel.
  std::int64_t blocks() const;
  /// Partial sums of the backward pass.
  std::int64_t partials() const;
  /// Whether a second kernel adds them; a single tile with one lambda needs none.
  bool has_second_stage() const { return cut != Cut::kSpan || span.tiles > 1; }
};

/// `geometry` holds at least one element.
Plan make_plan(DType dtype, const Geometry& geometry);

}  // namespace lambda_gelu::kernels::cuda
