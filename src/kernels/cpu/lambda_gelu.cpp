#include <kernels/cpu/lambda_gelu.h>
#include <kernels/cpu/simd/kernel_table.h>

#include <algorithm>
#include <stdexcept>

namespace lambda_gelu::kernels {
namespace {

/// Elements that pass through a buffer at once where an operand is strided or the output is not aligned.
constexpr std::int64_t kBlock = kSumBlock;
/// Columns gathered at once, for kSumRows rows.
constexpr std::int64_t kGatherColumns = 64;

constexpr std::int64_t kAlignment = 64;

bool aligned(const void* p) {
  return reinterpret_cast<std::uintptr_t>(p) % kAlignment == 0;
}

char* offset(void* p, std::int64_t bytes) {
  return static_cast<char*>(p) + bytes;
}

const DTypeKernels* kernels_of(const KernelTable* table, DType dtype) {
  return &table->dtypes[static_cast<std::size_t>(dtype)];
}

const Geometry& checked(const Geometry& geometry) {
  if (geometry.outer < 0 || geometry.channels < 1 || geometry.inner < 0) {
    throw std::invalid_argument("geometry must have outer >= 0, channels >= 1 and inner >= 0");
  }
  return geometry;
}

bool larger_than_cache(const Geometry& geometry, DType dtype) {
  return geometry.size() * element_size(dtype) > last_level_cache_bytes();
}

/// The lanes of one piece, added by a tree that is the same everywhere: l += l + 8, 4, 2, 1.
double add_lanes(double* lanes) {
  for (int half = kSumLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}

struct PieceRange {
  std::int64_t begin, end;
};
PieceRange pieces_of_unit(const SpanPlan& plan, std::int64_t unit) {
  const std::int64_t begin = unit * plan.pieces_per_unit;
  return {begin, std::min(begin + plan.pieces_per_unit, plan.pieces())};
}

struct Piece {
  std::int64_t plane, first, size;
};
Piece piece_at(const SpanPlan& plan, std::int64_t index) {
  const std::int64_t plane = index / plan.pieces_per_plane;
  const std::int64_t begin = index % plan.pieces_per_plane * kSumPiece;
  return {plane, plane * plan.plane + begin, std::min(kSumPiece + std::int64_t{0}, plan.plane - begin)};
}

/// A chunk of rows and a range of columns in it.
struct Tile {
  std::int64_t chunk, index;
  std::int64_t first_row, end_row;
  std::int64_t first_column, end_column;
};
Tile tile_of_unit(const ColumnPlan& plan, std::int64_t unit) {
  Tile tile;
  tile.chunk = unit / plan.tiles;
  tile.index = unit % plan.tiles;
  tile.first_row = tile.chunk * plan.chunk;
  tile.end_row = std::min(tile.first_row + plan.chunk, plan.rows);
  tile.first_column = tile.index * plan.tile;
  tile.end_column = std::min(tile.first_column + plan.tile, plan.width);
  return tile;
}

/// Columns [first, end) of a row belong to runs of one virtual channel: calls f(virtual channel, channel, first, end),
/// the last two counted from `first`.
template <class F>
void for_each_channel(const ColumnPlan& plan, std::int64_t channels, std::int64_t first, std::int64_t end, F&& f) {
  std::int64_t virtual_channel = first / plan.inner;
  std::int64_t channel = virtual_channel % channels;
  for (std::int64_t c = first; c < end; ++virtual_channel) {
    const std::int64_t next = std::min((virtual_channel + 1) * plan.inner, end);
    f(virtual_channel, channel, c - first, next - first);
    c = next;
    if (++channel == channels) channel = 0;
  }
}

template <bool kSplit, class T>
void fill_gates(const ColumnPlan& plan, const Gate<T>* gates, std::int64_t channels, std::int64_t first,
                std::int64_t end, GateTile<T>& tile) {
  const auto put = [&](std::int64_t c, const Gate<T>& gate) {
    const std::int64_t slot = column_slot<kSplit>(c);
    tile.scale_hi[slot] = gate.scale_hi;
    tile.scale_lo[slot] = gate.scale_lo;
    tile.limit[slot] = gate.limit;
    tile.slope[slot] = gate.slope;
  };
  for_each_channel(plan, channels, first, end,
                   [&](std::int64_t, std::int64_t channel, std::int64_t c, std::int64_t next) {
                     const Gate<T> gate = gates[channel];
                     for (; c < next; ++c) put(c, gate);
                   });
  // The kernels compute whole vectors.
  for (std::int64_t c = end - first; c % kGatherColumns != 0; ++c) put(c, Gate<T>{});
}

/// out[virtual channel] += the sums of its columns.
template <bool kSplit>
void fold_sums(const ColumnPlan& plan, std::int64_t channels, std::int64_t first, std::int64_t end, const double* sums,
               double* out) {
  for_each_channel(plan, channels, first, end, [&](std::int64_t v, std::int64_t, std::int64_t c, std::int64_t next) {
    double sum = out[v];
    for (; c < next; ++c) sum += sums[column_slot<kSplit>(c)];
    out[v] = sum;
  });
}

/// The gates of one tile, for either type.
class TileGates {
 public:
  TileGates(const ColumnPlan& plan, const DTypeKernels& kernels, DType dtype, const Gates& gates, std::int64_t channels)
      : plan_(plan), kernels_(kernels), is_double_(dtype == DType::kFloat64), gates_(gates), channels_(channels) {}

  const void* fill(std::int64_t first, std::int64_t end) {
    if (is_double_) {
      fill_gates<false>(plan_, gates_.of<double>(), channels_, first, end, tile_.doubles);
      return &tile_.doubles;
    }
    const auto fill_floats = kernels_.split_columns ? &fill_gates<true, float> : &fill_gates<false, float>;
    fill_floats(plan_, gates_.of<float>(), channels_, first, end, tile_.floats);
    return &tile_.floats;
  }

 private:
  const ColumnPlan& plan_;
  const DTypeKernels& kernels_;
  bool is_double_;
  const Gates& gates_;
  std::int64_t channels_;
  union {
    GateTile<float> floats;
    GateTile<double> doubles;
  } tile_;
};

/// Calls f(first row, rows, end column) for the whole rows of a tile, then for a last row that is shorter.
template <class F>
void for_each_row_group(const ColumnPlan& plan, const Tile& tile, std::int64_t first_column, std::int64_t end_column,
                        F&& f) {
  const bool ends_short = tile.end_row == plan.rows && plan.last_width < plan.width;
  const std::int64_t whole = tile.end_row - (ends_short ? 1 : 0);
  if (whole > tile.first_row) f(tile.first_row, whole - tile.first_row, end_column);
  if (ends_short && plan.last_width > first_column) f(whole, std::int64_t{1}, std::min(end_column, plan.last_width));
}

/// A source as rows of one block: where they lie, or gathered.
struct BlockRows {
  const void* data;
  std::int64_t stride;
};
BlockRows read_rows(const Source& source, const ColumnPlan& plan, std::int64_t row, std::int64_t rows,
                    std::int64_t first_column, std::int64_t end_column, std::int64_t element_size, void* buffer) {
  const std::int64_t first = row * plan.width + first_column;
  if (source.dense()) return {source.at(first), plan.width};
  for (std::int64_t r = 0; r < rows; ++r) {
    source.gather(first + r * plan.width, end_column - first_column, offset(buffer, r * kGatherColumns * element_size));
  }
  return {buffer, kGatherColumns};
}

bool can_stream_columns(const ColumnPlan& plan, std::int64_t element_size, const void* output) {
  return aligned(output) && plan.width * element_size % kAlignment == 0 && plan.tile * element_size % kAlignment == 0;
}

}  // namespace

// --- Forward --------------------------------------------------------------------------------------------------------
Forward::Forward(DType dtype, const Geometry& geometry, const Operand& input, void* y, const double* hardness)
    : table_(&active_kernels()),
      kernels_(kernels_of(table_, dtype)),
      dtype_(dtype),
      channels_(checked(geometry).channels),
      plan_(make_plan(dtype, geometry)),
      gates_(dtype, kernels_->forward_formula, hardness, geometry.channels),
      input_("input", input, geometry.size(), element_size(dtype)),
      y_(y),
      stream_(larger_than_cache(geometry, dtype)) {}

void Forward::run(std::int64_t begin, std::int64_t end) const {
  for (std::int64_t unit = begin; unit < end; ++unit) {
    if (plan_.by_columns) {
      run_columns(unit);
    } else {
      run_pieces(unit);
    }
  }
  if (stream_) table_->flush_stream();
}

void Forward::run_pieces(std::int64_t unit) const {
  const PieceRange range = pieces_of_unit(plan_.spans, unit);
  for (std::int64_t i = range.begin; i < range.end; ++i) {
    const Piece piece = piece_at(plan_.spans, i);
    span(piece.first, piece.size, gates_.at(piece.plane % channels_));
  }
}

void Forward::span(std::int64_t first, std::int64_t size, const void* gate) const {
  const std::int64_t bytes = element_size(dtype_);
  char* to = offset(y_, first * bytes);
  const bool direct = !stream_ || aligned(to);
  if (input_.dense() && direct) {
    kernels_->forward_span(input_.at(first), to, size, gate, stream_);
    return;
  }
  alignas(kAlignment) char gathered[kBlock * sizeof(double)];
  alignas(kAlignment) char result[kBlock * sizeof(double)];
  for (std::int64_t i = 0; i < size; i += kBlock) {
    const std::int64_t n = std::min(kBlock, size - i);
    const void* x = input_.read(first + i, n, gathered);
    if (direct) {
      kernels_->forward_span(x, to + i * bytes, n, gate, stream_);
    } else {
      kernels_->forward_span(x, result, n, gate, false);
      table_->stream_copy(to + i * bytes, result, n * bytes);
    }
  }
}

void Forward::run_columns(std::int64_t unit) const {
  const ColumnPlan& plan = plan_.columns;
  const Tile tile = tile_of_unit(plan, unit);
  const std::int64_t bytes = element_size(dtype_);
  TileGates gates(plan, *kernels_, dtype_, gates_, channels_);
  alignas(kAlignment) char gathered[kSumRows * kGatherColumns * sizeof(double)];
  const std::int64_t width = input_.dense() ? plan.tile : kGatherColumns;
  const std::int64_t height = input_.dense() ? plan.chunk : kSumRows;

  for (std::int64_t c = tile.first_column; c < tile.end_column; c += width) {
    const std::int64_t end = std::min(c + width, tile.end_column);
    const void* block_gates = gates.fill(c, end);
    for_each_row_group(plan, tile, c, end, [&](std::int64_t first, std::int64_t rows, std::int64_t end_column) {
      for (std::int64_t row = first; row < first + rows; row += height) {
        const std::int64_t n = std::min(height, first + rows - row);
        const BlockRows x = read_rows(input_, plan, row, n, c, end_column, bytes, gathered);
        ColumnBlock block;
        block.input = x.data;
        block.input_stride = x.stride;
        block.output = offset(y_, (row * plan.width + c) * bytes);
        block.output_stride = plan.width;
        block.rows = n;
        block.columns = end_column - c;
        block.stream = stream_ && can_stream_columns(plan, bytes, y_);
        kernels_->forward_columns(block, block_gates);
      }
    });
  }
}

// --- Backward -------------------------------------------------------------------------------------------------------
Backward::Backward(DType dtype, const Geometry& geometry, const Operand& grad_output, const Operand& input, void* dx,
                   const double* hardness)
    : table_(&active_kernels()),
      kernels_(kernels_of(table_, dtype)),
      dtype_(dtype),
      channels_(checked(geometry).channels),
      plan_(make_plan(dtype, geometry)),
      gates_(dtype, kernels_->backward_formula, hardness, geometry.channels),
      grad_output_("grad_output", grad_output, geometry.size(), element_size(dtype)),
      input_("input", input, geometry.size(), element_size(dtype)),
      dx_(dx),
      stream_(larger_than_cache(geometry, dtype)) {
  const std::int64_t partials = plan_.partials();
  if (partials > kOwnPartials) more_partials_.reset(new double[static_cast<std::size_t>(partials)]);
}

void Backward::run(std::int64_t begin, std::int64_t end) {
  for (std::int64_t unit = begin; unit < end; ++unit) {
    if (plan_.by_columns) {
      run_columns(unit);
    } else {
      run_pieces(unit);
    }
  }
  if (stream_) table_->flush_stream();
}

void Backward::run_pieces(std::int64_t unit) {
  const PieceRange range = pieces_of_unit(plan_.spans, unit);
  for (std::int64_t i = range.begin; i < range.end; ++i) {
    const Piece piece = piece_at(plan_.spans, i);
    partials()[i] = span(piece.first, piece.size, gates_.at(piece.plane % channels_));
  }
}

double Backward::span(std::int64_t first, std::int64_t size, const void* gate) {
  const std::int64_t bytes = element_size(dtype_);
  char* to = offset(dx_, first * bytes);
  const bool direct = !stream_ || aligned(to);
  double lanes[kSumLanes] = {};
  if (input_.dense() && grad_output_.dense() && direct) {
    kernels_->backward_span(input_.at(first), grad_output_.at(first), to, size, gate, stream_, lanes);
    return add_lanes(lanes);
  }
  alignas(kAlignment) char gathered_input[kBlock * sizeof(double)];
  alignas(kAlignment) char gathered_grad[kBlock * sizeof(double)];
  alignas(kAlignment) char result[kBlock * sizeof(double)];
  for (std::int64_t i = 0; i < size; i += kBlock) {
    const std::int64_t n = std::min(kBlock, size - i);
    const void* x = input_.read(first + i, n, gathered_input);
    const void* g = grad_output_.read(first + i, n, gathered_grad);
    if (direct) {
      kernels_->backward_span(x, g, to + i * bytes, n, gate, stream_, lanes);
    } else {
      kernels_->backward_span(x, g, result, n, gate, false, lanes);
      table_->stream_copy(to + i * bytes, result, n * bytes);
    }
  }
  return add_lanes(lanes);
}

void Backward::run_columns(std::int64_t unit) {
  const ColumnPlan& plan = plan_.columns;
  const Tile tile = tile_of_unit(plan, unit);
  const std::int64_t bytes = element_size(dtype_);
  TileGates gates(plan, *kernels_, dtype_, gates_, channels_);
  alignas(kAlignment) char gathered_input[kSumRows * kGatherColumns * sizeof(double)];
  alignas(kAlignment) char gathered_grad[kSumRows * kGatherColumns * sizeof(double)];
  alignas(kAlignment) double sums[kTileColumns];
  const bool dense = input_.dense() && grad_output_.dense();
  const std::int64_t width = dense ? plan.tile : kGatherColumns;
  const std::int64_t height = dense ? plan.chunk : kSumRows;

  // Virtual channel v of this tile has its partial sum at out[v].
  double* out = partials() + tile.chunk * plan.partials_per_chunk() + tile.index;
  for_each_channel(plan, channels_, tile.first_column, tile.end_column,
                   [&](std::int64_t v, std::int64_t, std::int64_t, std::int64_t) { out[v] = 0; });

  for (std::int64_t c = tile.first_column; c < tile.end_column; c += width) {
    const std::int64_t end = std::min(c + width, tile.end_column);
    const void* block_gates = gates.fill(c, end);
    std::fill_n(sums, kTileColumns, 0.0);
    for_each_row_group(plan, tile, c, end, [&](std::int64_t first, std::int64_t rows, std::int64_t end_column) {
      for (std::int64_t row = first; row < first + rows; row += height) {
        const std::int64_t n = std::min(height, first + rows - row);
        const BlockRows x = read_rows(input_, plan, row, n, c, end_column, bytes, gathered_input);
        const BlockRows g = read_rows(grad_output_, plan, row, n, c, end_column, bytes, gathered_grad);
        ColumnBlock block;
        block.input = x.data;
        block.input_stride = x.stride;
        block.grad_output = g.data;
        block.grad_output_stride = g.stride;
        block.output = offset(dx_, (row * plan.width + c) * bytes);
        block.output_stride = plan.width;
        block.rows = n;
        block.columns = end_column - c;
        block.stream = stream_ && can_stream_columns(plan, bytes, dx_);
        kernels_->backward_columns(block, block_gates, sums);
      }
    });
    const auto fold = kernels_->split_columns ? &fold_sums<true> : &fold_sums<false>;
    fold(plan, channels_, c, end, sums, out);
  }
}

void Backward::sum(double* dhardness) const {
  std::fill_n(dhardness, channels_, 0.0);
  if (plan_.by_columns) {
    const ColumnPlan& plan = plan_.columns;
    for (std::int64_t unit = 0; unit < units(); ++unit) {
      const Tile tile = tile_of_unit(plan, unit);
      const double* from = partials() + tile.chunk * plan.partials_per_chunk() + tile.index;
      for_each_channel(
          plan, channels_, tile.first_column, tile.end_column,
          [&](std::int64_t v, std::int64_t channel, std::int64_t, std::int64_t) { dhardness[channel] += from[v]; });
    }
  } else {
    const SpanPlan& plan = plan_.spans;
    for (std::int64_t i = 0; i < plan.pieces(); ++i) {
      dhardness[i / plan.pieces_per_plane % channels_] += partials()[i];
    }
  }
  for (std::int64_t c = 0; c < channels_; ++c) dhardness[c] = gates_.to_gradient(c, dhardness[c]);
}

}  // namespace lambda_gelu::kernels
