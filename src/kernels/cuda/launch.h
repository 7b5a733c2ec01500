// From the arguments of a call to those of a kernel, and from a launch to its status. Host code of the .cu files.
#pragma once

#include <kernels/cuda/columns.h>
#include <kernels/cuda/hardness.h>
#include <kernels/cuda/lambda_gelu.h>
#include <kernels/cuda/operand.h>
#include <kernels/cuda/plan.h>
#include <kernels/cuda/planes.h>
#include <kernels/cuda/runtime.h>
#include <kernels/cuda/span.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <string>

namespace lambda_gelu::kernels::cuda {

template <class Use>
void with_storage(DType dtype, const Use& use) {
  switch (dtype) {
    case DType::kFloat32:
      return use(Float32{});
    case DType::kFloat64:
      return use(Float64{});
    case DType::kBFloat16:
      return use(BFloat16{});
    default:
      return use(Float16{});
  }
}

inline HardnessSource hardness_source(const Hardness& hardness) {
  // The GPU's approximate reciprocal takes subnormal numbers for 0.
  const double temperature =
      hardness.temperature > 0 ? std::max(hardness.temperature, std::numeric_limits<double>::min()) : 0;
  return {hardness.data, hardness.stride, temperature, hardness.dtype};
}

inline PlaneTiling plane_tiling(const PlanePlan& plan) {
  const std::int64_t short_plane = std::min(plan.plane, kLongPlane);
  const auto reciprocal = static_cast<std::uint32_t>(((std::int64_t{1} << 32) + short_plane - 1) / short_plane);
  return {plan.size,       Divisor(plan.plane),           Divisor(plan.channels),
          plan.iterations, static_cast<int>(short_plane), reciprocal};
}

inline ColumnTiling column_tiling(const ColumnPlan& plan) {
  const auto reciprocal = static_cast<std::uint32_t>(((std::int64_t{1} << 32) + plan.inner - 1) / plan.inner);
  return {plan.size,  plan.width,         plan.rows,  Divisor(plan.channels), Divisor(plan.groups), Divisor(plan.inner),
          reciprocal, plan.group_vectors, plan.lanes, plan.rows_per_lane};
}

/// Whether an operand needs no arithmetic for its addresses and can be read in vectors.
inline bool is_dense_on_vectors(const void* data, const Strides& layout) {
  return layout.ndim == 1 && (layout.strides[0] == 1 || layout.sizes[0].divisor == 1) && on_vector(data);
}

/// What came of the last launch of this thread.
inline Status launch_status() {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return {};
  Status status{static_cast<int>(error), cudaGetErrorString(error)};
  if (error == cudaErrorNoKernelImageForDevice) {
    int device = 0;
    int major = 0;
    int minor = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
    cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
    status.message = "this build has CUDA kernels for the architectures " + architectures() +
                     ", but the current GPU has compute capability " + std::to_string(major) + "." +
                     std::to_string(minor);
  }
  if (error == cudaErrorInsufficientDriver || error == cudaErrorUnsupportedPtxVersion) {
    status.message += "; the CUDA kernels of this build need a driver for CUDA " +
                      std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10) +
                      " or later";
  }
  return status;
}

}  // namespace lambda_gelu::kernels::cuda
