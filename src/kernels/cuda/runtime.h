// The one place that knows whether a kernel is compiled by nvcc or, by the tests, for the host: there <simt.h> of the
// tests runs the same source, one fiber per CUDA thread.
#pragma once

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#define LAMBDA_GELU_LAUNCH(kernel, blocks, threads, stream, ...) \
  kernel<<<static_cast<unsigned>(blocks), (threads), 0, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)
#else
#include <simt.h>
#endif
