// lambda from device memory, its constants for a block, and the way back for its gradient.
#pragma once

#include <kernels/cuda/runtime.h>
#include <kernels/cuda/storage.h>
#include <kernels/gate.h>
#include <kernels/geometry.h>
#include <math/softplus.h>

#include <cstdint>

namespace lambda_gelu::kernels::cuda {

/// What makes a sum the gradient of a channel. Formed before the sum is there: it takes longer than adding.
struct GradientScale {
  double unit = 1;   ///< of the terms: the scale of w
  double chain = 1;  ///< d lambda / d s, or 1
};

/// What a kernel needs of Hardness (lambda_gelu.h).
struct HardnessSource {
  const void* data;
  std::int64_t stride;
  double temperature;
  DType dtype;

  LAMBDA_GELU_HD double stored(std::int64_t channel) const {
    const std::int64_t at = channel * stride;
    switch (dtype) {
      case DType::kFloat32:
        return static_cast<double>(static_cast<const float*>(data)[at]);
      case DType::kFloat64:
        return static_cast<const double*>(data)[at];
      case DType::kBFloat16:
        return static_cast<double>(BFloat16Format::low(static_cast<const std::uint16_t*>(data)[at]));
      default:
        return static_cast<double>(Float16Format::one(static_cast<const std::uint16_t*>(data)[at]));
    }
  }

  LAMBDA_GELU_HD double lambda(std::int64_t channel) const {
    const double value = stored(channel);
    if (temperature == 0) return value;
    const double hardness = one_plus_softplus(divide(value, temperature));
    return dtype == DType::kFloat64 ? hardness : static_cast<double>(static_cast<float>(hardness));
  }

  template <class Storage>
  LAMBDA_GELU_HD auto gate(std::int64_t channel) const {
    using T = typename Storage::Compute;
    return make_gate<T>(gate_recipe<T>(Storage::Formula::kFormula), lambda(channel));
  }

  /// Computed in T.
  template <class T>
  LAMBDA_GELU_HD GradientScale gradient_scale(std::int64_t channel) const {
    const auto recipe = gate_recipe<T>(sizeof(T) == 8 ? Formula::kDouble : Formula::kPolynomial);
    const double unit = static_cast<double>(make_gate<T>(recipe, lambda(channel)).scale_hi);
    return {unit, temperature == 0 ? 1.0 : divide(sigmoid(divide(stored(channel), temperature)), temperature)};
  }

  /// Writes element `channel` of the gradient, from what the kernels summed.
  LAMBDA_GELU_HD void store_gradient(void* gradients, std::int64_t channel, double sum,
                                     const GradientScale& scale) const {
    const double gradient = unscaled_sum_to_gradient(sum, scale.unit) * scale.chain;
    const auto rounded = static_cast<float>(gradient);
    switch (dtype) {
      case DType::kFloat32:
        static_cast<float*>(gradients)[channel] = rounded;
        break;
      case DType::kFloat64:
        static_cast<double*>(gradients)[channel] = gradient;
        break;
      case DType::kBFloat16:
        static_cast<std::uint16_t*>(gradients)[channel] =
            static_cast<std::uint16_t>(BFloat16Format::word(rounded, 0.0f));
        break;
      default:
        static_cast<std::uint16_t*>(gradients)[channel] =
            static_cast<std::uint16_t>(Float16Format::word(rounded, 0.0f));
    }
  }
};

/// A gate in shared memory, on an address from which it is read at once.
template <class T>
struct alignas(16) SharedGate {
  Gate<T> gate;
};

/// Formed by one thread in double, so that every kernel and every block sees the same constants.
template <class Storage>
__device__ __forceinline__ Gate<typename Storage::Compute> block_gate(const HardnessSource& hardness) {
  __shared__ SharedGate<typename Storage::Compute> shared;
  if (threadIdx.x == 0) shared.gate = hardness.gate<Storage>(0);
  __syncthreads();
  return shared.gate;
}

}  // namespace lambda_gelu::kernels::cuda
