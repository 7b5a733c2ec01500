// CUDA kernels of lambda-GELU on raw device pointers and a stream: no torch, no allocation, no synchronization. Every
// call may be captured into a graph. Plain C++: only the .cu files behind it need nvcc.
#pragma once

#include <kernels/geometry.h>

#include <cstdint>
#include <string>

namespace lambda_gelu::kernels::cuda {

/// lambda in device memory: geometry.channels values, `stride` elements apart.
struct Hardness {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  std::int64_t stride = 1;
  /// 0: `data` holds lambda. Positive: `data` holds s, and lambda = 1 + softplus(s / temperature) is formed in double
  /// and rounded to float32 unless s is float64, as on the CPU.
  double temperature = 0;
};

/// What a launch came to. `code` is a cudaError_t; 0 is success.
struct Status {
  int code = 0;
  std::string message;  ///< one sentence; empty on success
  explicit operator bool() const { return code == 0; }
};

/// Of an operand, after those that are one longer run together have been merged.
inline constexpr int kMaxDimensions = 16;

/// y = x Phi(lambda x) on `stream` (a cudaStream_t of the current device). `input` may be `y`.
/// Throws std::invalid_argument where an operand does not fit `geometry`.
Status forward(DType dtype, const Geometry& geometry, const Operand& input, void* y, const Hardness& hardness,
               void* stream);

/// Bytes of device memory that backward() needs for its partial sums, aligned to 8; a function of dtype and geometry.
std::int64_t backward_workspace(DType dtype, const Geometry& geometry);

/// dx = g (Phi(z) + z phi(z)) with z = lambda x, and grad_hardness[c] = sum of g x^2 phi(z) over channel c, chained to
/// s where there is a temperature. grad_hardness: geometry.channels dense values of hardness.dtype. `dx` may be the
/// same memory as a dense `grad_output`, or as a dense `input`.
Status backward(DType dtype, const Geometry& geometry, const Operand& grad_output, const Operand& input, void* dx,
                const Hardness& hardness, void* grad_hardness, void* workspace, void* stream);

/// Architectures in this build, for example "80, 90, 100, 120 and PTX 120"; empty in a build without CUDA.
std::string architectures();

}  // namespace lambda_gelu::kernels::cuda
