// What adds up the pre-activations of one site: called by its forward.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

namespace lambda_gelu::detail {

struct SiteObserver {
  std::string name;
  std::optional<int64_t> channel_dim;  ///< none: one histogram for everything
  at::Tensor counts, moments;          ///< undefined before the first call

  /// Throws c10::ValueError for an input without that dimension, or with another number of channels than before.
  void add(const at::Tensor& input);
};

}  // namespace lambda_gelu::detail
