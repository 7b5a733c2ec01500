// What the loops of one instruction set offer: raw pointers in, one call per block of work.
#pragma once

#include <kernels/cpu/lambda_gelu.h>
#include <kernels/gate.h>

#include <cstddef>
#include <cstdint>

namespace lambda_gelu::kernels {

/// Columns a tile of the column kernels can hold: with their gates and sums it stays in the first-level cache.
inline constexpr std::int64_t kTileColumns = 1024;

/// The gates of a tile of columns, one array per constant, in slot order (see column_slot).
template <class T>
struct GateTile {
  alignas(64) T scale_hi[kTileColumns];
  alignas(64) T scale_lo[kTileColumns];
  alignas(64) T limit[kTileColumns];
  alignas(64) T slope[kTileColumns];
};

/// Where column c of a tile has its gate and its sum. Split: even columns in the first half, odd ones in the second.
template <bool kSplit>
constexpr std::int64_t column_slot(std::int64_t c) {
  return kSplit ? (c & 1) * (kTileColumns / 2) + c / 2 : c;
}

/// Rows that share the gates of a tile. Strides are in elements.
struct ColumnBlock {
  const void* input = nullptr;
  std::int64_t input_stride = 0;
  const void* grad_output = nullptr;  ///< backward only
  std::int64_t grad_output_stride = 0;
  void* output = nullptr;
  std::int64_t output_stride = 0;
  std::int64_t rows = 0;
  std::int64_t columns = 0;  ///< at most kTileColumns
  bool stream = false;       ///< non-temporal stores: needs `output` and its row stride aligned to 64 bytes
};

/// Counting has several tables side by side, so that equal bins in a row do not wait for each other.
inline constexpr int kObserveTables = 4;
/// Entries of one: the bins, what is not finite, and padding to whole cache lines.
inline constexpr int kObserveTable = 272;
/// sum, sum of squares, sum of squares of ReLU.
inline constexpr int kObserveMoments = 3;
/// Columns of a tile.
inline constexpr std::int64_t kObserveColumns = 64;

/// `gate` and `gates` point to Gate<T> and GateTile<T>, T = double for float64 and float otherwise.
struct DTypeKernels {
  Formula forward_formula;
  Formula backward_formula;
  /// Whether the slots of a tile are split (see column_slot).
  bool split_columns;

  /// stream: non-temporal stores; needs the output aligned to 64 bytes.
  void (*forward_span)(const void* input, void* output, std::int64_t size, const void* gate, bool stream);
  /// Adds to lanes[kSumLanes] (see gate.h); `size` is a multiple of kSumBlock except in the last call of a piece.
  void (*backward_span)(const void* input, const void* grad_output, void* dx, std::int64_t size, const void* gate,
                        bool stream, double* lanes);
  void (*forward_columns)(const ColumnBlock& block, const void* gates);
  /// Adds to sums[slot]; `rows` is a multiple of kSumRows except in the last call of a chunk.
  void (*backward_columns)(const ColumnBlock& block, const void* gates, double* sums);
  /// Adds to tables[kObserveTables][kObserveTable] and to lanes[kObserveMoments][kSumLanes] (see gate.h).
  void (*observe_span)(const void* input, std::int64_t size, std::uint32_t* tables, double* lanes);
  /// At most kObserveColumns. Adds to counts[columns][kBins] and nonfinite[columns]; sets
  /// moments[columns][kObserveMoments]. `stride` is in elements.
  void (*observe_columns)(const void* input, std::int64_t stride, std::int64_t rows, std::int64_t columns,
                          std::int64_t* counts, std::int64_t* nonfinite, double* moments);
};

struct KernelTable {
  const char* name;        ///< "avx512", "avx2" or "scalar"
  DTypeKernels dtypes[4];  ///< by DType
  /// Copies with non-temporal stores from cached memory to anywhere, `size` in bytes.
  void (*stream_copy)(void* to, const void* from, std::int64_t size);
  /// Orders non-temporal stores before what follows.
  void (*flush_stream)();
};

/// The table of the instruction set in use.
const KernelTable& active_kernels();

}  // namespace lambda_gelu::kernels
