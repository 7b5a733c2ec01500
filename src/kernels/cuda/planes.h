// One lambda per plane of at least 64 elements (N, C, H, W in the order of memory). A block works on one tile of
// consecutive elements, whatever planes it crosses; thread t takes vectors t, t + 256, ... of it.
#pragma once

#include <kernels/cuda/hardness.h>
#include <kernels/cuda/plan.h>
#include <kernels/cuda/runtime.h>
#include <kernels/cuda/sum.h>
#include <kernels/cuda/vectors.h>

#include <cstdint>

namespace lambda_gelu::kernels::cuda {

/// What the kernels need of PlanePlan.
struct PlaneTiling {
  std::int64_t size;
  Divisor plane, channels;
  int iterations;
  int short_plane;           ///< min(plane, kLongPlane)
  std::uint32_t reciprocal;  ///< ceil(2^32 / short_plane)
};

/// Most planes that a tile touches: one thread makes the gate of one.
template <class Storage>
inline constexpr int kTilePlanes = kPlaneTileVectors * Storage::kVector / static_cast<int>(kSmallestPlane) + 2;
static_assert(kTilePlanes<BFloat16> <= kBlockThreads);

template <class Compute>
LAMBDA_GELU_HD Gate<Compute> chosen(bool first, const Gate<Compute>& a, const Gate<Compute>& b) {
  return {first ? a.scale_hi : b.scale_hi, first ? a.scale_lo : b.scale_lo, first ? a.limit : b.limit,
          first ? a.slope : b.slope};
}

/// The tile of this block: which elements, and which planes they lie in. Planes are counted from the tile's first.
template <class Storage>
struct PlaneTile {
  std::int64_t base, left;
  std::int64_t first_plane;
  int start;  ///< elements of the first plane before the tile, less what kLongPlane leaves out
  int short_plane;
  std::uint32_t reciprocal;

  __device__ __forceinline__ explicit PlaneTile(const PlaneTiling& tiling)
      : short_plane(tiling.short_plane), reciprocal(tiling.reciprocal) {
    base = static_cast<std::int64_t>(blockIdx.x) * (tiling.iterations * kBlockThreads * Storage::kVector);
    left = tiling.size - base;
    first_plane = tiling.plane.quotient(base);
    const std::int64_t rest = (first_plane + 1) * tiling.plane.divisor - base;  // of the first plane, from the tile on
    start = rest < short_plane ? short_plane - static_cast<int>(rest) : 0;
  }

  /// Which plane an element of the tile lies in.
  __device__ __forceinline__ int plane_of(int element) const {
    return static_cast<int>(multiply_high(static_cast<std::uint32_t>(element + start), reciprocal));
  }
  /// The tile's element behind the last one of a plane.
  __device__ __forceinline__ int end_of(int plane) const { return (plane + 1) * short_plane - start; }

  /// At most a tile of them are left of the tensor.
  __device__ __forceinline__ int elements(const PlaneTiling& tiling) const {
    const int tile = tiling.iterations * kBlockThreads * Storage::kVector;
    return left < tile ? static_cast<int>(left) : tile;
  }

  __device__ __forceinline__ void make_gates(SharedGate<typename Storage::Compute>* gates, const PlaneTiling& tiling,
                                             const HardnessSource& hardness) const {
    const int planes = plane_of(elements(tiling) - 1) + 1;
    const int i = static_cast<int>(threadIdx.x);
    if (i < planes) gates[i].gate = hardness.gate<Storage>(tiling.channels.remainder(first_plane + i));
    __syncthreads();
  }
};

/// The vector that starts at element `at` of the tile.
template <class Storage, bool kOnePlane>
__device__ __forceinline__ Words planes_forward_vector(const Words& x, int at, const PlaneTile<Storage>& tile,
                                                       const SharedGate<typename Storage::Compute>* gates) {
  const int plane = tile.plane_of(at);
  const auto gate = gates[plane].gate;
  if constexpr (kOnePlane) {
    return forward_vector<Storage>(x, [&](int) { return gate; });
  } else {
    const auto next = gates[plane + 1].gate;
    const int here = tile.end_of(plane) - at;
    return forward_vector<Storage>(x, [&](int i) { return chosen(i < here, gate, next); });
  }
}

/// kOnePlane: the plane is a multiple of a vector; otherwise a vector may end in the plane behind.
template <class Storage, bool kOnePlane, class Operand>
__global__ void __launch_bounds__(kBlockThreads)
    planes_forward(const __grid_constant__ Operand input, typename Storage::Element* y, const PlaneTiling tiling,
                   const HardnessSource hardness) {
  __shared__ SharedGate<typename Storage::Compute> gates[kTilePlanes<Storage> + 1];
  constexpr int kStep = kBlockThreads * Storage::kVector;
  const PlaneTile<Storage> tile(tiling);
  int at = static_cast<int>(threadIdx.x) * Storage::kVector;
  if constexpr (Operand::kDense) {
    if (tile.left >= tiling.iterations * kStep) {
      Words x = input.vector(tile.base + at);
      tile.make_gates(gates, tiling, hardness);
      int iterations = tiling.iterations;
#pragma unroll 1
      while (true) {
        store_vector(y + tile.base + at, planes_forward_vector<Storage, kOnePlane>(x, at, tile, gates));
        if (--iterations == 0) return;
        at += kStep;
        x = input.vector(tile.base + at);
      }
    }
  }
  tile.make_gates(gates, tiling, hardness);
  const int elements = tile.elements(tiling);
#pragma unroll 1
  for (; at < elements; at += kStep) {
    const Words x = load<Storage>(input, tile.base + at, tile.left - at);
    store<Storage, Operand::kDense>(y, tile.base + at, tile.left - at,
                                    planes_forward_vector<Storage, kOnePlane>(x, at, tile, gates));
  }
}

template <class Storage, bool kOnePlane>
__device__ __forceinline__ Words planes_backward_vector(const Words& g, const Words& x, int at,
                                                        const PlaneTile<Storage>& tile,
                                                        const SharedGate<typename Storage::Compute>* gates,
                                                        typename Storage::Compute* here,
                                                        typename Storage::Compute* behind) {
  using Compute = typename Storage::Compute;
  const int plane = tile.plane_of(at);
  const auto gate = gates[plane].gate;
  Compute first = 0;
  Words value;
  if constexpr (kOnePlane) {
    value = backward_vector<Storage>(
        g, x, [&](int) { return gate; }, [&](int, auto gradient, auto term) { first = fma(gradient, term, first); });
  } else {
    const auto next = gates[plane + 1].gate;
    const int count = tile.end_of(plane) - at;
    Compute second = 0;
    value = backward_vector<Storage>(
        g, x, [&](int i) { return chosen(i < count, gate, next); },
        [&](int i, auto gradient, auto term) {
          if (i < count) {
            first = fma(gradient, term, first);
          } else {
            second = fma(gradient, term, second);
          }
        });
    behind[at / Storage::kVector] = second;
  }
  here[at / Storage::kVector] = first;
  return value;
}

/// Blocks on a multiprocessor that ptxas must leave registers for; 0: as it likes. Left to itself it makes room for
/// more blocks of float64, and spills.
template <class Compute>
inline constexpr int kFewestBlocks = sizeof(Compute) == 8 ? 3 : 0;

template <class Storage, bool kOnePlane, class Operand>
__global__ void __launch_bounds__(kBlockThreads, kFewestBlocks<typename Storage::Compute>)
    planes_backward(const __grid_constant__ Operand grad_output, const __grid_constant__ Operand input,
                    typename Storage::Element* dx, const PlaneTiling tiling, const HardnessSource hardness,
                    double* partials) {
  using Compute = typename Storage::Compute;
  __shared__ SharedGate<Compute> gates[kTilePlanes<Storage> + 1];
  // The sum of every vector's terms: those in the plane where it starts, and those in the plane behind.
  __shared__ Compute here[kPlaneTileVectors];
  __shared__ Compute behind[kOnePlane ? 1 : kPlaneTileVectors];
  constexpr int kStep = kBlockThreads * Storage::kVector;
  const PlaneTile<Storage> tile(tiling);
  const int elements = tile.elements(tiling);
  int at = static_cast<int>(threadIdx.x) * Storage::kVector;
  if (Operand::kDense && tile.left >= tiling.iterations * kStep) {
    if constexpr (Operand::kDense) {
      Words g = grad_output.vector(tile.base + at);
      Words x = input.vector(tile.base + at);
      tile.make_gates(gates, tiling, hardness);
      int iterations = tiling.iterations;
#pragma unroll 1
      while (true) {
        store_vector(dx + tile.base + at,
                     planes_backward_vector<Storage, kOnePlane>(g, x, at, tile, gates, here, behind));
        if (--iterations == 0) break;
        at += kStep;
        g = grad_output.vector(tile.base + at);
        x = input.vector(tile.base + at);
        wait_for_all(static_cast<std::uint32_t>(tiling.iterations) >> 16, g, x);
      }
    }
  } else {
    tile.make_gates(gates, tiling, hardness);
#pragma unroll 1
    for (; at < elements; at += kStep) {
      const Words g = load<Storage>(grad_output, tile.base + at, tile.left - at);
      const Words x = load<Storage>(input, tile.base + at, tile.left - at);
      store<Storage, Operand::kDense>(dx, tile.base + at, tile.left - at,
                                      planes_backward_vector<Storage, kOnePlane>(g, x, at, tile, gates, here, behind));
    }
  }
  __syncthreads();

  // A warp adds the vectors of a plane: lane l its vectors l, l + 32, ... in double, then the lanes by a tree.
  const int planes = tile.plane_of(elements - 1) + 1;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int plane = static_cast<int>(threadIdx.x) / kWarp; plane < planes; plane += kBlockThreads / kWarp) {
    const int begin = plane == 0 ? 0 : tile.end_of(plane - 1);
    const int end = plane == planes - 1 ? elements : tile.end_of(plane);
    double sum = 0;
    for (int v = begin / Storage::kVector + lane; v * Storage::kVector < end; v += kWarp) {
      const bool started_before = !kOnePlane && v * Storage::kVector < begin;
      sum = add(sum, static_cast<double>(started_before ? behind[kOnePlane ? 0 : v] : here[v]));
    }
    sum = warp_sum(sum);
    if (lane == 0) partials[tile.first_plane + plane + static_cast<std::int64_t>(blockIdx.x)] = sum;
  }
}

}  // namespace lambda_gelu::kernels::cuda
