// How the dtypes lie in memory: vectors of 16 bytes, and what they hold in the type that is computed in.
#pragma once

#include <kernels/cuda/formulas.h>
#include <kernels/cuda/portable.h>

#include <cstdint>
#include <cstring>

namespace lambda_gelu::kernels::cuda {

struct alignas(16) Words {
  std::uint32_t word[4];
};

struct Float32 {
  using Element = float;
  using Compute = float;
  using Formula = PolynomialFormula;
  static constexpr int kVector = 4;

  static LAMBDA_GELU_HD void unpack(const Words& from, float (&to)[kVector]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = from_bits(from.word[i]);
  }
  static LAMBDA_GELU_HD Words pack(const float (&from)[kVector]) {
    return {{to_bits(from[0]), to_bits(from[1]), to_bits(from[2]), to_bits(from[3])}};
  }
};

struct Float64 {
  using Element = double;
  using Compute = double;
  using Formula = DoubleFormula;
  static constexpr int kVector = 2;

  static LAMBDA_GELU_HD void unpack(const Words& from, double (&to)[kVector]) {
    to[0] = from_halves(from.word[0], from.word[1]);
    to[1] = from_halves(from.word[2], from.word[3]);
  }
  static LAMBDA_GELU_HD Words pack(const double (&from)[kVector]) {
    return {{low_half(from[0]), high_half(from[0]), low_half(from[1]), high_half(from[1])}};
  }
};

/// Two elements in a word. `Format` converts one word.
template <class Format>
struct TwoInAWord {
  using Element = std::uint16_t;
  using Compute = float;
  using Formula = HardwareFormula;
  static constexpr int kVector = 8;

  static LAMBDA_GELU_HD void unpack(const Words& from, float (&to)[kVector]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      to[2 * i] = Format::low(from.word[i]);
      to[2 * i + 1] = Format::high(from.word[i]);
    }
  }
  static LAMBDA_GELU_HD Words pack(const float (&from)[kVector]) {
    return {{Format::word(from[0], from[1]), Format::word(from[2], from[3]), Format::word(from[4], from[5]),
             Format::word(from[6], from[7])}};
  }
};

struct BFloat16Format {
  static LAMBDA_GELU_HD float low(std::uint32_t word) { return from_bits(word << 16); }
  static LAMBDA_GELU_HD float high(std::uint32_t word) { return from_bits(word & 0xffff0000u); }
  static LAMBDA_GELU_HD std::uint32_t word(float low, float high) {
#if defined(__CUDA_ARCH__)
    std::uint32_t both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
#else
    return rounded(low) | rounded(high) << 16;
#endif
  }
#if !defined(__CUDA_ARCH__)
  static std::uint32_t rounded(float value) {
    if (value != value) return 0x7fff;  // the hardware's NaN
    const std::uint32_t bits = to_bits(value);
    return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  }
#endif
};

struct Float16Format {
  static LAMBDA_GELU_HD float low(std::uint32_t word) { return one(static_cast<std::uint16_t>(word)); }
  static LAMBDA_GELU_HD float high(std::uint32_t word) { return one(static_cast<std::uint16_t>(word >> 16)); }
  static LAMBDA_GELU_HD std::uint32_t word(float low, float high) {
#if defined(__CUDA_ARCH__)
    std::uint32_t both;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
#else
    return rounded(low) | rounded(high) << 16;
#endif
  }
  static LAMBDA_GELU_HD float one(std::uint16_t bits) {
#if defined(__CUDA_ARCH__)
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
#else
    return static_cast<float>(std::bit_cast<_Float16>(bits));
#endif
  }
#if !defined(__CUDA_ARCH__)
  static std::uint32_t rounded(float value) { return std::bit_cast<std::uint16_t>(static_cast<_Float16>(value)); }
#endif
};

using BFloat16 = TwoInAWord<BFloat16Format>;
using Float16 = TwoInAWord<Float16Format>;

// --- Access ---------------------------------------------------------------------------------------------------------
// Ordinary loads, not those of the read-only cache: the output may be the memory of an operand.

/// `from` on 16 bytes.
LAMBDA_GELU_HD Words load_vector(const void* from) {
#if defined(__CUDA_ARCH__)
  const uint4 v = *static_cast<const uint4*>(from);
  return {{v.x, v.y, v.z, v.w}};
#else
  return *static_cast<const Words*>(from);
#endif
}
LAMBDA_GELU_HD void store_vector(void* to, const Words& value) {
#if defined(__CUDA_ARCH__)
  // Not an assignment, which in some loops becomes four stores of 4 bytes.
  asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(to)), "r"(value.word[0]),
               "r"(value.word[1]), "r"(value.word[2]), "r"(value.word[3])
               : "memory");
#else
  *static_cast<Words*>(to) = value;
#endif
}

/// Element i of a vector, by its bits.
template <class Storage>
LAMBDA_GELU_HD void set_element(Words& vector, int i, typename Storage::Element value) {
  if constexpr (sizeof(value) == 2) {
    vector.word[i / 2] |= static_cast<std::uint32_t>(value) << (i % 2 * 16);
  } else if constexpr (sizeof(value) == 4) {
    vector.word[i] = to_bits(value);
  } else {
    vector.word[2 * i] = low_half(value);
    vector.word[2 * i + 1] = high_half(value);
  }
}
template <class Storage>
LAMBDA_GELU_HD typename Storage::Element element(const Words& vector, int i) {
  if constexpr (sizeof(typename Storage::Element) == 2) {
    return static_cast<std::uint16_t>(vector.word[i / 2] >> (i % 2 * 16));
  } else if constexpr (sizeof(typename Storage::Element) == 4) {
    return from_bits(vector.word[i]);
  } else {
    return from_halves(vector.word[2 * i], vector.word[2 * i + 1]);
  }
}

/// Moves every element one place down and puts `value` in the last: no index, which would send the vector to memory.
template <class Storage>
LAMBDA_GELU_HD void append_element(Words& vector, typename Storage::Element value) {
  if constexpr (sizeof(value) == 2) {
#pragma unroll
    for (int i = 0; i < 3; ++i) vector.word[i] = vector.word[i] >> 16 | vector.word[i + 1] << 16;
    vector.word[3] = vector.word[3] >> 16 | static_cast<std::uint32_t>(value) << 16;
  } else if constexpr (sizeof(value) == 4) {
    vector = {{vector.word[1], vector.word[2], vector.word[3], to_bits(value)}};
  } else {
    vector = {{vector.word[2], vector.word[3], low_half(value), high_half(value)}};
  }
}

/// The first `count` elements, on any address; the others are zero.
template <class Storage>
LAMBDA_GELU_HD Words load_elements(const typename Storage::Element* from, std::int64_t stride, int count) {
  Words vector{};
#pragma unroll
  for (int i = 0; i < Storage::kVector; ++i) {
    if (i < count) set_element<Storage>(vector, i, from[i * stride]);
  }
  return vector;
}
template <class Storage>
LAMBDA_GELU_HD void store_elements(typename Storage::Element* to, const Words& vector, int count) {
#pragma unroll
  for (int i = 0; i < Storage::kVector; ++i) {
    if (i < count) to[i] = element<Storage>(vector, i);
  }
}

LAMBDA_GELU_HD bool on_vector(const void* address) {
  return (reinterpret_cast<std::uintptr_t>(address) & 15) == 0;
}

}  // namespace lambda_gelu::kernels::cuda
