// One lambda for the whole tensor. A block works on one tile; in iteration i, thread t takes vectors
// (2 i + j) 256 + t, j = 0, 1. The place of a vector is loaded anew as soon as the vector has been used, and for the
// first time before the constants of lambda are formed.
#pragma once

#include <kernels/cuda/hardness.h>
#include <kernels/cuda/plan.h>
#include <kernels/cuda/runtime.h>
#include <kernels/cuda/sum.h>
#include <kernels/cuda/vectors.h>

#include <cstdint>

namespace lambda_gelu::kernels::cuda {

template <class Storage>
inline constexpr int kSpanStep = kBlockThreads * Storage::kVector;

template <class Storage, class Operand>
__device__ __forceinline__ void load_iteration(Words (&vectors)[kIterationVectors], const Operand& operand,
                                               std::int64_t at) {
#pragma unroll
  for (int j = 0; j < kIterationVectors; ++j) vectors[j] = operand.vector(at + j * kSpanStep<Storage>);
}

/// A tile that is full, dense and on 16 bytes.
template <class Storage>
__device__ __forceinline__ void span_forward_whole(const DenseOperand<Storage>& input, typename Storage::Element* y,
                                                   std::int64_t at, int iterations, const HardnessSource& hardness) {
  Words x[kIterationVectors];
  load_iteration<Storage>(x, input, at);
  const auto gate = block_gate<Storage>(hardness);
#pragma unroll 1
  while (true) {
#pragma unroll
    for (int j = 0; j < kIterationVectors; ++j) {
      const std::int64_t here = at + j * kSpanStep<Storage>;
      const Words value = forward_vector<Storage>(x[j], [&](int) { return gate; });
      // Ahead of a store, behind which the compiler cannot put off the load.
      if (iterations > 1) x[j] = input.vector(here + kIterationVectors * kSpanStep<Storage>);
      store_vector(y + here, value);
    }
    if (--iterations == 0) break;
    at += kIterationVectors * kSpanStep<Storage>;
  }
}

/// Any tile: the same elements for the same thread in the same order.
template <class Storage, class Operand>
__device__ __forceinline__ void span_forward_any(const Operand& input, typename Storage::Element* y, std::int64_t at,
                                                 std::int64_t size, int iterations, const HardnessSource& hardness) {
  const auto gate = block_gate<Storage>(hardness);
#pragma unroll 1
  for (int j = 0; j < iterations * kIterationVectors && at < size; ++j, at += kSpanStep<Storage>) {
    const Words x = load<Storage>(input, at, size - at);
    store<Storage, Operand::kDense>(y, at, size - at, forward_vector<Storage>(x, [&](int) { return gate; }));
  }
}

template <class Storage, class Operand>
__global__ void __launch_bounds__(kBlockThreads)
    span_forward(const __grid_constant__ Operand input, typename Storage::Element* y, std::int64_t size, int iterations,
                 const HardnessSource hardness) {
  const int tile = iterations * kIterationVectors * kSpanStep<Storage>;
  const std::int64_t base = static_cast<std::int64_t>(blockIdx.x) * tile;
  const std::int64_t at = base + static_cast<int>(threadIdx.x) * Storage::kVector;
  if constexpr (Operand::kDense) {
    if (size - base >= tile) return span_forward_whole<Storage>(input, y, at, iterations, hardness);
  }
  span_forward_any<Storage>(input, y, at, size, iterations, hardness);
}

template <class Storage>
__device__ __forceinline__ double span_backward_whole(const DenseOperand<Storage>& grad_output,
                                                      const DenseOperand<Storage>& input, typename Storage::Element* dx,
                                                      std::int64_t at, int iterations, const HardnessSource& hardness) {
  Words g[kIterationVectors];
  Words x[kIterationVectors];
  load_iteration<Storage>(g, grad_output, at);
  load_iteration<Storage>(x, input, at);
  const auto gate = block_gate<Storage>(hardness);
  double sum = 0;
#pragma unroll 1
  while (true) {
    typename Storage::Compute terms = 0;
#pragma unroll
    for (int j = 0; j < kIterationVectors; ++j) {
      const Words value = backward_vector<Storage>(
          g[j], x[j], [&](int) { return gate; },
          [&](int, auto gradient, auto term) { terms = fma(gradient, term, terms); });
      const std::int64_t here = at + j * kSpanStep<Storage>;
      if (iterations > 1) {
        g[j] = grad_output.vector(here + kIterationVectors * kSpanStep<Storage>);
        x[j] = input.vector(here + kIterationVectors * kSpanStep<Storage>);
      }
      store_vector(dx + here, value);
    }
    sum = add(sum, static_cast<double>(terms));
    if (--iterations == 0) break;
    at += kIterationVectors * kSpanStep<Storage>;
  }
  return sum;
}

template <class Storage, class Operand>
__device__ __forceinline__ double span_backward_any(const Operand& grad_output, const Operand& input,
                                                    typename Storage::Element* dx, std::int64_t at, std::int64_t size,
                                                    int iterations, const HardnessSource& hardness) {
  const auto gate = block_gate<Storage>(hardness);
  double sum = 0;
  typename Storage::Compute terms = 0;
#pragma unroll 1
  for (int j = 0; j < iterations * kIterationVectors && at < size; ++j, at += kSpanStep<Storage>) {
    const Words g = load<Storage>(grad_output, at, size - at);
    const Words x = load<Storage>(input, at, size - at);
    const Words value = backward_vector<Storage>(
        g, x, [&](int) { return gate; }, [&](int, auto gradient, auto term) { terms = fma(gradient, term, terms); });
    store<Storage, Operand::kDense>(dx, at, size - at, value);
    if (j % kIterationVectors == kIterationVectors - 1) {
      sum = add(sum, static_cast<double>(terms));
      terms = 0;
    }
  }
  return add(sum, static_cast<double>(terms));
}

/// A grid of one block writes the gradient itself, another one partial sum per block.
template <class Storage, class Operand>
__global__ void __launch_bounds__(kBlockThreads)
    span_backward(const __grid_constant__ Operand grad_output, const __grid_constant__ Operand input,
                  typename Storage::Element* dx, std::int64_t size, int iterations, const HardnessSource hardness,
                  double* partials, void* gradients) {
  const int tile = iterations * kIterationVectors * kSpanStep<Storage>;
  const std::int64_t base = static_cast<std::int64_t>(blockIdx.x) * tile;
  const std::int64_t at = base + static_cast<int>(threadIdx.x) * Storage::kVector;
  double sum;
  if (Operand::kDense && size - base >= tile) {
    if constexpr (Operand::kDense) {
      sum = span_backward_whole<Storage>(grad_output, input, dx, at, iterations, hardness);
    }
  } else {
    sum = span_backward_any<Storage>(grad_output, input, dx, at, size, iterations, hardness);
  }
  const bool last = gridDim.x == 1 && threadIdx.x == 0;
  const auto scale = last ? hardness.gradient_scale<typename Storage::Compute>(0) : GradientScale{};
  sum = block_sum(sum);
  if (last) {
    hardness.store_gradient(gradients, 0, sum, scale);
  } else if (threadIdx.x == 0) {
    partials[blockIdx.x] = sum;
  }
}

}  // namespace lambda_gelu::kernels::cuda
