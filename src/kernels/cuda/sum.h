// The sum for dlambda: from threads to one double per block and channel, and from those to the gradient.
#pragma once

#include <kernels/cuda/hardness.h>
#include <kernels/cuda/operand.h>
#include <kernels/cuda/plan.h>
#include <kernels/cuda/runtime.h>

#include <cstdint>

namespace lambda_gelu::kernels::cuda {

inline constexpr int kWarp = 32;

/// The sum over a warp, in lane 0.
__device__ __forceinline__ double warp_sum(double value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) {
    value = add(value, __shfl_down_sync(0xffffffffu, value, distance));
  }
  return value;
}

/// The sum over a block of kBlockThreads, in thread 0.
__device__ __forceinline__ double block_sum(double value) {
  __shared__ double warps[kBlockThreads / kWarp];
  value = warp_sum(value);
  if (threadIdx.x % kWarp == 0) warps[threadIdx.x / kWarp] = value;
  __syncthreads();
  double sum = 0;
  if (threadIdx.x == 0) {
#pragma unroll
    for (int i = 0; i < kBlockThreads / kWarp; ++i) sum = add(sum, warps[i]);
  }
  return sum;
}

/// Where the partial sums of a channel are: in `rows` runs of at most `most`, in this order.
struct PartialSums {
  std::int64_t channels = 1;
  std::int64_t rows = 0;
  Divisor most;
  /// Tiles and columns: run o starts at o * row + channel * most and is `most` long.
  std::int64_t row = 1;
  /// Planes: that of plane p in tile t is number p + t; tiles are of 2^tile_shift elements. Otherwise plane = 0.
  std::int64_t plane = 0;
  int tile_shift = 0;

  /// Run o of a channel: its start, and its length in `count`.
  LAMBDA_GELU_HD std::int64_t run(std::int64_t o, std::int64_t channel, std::int64_t& count) const {
    if (plane == 0) {
      count = most.divisor;
      return o * row + channel * count;
    }
    const std::int64_t p = o * channels + channel;
    const std::int64_t first_tile = p * plane >> tile_shift;
    count = (((p + 1) * plane - 1) >> tile_shift) - first_tile + 1;
    return p + first_tile;
  }
};

/// Every thread adds partial sums of one channel in their order, then the threads of a channel are added by a tree. A
/// block has 2^channel_shift channels: the partial sums of neighbouring channels are neighbours in memory. T is the
/// type that was computed in. One block of a multiprocessor is enough: for two, registers are spilled.
template <class T>
__global__ void __launch_bounds__(kSecondStageThreads, 1)
    second_stage(const double* partials, const PartialSums layout, int channel_shift, const HardnessSource hardness,
                 void* gradients) {
  const int thread = static_cast<int>(threadIdx.x);
  const int lanes = kSecondStageThreads >> channel_shift;
  const int lane = thread >> channel_shift;
  const std::int64_t channel =
      (static_cast<std::int64_t>(blockIdx.x) << channel_shift) + (thread & ((1 << channel_shift) - 1));

  GradientScale scale;
  if (lane == 0 && channel < layout.channels) scale = hardness.gradient_scale<T>(channel);

  // Partial sums lane, lane + lanes, ... of the channel, number n being the one at `i` in run `o` = n / most.
  double sum = 0;
  if (channel < layout.channels) {
    const std::int64_t most = layout.most.divisor;
    const std::int64_t step_runs = layout.most.quotient(lanes);
    const std::int64_t step = lanes - step_runs * most;
    std::int64_t o = layout.most.quotient(lane);
    std::int64_t i = lane - o * most;
#pragma unroll 4
    while (o < layout.rows) {
      std::int64_t count;
      const std::int64_t start = layout.run(o, channel, count);
      if (i < count) sum = add(sum, partials[start + i]);
      o += step_runs;
      i += step;
      if (i >= most) {
        i -= most;
        ++o;
      }
    }
  }
  __shared__ double sums[kSecondStageThreads];
  sums[thread] = sum;
  for (int half = lanes / 2; half > 0; half /= 2) {
    __syncthreads();
    if (lane < half) sums[thread] = add(sums[thread], sums[thread + (half << channel_shift)]);
  }
  if (lane == 0 && channel < layout.channels) hardness.store_gradient(gradients, channel, sums[thread], scale);
}

}  // namespace lambda_gelu::kernels::cuda
