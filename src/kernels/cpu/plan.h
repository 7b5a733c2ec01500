// How the work of one tensor is cut. Everything here depends on dtype and geometry only: the sums of the backward pass
// are added along these cuts, and their bits must not depend on threads, machine or instruction set.
#pragma once

#include <kernels/geometry.h>

#include <cstdint>

namespace lambda_gelu::kernels {

/// Spans: the output is `planes` runs of `plane` elements with one lambda each. A plane is cut into pieces of
/// kSumPiece; small planes are bundled. Every piece has one partial sum.
struct SpanPlan {
  std::int64_t plane = 0;
  std::int64_t planes = 0;
  std::int64_t pieces_per_plane = 0;
  std::int64_t pieces_per_unit = 1;

  std::int64_t pieces() const { return planes * pieces_per_plane; }
};

/// Columns: the output is `rows` rows of `width` columns; column j belongs to virtual channel j / inner. Where a row of
/// the tensor is narrow or its width odd, `fold` rows of it make one row here, so that rows start aligned; the last row
/// may then be shorter. A unit is a chunk of rows times a tile of columns and has one partial sum per virtual channel
/// it touches.
struct ColumnPlan {
  std::int64_t inner = 1;
  std::int64_t width = 0;
  std::int64_t rows = 0;        ///< the last one included
  std::int64_t last_width = 0;  ///< of the last row
  std::int64_t tile = 0;
  std::int64_t tiles = 0;
  std::int64_t chunk = 0;  ///< rows
  std::int64_t chunks = 0;

  std::int64_t virtual_channels() const { return width / inner; }
  /// Partial sums of one chunk: tile t has those of its virtual channels v at v + t, since neighbours may share one.
  std::int64_t partials_per_chunk() const { return virtual_channels() + tiles; }
};

struct Plan {
  bool by_columns = false;
  SpanPlan spans;
  ColumnPlan columns;

  std::int64_t units() const;
  /// Partial sums of the backward pass.
  std::int64_t partials() const;
};

Plan make_plan(DType dtype, const Geometry& geometry);

}  // namespace lambda_gelu::kernels
