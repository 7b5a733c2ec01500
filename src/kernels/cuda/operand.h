// Operands of the kernels by the flat index of the output: dense and aligned, or any strides on any address.
#pragma once

#include <kernels/cuda/lambda_gelu.h>
#include <kernels/cuda/portable.h>
#include <kernels/cuda/storage.h>
#include <kernels/geometry.h>

#include <cstdint>

namespace lambda_gelu::kernels::cuda {

/// Division of 0 <= n < 2^63 by a positive constant: a multiplication and a shift (Granlund and Montgomery 1994).
struct Divisor {
  std::uint64_t multiplier = 0;
  std::int64_t divisor = 1;
  int shift = 0;

  Divisor() = default;
  explicit Divisor(std::int64_t d) : divisor(d) {
    while (shift < 63 && (std::int64_t{1} << shift) < d) ++shift;
    const auto excess = (static_cast<unsigned __int128>(1) << shift) - static_cast<unsigned __int128>(d);
    multiplier = static_cast<std::uint64_t>((excess << 64) / static_cast<unsigned __int128>(d)) + 1;
  }
  LAMBDA_GELU_HD std::int64_t quotient(std::int64_t n) const {
    const auto unsigned_n = static_cast<std::uint64_t>(n);
    return static_cast<std::int64_t>((multiply_high(unsigned_n, multiplier) + unsigned_n) >> shift);
  }
  LAMBDA_GELU_HD std::int64_t remainder(std::int64_t n) const { return n - quotient(n) * divisor; }
};

/// Dense, on 16 bytes.
template <class Storage>
struct DenseOperand {
  static constexpr bool kDense = true;
  const typename Storage::Element* data;

  LAMBDA_GELU_HD Words vector(std::int64_t at) const { return load_vector(data + at); }
  LAMBDA_GELU_HD Words part(std::int64_t at, int count) const {
    return count == Storage::kVector ? vector(at) : load_elements<Storage>(data + at, 1, count);
  }
};

/// Element (c_0, ..., c_{ndim-1}), in row-major order of the output's memory, lies at data + sum c_i stride_i.
/// Dimensions that are one longer run together are merged, so a dense operand has at most one.
struct Strides {
  int ndim = 0;
  Divisor sizes[kMaxDimensions];
  std::int64_t strides[kMaxDimensions];
};

/// Throws std::invalid_argument unless the operand has `size` elements in at most kMaxDimensions such dimensions.
Strides make_strides(const char* name, const Operand& operand, std::int64_t size);

template <class Storage>
struct StridedOperand {
  static constexpr bool kDense = false;
  const typename Storage::Element* data;
  Strides layout;

  LAMBDA_GELU_HD Words vector(std::int64_t at) const { return part(at, Storage::kVector); }

  LAMBDA_GELU_HD Words part(std::int64_t at, int count) const {
    const int last = layout.ndim - 1;
    std::int64_t inside = at;
    const std::int64_t offset = locate(at, inside);
    if (inside + count <= layout.sizes[last].divisor) {
      const auto* from = data + offset;
      const std::int64_t stride = layout.strides[last];
      if (count == Storage::kVector && stride == 1 && on_vector(from)) return load_vector(from);
      return load_elements<Storage>(from, stride, count);
    }
    Words vector{};
#pragma unroll 1
    for (int i = 0; i < Storage::kVector; ++i) {
      append_element<Storage>(vector, i < count ? data[locate(at + i, inside)] : typename Storage::Element{});
    }
    return vector;
  }

 private:
  /// The offset of element `at`; `inside` becomes its coordinate in the innermost dimension.
  LAMBDA_GELU_HD std::int64_t locate(std::int64_t at, std::int64_t& inside) const {
    const int last = layout.ndim - 1;
    std::int64_t offset = 0;
    for (int i = last; i > 0; --i) {
      const std::int64_t outer = layout.sizes[i].quotient(at);
      const std::int64_t coordinate = at - outer * layout.sizes[i].divisor;
      if (i == last) inside = coordinate;
      offset += coordinate * layout.strides[i];
      at = outer;
    }
    if (last == 0) inside = at;
    return offset + at * layout.strides[0];
  }
};

}  // namespace lambda_gelu::kernels::cuda
