// What code for the CPU and for the GPU shares.
#pragma once

#if defined(__CUDACC__)
/// Compiled by nvcc for the GPU as well; nothing to any other compiler.
#define LAMBDA_GELU_HD __host__ __device__ __forceinline__
#else
#define LAMBDA_GELU_HD inline
#endif

namespace lambda_gelu {

/// a / b for b in the range of normal numbers and of their reciprocals. On the GPU within a unit in the last place,
/// without the subroutine of the exact division and the stack that it needs.
LAMBDA_GELU_HD double divide(double a, double b) {
#if defined(__CUDA_ARCH__)
  double r;
  asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(r) : "d"(b));
  const double rest = __fma_rn(-b, r, 1.0);
  r = __fma_rn(r, __fma_rn(rest, rest, rest), r);  // 20 correct bits become 60
  const double q = __dmul_rn(a, r);
  const double refined = __fma_rn(__fma_rn(-b, q, a), r, q);
  return q - q == 0 ? refined : q;  // infinite or NaN as it is
#else
  return a / b;
#endif
}

}  // namespace lambda_gelu
