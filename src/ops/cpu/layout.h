// From tensors to the geometry and the operands of the kernels.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include "kernels/cpu/lambda_gelu.h"

namespace lambda_gelu::cpu {

using Dims = c10::SmallVector<int64_t, 6>;

/// An uninitialized tensor with the strides of at::empty_like(input), without the dispatcher where that is possible.
at::Tensor uninitialized_like(const at::Tensor& input);

/// The dimensions of a dense tensor in the order of its memory, outermost first; those of size 1 are left out.
Dims memory_order(const at::Tensor& output);

/// Which element of the output, in the order of its memory, belongs to which channel. `channels` 1: one lambda for all.
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

}  // namespace lambda_gelu::cpu
