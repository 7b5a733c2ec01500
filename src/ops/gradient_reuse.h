// When the incoming gradient may be overwritten with the outgoing one.
#pragma once

#include <ATen/core/Tensor.h>

namespace lambda_gelu {

/// Whether nobody but the caller, who holds exactly one reference, can ever see the memory of `grad_output`, and the
/// gradient of `input` would have its dtype, sizes and strides.
bool can_reuse(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& hardness);

void count_reuse();

}  // namespace lambda_gelu
