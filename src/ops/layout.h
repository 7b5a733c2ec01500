// From tensors to the geometry and the operands of the kernels of any device.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <cstdint>

#include "kernels/geometry.h"

namespace lambda_gelu {

using Dims = c10::SmallVector<int64_t, 6>;

/// Of float32, float64, bfloat16 and float16, which is what the checks let through.
kernels::DType kernel_dtype(at::ScalarType dtype);

/// The dimensions of a dense tensor in the order of its memory, outermost first; those of size 1 are left out.
Dims memory_order(const at::Tensor& output);

/// Which element of the output, in the order of its memory, belongs to which lambda. One lambda: one channel.
kernels::Geometry make_geometry(const at::Tensor& output, const Dims& order, const at::Tensor& hardness,
                                int64_t channel_dim);
/// The same for `channels` of anything, 1 or output.size(channel_dim).
kernels::Geometry make_geometry(const at::Tensor& output, const Dims& order, int64_t channels, int64_t channel_dim);

/// A tensor as an operand of the kernels, seen in the memory order of the output. Owns what the operand points to.
class StridedOperand {
 public:
  StridedOperand(const at::Tensor& tensor, const at::Tensor& output, const Dims& order);
  StridedOperand(const StridedOperand&) = delete;
  StridedOperand& operator=(const StridedOperand&) = delete;
  const kernels::Operand& operand() const { return operand_; }

 private:
  Dims sizes_;
  Dims strides_;
  kernels::Operand operand_;
};

}  // namespace lambda_gelu
