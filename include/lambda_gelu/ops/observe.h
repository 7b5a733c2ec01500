#pragma once

#include <ATen/core/Tensor.h>
#include <lambda_gelu/export.h>

#include <cstdint>

namespace lambda_gelu {

/// Adds the histogram and the moments of pre-activations to `counts` and `moments`, in one pass, through the dispatcher
/// as torch.ops.lambda_gelu.observe_.
///
/// input: float32, float64, bfloat16 or float16, any shape and strides, also empty. Nothing is recorded for autograd.
/// counts: int64, contiguous, shape (rows, 256): the bins of math/histogram.h. moments: float64, contiguous, shape
/// (rows, 4): sum, sum of squares, sum of squares of ReLU(x), number of NaN and infinities (which count nowhere else).
/// Both on input's device. rows = 1: the whole input is one distribution, and channel_dim is ignored. Otherwise rows =
/// input.size(channel_dim), one distribution for each index of channel_dim; negative counts from the end.
///
/// On a CPU the moments have the same bits for any number of threads and on every instruction set. Other devices run a
/// composite of ATen operations, without synchronization. Throws c10::TypeError and c10::ValueError that name the
/// argument; nothing is changed then.
LAMBDA_GELU_API void observe_(const at::Tensor& input, const at::Tensor& counts, const at::Tensor& moments,
                              int64_t channel_dim = 1);

}  // namespace lambda_gelu
