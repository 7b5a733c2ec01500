// lambda of every channel as the kernels take it, and the way back for its gradient.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <optional>

namespace lambda_gelu::cpu {

using Values = c10::SmallVector<double, 8>;

/// lambda from a 1-D CPU tensor: its elements, or 1 + softplus(s / temperature) formed in double. The latter is rounded
/// to float32 unless s is float64, so that it equals, bit for bit, the float32 hardness that a module shows.
Values hardness_values(const at::Tensor& hardness, std::optional<double> temperature);

/// Writes `gradient`, with respect to lambda, into a dense 1-D tensor of hardness's dtype; with a temperature it is
/// first multiplied, in double, by d lambda / d s at `hardness`.
void store_gradient(Values& gradient, const at::Tensor& hardness, std::optional<double> temperature,
                    const at::Tensor& result);

}  // namespace lambda_gelu::cpu
