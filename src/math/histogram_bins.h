// The bins of a histogram of pre-activations, shared by what fills them and what reads them.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>

namespace lambda_gelu::histogram {

/// |x| falls into one of four bins per octave, its leading bits: [m 2^e, (m + 1/4) 2^e) with m = 1, 1.25, 1.5, 1.75 and
/// e from kSmallestExponent to kLargestExponent. What is smaller goes to the first bin, what is larger to the last.
inline constexpr int kSmallestExponent = -24;
inline constexpr int kLargestExponent = 7;
inline constexpr int kBinsPerOctaveBits = 2;
inline constexpr int kBinsPerSign = (kLargestExponent - kSmallestExponent + 1) << kBinsPerOctaveBits;
/// x > 0 first, then x <= 0: both zeros are in bin kBinsPerSign.
inline constexpr int kBins = 2 * kBinsPerSign;
/// Where NaN and infinities are counted while a histogram is filled.
inline constexpr int kNonfinite = kBins;

/// How T's bits lead to a bin.
template <class T>
struct Bits;
template <>
struct Bits<float> {
  using Integer = std::int32_t;
  static constexpr int kShift = 23 - kBinsPerOctaveBits;
  static constexpr Integer kFirst = (127 + kSmallestExponent) << kBinsPerOctaveBits;
  static constexpr Integer kMagnitude = 0x7fffffff;
  static constexpr Integer kInfinity = 0x7f800000;
};
template <>
struct Bits<double> {
  using Integer = std::int64_t;
  static constexpr int kShift = 52 - kBinsPerOctaveBits;
  static constexpr Integer kFirst = (1023 + kSmallestExponent) << kBinsPerOctaveBits;
  static constexpr Integer kMagnitude = 0x7fffffffffffffff;
  static constexpr Integer kInfinity = 0x7ff0000000000000;
};

/// The bin of x, or kNonfinite.
template <class T>
constexpr int bin_of(T x) {
  using B = Bits<T>;
  const auto bits = std::bit_cast<typename B::Integer>(x);
  const auto magnitude = bits & B::kMagnitude;
  if (magnitude >= B::kInfinity) return kNonfinite;
  auto bin = (magnitude >> B::kShift) - B::kFirst;
  bin = bin < 0 ? 0 : bin >= kBinsPerSign ? kBinsPerSign - 1 : bin;
  return static_cast<int>(bin) + (bits > 0 ? 0 : kBinsPerSign);
}

}  // namespace lambda_gelu::histogram
