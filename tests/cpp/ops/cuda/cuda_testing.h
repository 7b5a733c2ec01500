// Helpers of the tests on the fake device.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <lambda_gelu/ops/gradient_reuse.h>

#include "../testing.h"
#include "fake_device.h"

namespace lambda_gelu::testing {

inline at::Device cuda(int index = 0) {
  return {at::kCUDA, static_cast<at::DeviceIndex>(index)};
}

/// A copy with the same strides and offset, where at::Tensor::to would make it dense.
inline at::Tensor to_cuda(const at::Tensor& tensor, int index = 0) {
  const auto elements = static_cast<int64_t>(tensor.storage().nbytes() / tensor.element_size());
  const auto whole = at::empty({0}, tensor.options()).set_(tensor.storage(), 0, {elements}, {1});
  return whole.to(cuda(index)).as_strided(tensor.sizes(), tensor.strides(), tensor.storage_offset());
}

class CudaTest : public ::testing::Test {
 protected:
  void SetUp() override {
    at::manual_seed(0);
    set_gradient_reuse(true);
  }
};

}  // namespace lambda_gelu::testing
