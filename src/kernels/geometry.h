// Types of the kernel interface that its parts share.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace lambda_gelu::kernels {

enum class DType : std::uint8_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

constexpr std::int64_t element_size(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

/// The output (y, or dx) is dense; in memory order it is an (outer, channels, inner) array whose element
/// i belongs to channel (i / inner) % channels. One lambda for everything: channels = 1.
struct Geometry {
  std::int64_t outer = 1;
  std::int64_t channels = 1;
  std::int64_t inner = 0;
  std::int64_t size() const { return outer * channels * inner; }
};

/// An operand that is read. Dense in the order of the output unless `ndim` > 0; then element with output
/// coordinates (c_0, ..., c_{ndim-1}) over `sizes` (row-major order = the output's memory order, product = size())
/// lies at data + sum c_i * strides[i] elements. The arrays must outlive the kernel object.
struct Operand {
  const void* data = nullptr;
  int ndim = 0;
  const std::int64_t* sizes = nullptr;
  const std::int64_t* strides = nullptr;
};

struct Dimension {
  std::int64_t size, stride;
};

/// The dimensions of an operand, outermost first, without those of size 1; neighbours that are one longer run of memory
/// together are one. None: a dense operand, or one element. Throws std::invalid_argument where `operand` (called
/// `name`) has not `size` elements.
std::vector<Dimension> merged_dimensions(const char* name, const Operand& operand, std::int64_t size);

}  // namespace lambda_gelu::kernels
