// One lambda per column or per run of a few columns: the last dimension, channels_last, and planes below 64 elements.
// A block takes a group of at most 32 vectors of columns and a chunk of rows; a thread one vector of columns, whose
// constants and sums stay in its registers, and every lanes-th row of the chunk.
#pragma once

#include <kernels/cuda/hardness.h>
#include <kernels/cuda/plan.h>
#include <kernels/cuda/runtime.h>
#include <kernels/cuda/sum.h>
#include <kernels/cuda/vectors.h>

#include <cstdint>

namespace lambda_gelu::kernels::cuda {

/// What the kernels need of ColumnPlan.
struct ColumnTiling {
  std::int64_t size, width, rows;
  Divisor channels, groups, inner;
  std::uint32_t reciprocal;  ///< ceil(2^32 / inner); not used for inner = 1
  int group_vectors, lanes, rows_per_lane;
};

template <class Storage>
struct ColumnThread {
  static constexpr int kMostColumns = kGroupVectors * Storage::kVector;

  std::int64_t column;  ///< of the thread's vector
  std::int64_t row;     ///< the thread's first
  std::int64_t chunk;
  int rows;  ///< whole rows, a step of `lanes` apart
  int rest;  ///< elements of its vector in the short last row, if that is the thread's: then it is 1 to kVector
  int lane;
  int place;  ///< of its vector in the group

  __device__ __forceinline__ explicit ColumnThread(const ColumnTiling& tiling) {
    const auto block = static_cast<std::int64_t>(blockIdx.x);
    chunk = tiling.groups.quotient(block);
    const std::int64_t first_vector = (block - chunk * tiling.groups.divisor) * tiling.group_vectors;
    lane = static_cast<int>(threadIdx.x) / tiling.group_vectors;
    place = static_cast<int>(threadIdx.x) - lane * tiling.group_vectors;
    column = (first_vector + place) * Storage::kVector;
    row = chunk * tiling.lanes * tiling.rows_per_lane + lane;

    // Rows this thread meets before the end of the tensor, and what the last of them lacks.
    rows = 0;
    rest = 0;
    if (lane >= tiling.lanes || column >= tiling.width || row >= tiling.rows) return;
    const std::int64_t ahead = tiling.rows - row;
    rows = ahead > static_cast<std::int64_t>(tiling.rows_per_lane - 1) * tiling.lanes
               ? tiling.rows_per_lane
               : (static_cast<int>(ahead) + tiling.lanes - 1) / tiling.lanes;
    const std::int64_t left =
        tiling.size - (row + static_cast<std::int64_t>(rows - 1) * tiling.lanes) * tiling.width - column;
    if (left < Storage::kVector) {
      --rows;
      rest = left > 0 ? static_cast<int>(left) : 0;
    }
  }

  /// The constants of the thread's columns. Every thread of the block makes at most one gate.
  template <class Compute>
  __device__ __forceinline__ void make_gates(Gate<Compute> (&own)[Storage::kVector], const ColumnTiling& tiling,
                                             const HardnessSource& hardness) const {
    __shared__ SharedGate<Compute> gates[kMostColumns];
    const std::int64_t first = column - static_cast<std::int64_t>(place) * Storage::kVector;
    const std::int64_t run = tiling.inner.quotient(first);  // of columns with one lambda, over the whole row
    const int start = static_cast<int>(first - run * tiling.inner.divisor);
    const int runs = run_of(start + tiling.group_vectors * Storage::kVector - 1, tiling) + 1;
    if (static_cast<int>(threadIdx.x) < runs) {
      gates[threadIdx.x].gate = hardness.gate<Storage>(tiling.channels.remainder(run + static_cast<int>(threadIdx.x)));
    }
    __syncthreads();
#pragma unroll
    for (int i = 0; i < Storage::kVector; ++i) {
      // A thread that has no work looks at the first gate.
      const int own_run = lane < tiling.lanes ? run_of(start + place * Storage::kVector + i, tiling) : 0;
      own[i] = gates[own_run].gate;
    }
  }

 private:
  static __device__ __forceinline__ int run_of(int columns, const ColumnTiling& tiling) {
    return tiling.inner.divisor == 1
               ? columns
               : static_cast<int>(multiply_high(static_cast<std::uint32_t>(columns), tiling.reciprocal));
  }
};

template <class Storage, class Operand>
__global__ void __launch_bounds__(kBlockThreads)
    columns_forward(const __grid_constant__ Operand input, typename Storage::Element* y, const ColumnTiling tiling,
                    const HardnessSource hardness) {
  const ColumnThread<Storage> thread(tiling);
  const std::int64_t step = tiling.lanes * tiling.width;
  std::int64_t at = thread.row * tiling.width + thread.column;
  Words x{};
  if (thread.rows > 0) x = input.vector(at);
  Gate<typename Storage::Compute> gates[Storage::kVector];
  thread.make_gates(gates, tiling, hardness);
  const auto gate = [&](int i) { return gates[i]; };

  int rows = thread.rows;
  if (rows > 0) {
#pragma unroll 1
    while (true) {
      store<Storage, Operand::kDense>(y, at, Storage::kVector, forward_vector<Storage>(x, gate));
      at += step;
      if (--rows == 0) break;
      x = input.vector(at);
    }
  }
  if (thread.rest > 0) {
    x = input.part(at, thread.rest);
    store<Storage, Operand::kDense>(y, at, thread.rest, forward_vector<Storage>(x, gate));
  }
}

template <class Storage, class Operand>
__global__ void __launch_bounds__(kBlockThreads)
    columns_backward(const __grid_constant__ Operand grad_output, const __grid_constant__ Operand input,
                     typename Storage::Element* dx, const ColumnTiling tiling, const HardnessSource hardness,
                     double* partials) {
  using Compute = typename Storage::Compute;
  constexpr int kVector = Storage::kVector;
  const ColumnThread<Storage> thread(tiling);
  const std::int64_t step = tiling.lanes * tiling.width;
  std::int64_t at = thread.row * tiling.width + thread.column;
  Words g{};
  Words x{};
  if (thread.rows > 0) {
    g = grad_output.vector(at);
    x = input.vector(at);
  }
  Gate<Compute> gates[kVector];
  thread.make_gates(gates, tiling, hardness);
  const auto gate = [&](int i) { return gates[i]; };
  Compute terms[kVector] = {};
  const auto add_term = [&](int i, auto gradient, auto term) { terms[i] = fma(gradient, term, terms[i]); };

  int rows = thread.rows;
  if (rows > 0) {
#pragma unroll 1
    while (true) {
      // Dense loads ahead of a store, behind which the compiler cannot put them off.
      const Words value = backward_vector<Storage>(g, x, gate, add_term);
      if (Operand::kDense && rows > 1) {
        g = grad_output.vector(at + step);
        x = input.vector(at + step);
      }
      store<Storage, Operand::kDense>(dx, at, kVector, value);
      at += step;
      if (--rows == 0) break;
      if (!Operand::kDense) {
        g = grad_output.vector(at);
        x = input.vector(at);
      }
    }
  }
  if (thread.rest > 0) {
    g = grad_output.part(at, thread.rest);
    x = input.part(at, thread.rest);
    store<Storage, Operand::kDense>(dx, at, thread.rest, backward_vector<Storage>(g, x, gate, add_term));
  }

  // One sum per column: its lanes in their order, in double.
  __shared__ Compute sums[kBlockThreads * kVector];
  const int columns = tiling.group_vectors * kVector;
  if (thread.lane < tiling.lanes) {
#pragma unroll
    for (int i = 0; i < kVector; ++i) sums[thread.lane * columns + thread.place * kVector + i] = terms[i];
  }
  __syncthreads();
  const std::int64_t first = thread.column - static_cast<std::int64_t>(thread.place) * kVector;
  for (int i = static_cast<int>(threadIdx.x); i < columns && first + i < tiling.width; i += kBlockThreads) {
    double sum = 0;
    for (int lane = 0; lane < tiling.lanes; ++lane) sum = add(sum, static_cast<double>(sums[lane * columns + i]));
    partials[thread.chunk * tiling.width + first + i] = sum;
  }
}

}  // namespace lambda_gelu::kernels::cuda
