#include "ops/layout.h"

#include <algorithm>

#include "ops/checks.h"

namespace lambda_gelu {

kernels::DType kernel_dtype(at::ScalarType dtype) {
  switch (dtype) {
    case at::kDouble:
      return kernels::DType::kFloat64;
    case at::kBFloat16:
      return kernels::DType::kBFloat16;
    case at::kHalf:
      return kernels::DType::kFloat16;
    default:
      return kernels::DType::kFloat32;
  }
}

Dims memory_order(const at::Tensor& output) {
  Dims order;
  for (int64_t dim = 0; dim < output.dim(); ++dim) {
    if (output.size(dim) != 1) order.push_back(dim);
  }
  if (!output.is_contiguous()) {
    std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return output.stride(a) > output.stride(b); });
  }
  return order;
}

kernels::Geometry make_geometry(const at::Tensor& output, const Dims& order, int64_t channels, int64_t channel_dim) {
  if (channels == 1) return {.outer = 1, .channels = 1, .inner = output.numel()};
  kernels::Geometry geometry{.outer = 1, .channels = channels, .inner = 1};
  const auto channels_at = wrap_channel_dim(channel_dim, output.dim());
  bool outside = true;
  for (const auto dim : order) {
    if (dim == channels_at) {
      outside = false;
    } else if (outside) {
      geometry.outer *= output.size(dim);
    } else {
      geometry.inner *= output.size(dim);
    }
  }
  return geometry;
}

kernels::Geometry make_geometry(const at::Tensor& output, const Dims& order, const at::Tensor& hardness,
                                int64_t channel_dim) {
  return make_geometry(output, order, hardness.numel(), channel_dim);
}

StridedOperand::StridedOperand(const at::Tensor& tensor, const at::Tensor& output, const Dims& order) {
  operand_.data = tensor.const_data_ptr();
  const bool same_layout =
      std::all_of(order.begin(), order.end(), [&](int64_t dim) { return tensor.stride(dim) == output.stride(dim); });
  if (same_layout) return;

  for (const auto dim : order) {
    const auto size = output.size(dim);
    const auto stride = tensor.stride(dim);
    if (!sizes_.empty() && strides_.back() == stride * size) {  // one longer run with the dimension outside
      sizes_.back() *= size;
      strides_.back() = stride;
    } else {
      sizes_.push_back(size);
      strides_.push_back(stride);
    }
  }
  operand_.ndim = static_cast<int>(sizes_.size());
  operand_.sizes = sizes_.data();
  operand_.strides = strides_.data();
}

}  // namespace lambda_gelu
