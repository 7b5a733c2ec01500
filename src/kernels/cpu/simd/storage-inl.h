// How each dtype lies in memory and in vectors. Included once per instruction set.
#if defined(LAMBDA_GELU_STORAGE_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef LAMBDA_GELU_STORAGE_INL_H
#undef LAMBDA_GELU_STORAGE_INL_H
#else
#define LAMBDA_GELU_STORAGE_INL_H
#endif

#include <hwy/cache_control.h>
#include <kernels/cpu/simd/formulas-inl.h>

HWY_BEFORE_NAMESPACE();
namespace lambda_gelu::kernels {
namespace HWY_NAMESPACE {

// A storage says: Element (in memory), D (vectors computed with), Forward and Backward (formulas), kVectors (how many
// vectors one load or store moves) and kSplit (whether these are the even and the odd elements, or follow each other).

/// Where a result lies halfway between two numbers of a dtype whose conversion is our own.
enum class Ties { kUp, kAway };

template <bool kStream, class D, class V>
HWY_INLINE void put(V v, D d, hn::TFromD<D>* to) {
  if constexpr (kStream) {
    hn::Stream(v, d, to);
  } else {
    hn::StoreU(v, d, to);
  }
}

// float32, float64: vectors follow each other.
template <class D_, class Forward_, class Backward_>
struct Plain {
  using D = D_;
  using Element = hn::TFromD<D>;
  using Forward = Forward_;
  using Backward = Backward_;
  static constexpr int kVectors = 1;
  static constexpr bool kSplit = false;

  template <int U>
  static HWY_INLINE void load(const Element* p, Pack<D, U>& r) {
    LG_EACH r.v[u] = hn::LoadU(D(), p + u * kLanes<D>);
  }
  template <bool kStream, Ties kTies, int U>
  static HWY_INLINE void store(Element* p, const Pack<D, U>& a) {
    LG_EACH put<kStream>(a.v[u], D(), p + u * kLanes<D>);
  }
};
using Float32 = Plain<DF, FloatForwardFormula, FloatFormula>;
using Float64 = Plain<DD, DoubleFormula, DoubleFormula>;

// bfloat16: one load of 32-bit lanes holds a vector of even and one of odd elements; no lane is crossed.
struct BFloat16 {
  using D = DF;
  using Bits = hn::RebindToUnsigned<DF>;
  using Element = std::uint16_t;
  using Forward = MidForwardFormula;
  using Backward = MidFormula;
  static constexpr int kVectors = 2;
  static constexpr bool kSplit = true;

  // The number rounded to nearest in the upper half. Not Highway's: 1.0.3 truncates, and the AVX512-BF16 instruction
  // flushes subnormals. A NaN stays one because its lower half is zero: inputs are bfloat16, and a NaN made by
  // arithmetic is the default one.
  // Ties come from subnormal results, where y is x / 2 and a little more: rounding them up is correct, to even is not.
  // Ties of dx may go either way, and away from zero is the cheapest.
  template <Ties kTies>
  static HWY_INLINE hn::VFromD<Bits> rounded(hn::VFromD<DF> v) {
    const Bits bits;
    const auto half_up = hn::Add(hn::BitCast(bits, v), hn::Set(bits, 0x8000u));
    if constexpr (kTies == Ties::kAway) return half_up;
    const hn::RebindToSigned<DF> integers;
    return hn::Add(half_up, hn::BitCast(bits, hn::ShiftRight<31>(hn::BitCast(integers, v))));  // negative: 1 less
  }
  template <int U>
  static HWY_INLINE void load(const Element* p, Pack<D, U>& r) {
    const Bits bits;
    HWY_UNROLL(8)
    for (int u = 0; u < U; u += 2) {
      const auto both = hn::LoadU(bits, reinterpret_cast<const std::uint32_t*>(p) + (u / 2) * kLanes<D>);
      r.v[u] = hn::BitCast(D(), hn::ShiftLeft<16>(both));
      r.v[u + 1] = hn::BitCast(D(), hn::And(both, hn::Set(bits, 0xffff0000u)));
    }
  }
  template <bool kStream, Ties kTies, int U>
  static HWY_INLINE void store(Element* p, const Pack<D, U>& a) {
    const Bits bits;
    HWY_UNROLL(8)
    for (int u = 0; u < U; u += 2) {
      const auto even = hn::ShiftRight<16>(rounded<kTies>(a.v[u]));
      const auto odd = rounded<kTies>(a.v[u + 1]);
#if LAMBDA_GELU_AVX512
      hn::VFromD<Bits> both;
      both.raw = _mm512_mask_mov_epi16(even.raw, 0xaaaaaaaau, odd.raw);
#elif LAMBDA_GELU_AVX2
      hn::VFromD<Bits> both;
      both.raw = _mm256_blend_epi16(even.raw, odd.raw, 0xaa);
#else
      const auto both = hn::Or(even, hn::And(odd, hn::Set(bits, 0xffff0000u)));
#endif
      put<kStream>(both, bits, reinterpret_cast<std::uint32_t*>(p) + (u / 2) * kLanes<D>);
    }
  }
};

// float16: two vectors follow each other, so that a store is as wide as a vector.
struct Float16 {
  using D = DF;
  using Element = std::uint16_t;
  using Forward = MidForwardFormula;
  using Backward = MidFormula;
  static constexpr int kVectors = 2;
  static constexpr bool kSplit = false;

#if LAMBDA_GELU_AVX512 || LAMBDA_GELU_AVX2
  template <int U>
  static HWY_INLINE void load(const Element* p, Pack<D, U>& r) {
    const hn::Rebind<std::uint16_t, DF> bits;
    const hn::Rebind<hwy::float16_t, DF> half;
    LG_EACH r.v[u] = hn::PromoteTo(DF(), hn::BitCast(half, hn::LoadU(bits, p + u * kLanes<D>)));
  }
  template <bool kStream, Ties kTies, int U>
  static HWY_INLINE void store(Element* p, const Pack<D, U>& a) {
    const hn::Rebind<std::uint16_t, DF> bits;
    const hn::Rebind<hwy::float16_t, DF> half;
    const hn::Twice<decltype(bits)> both;
    HWY_UNROLL(8)
    for (int u = 0; u < U; u += 2) {
      const auto low = hn::BitCast(bits, hn::DemoteTo(half, a.v[u]));
      const auto high = hn::BitCast(bits, hn::DemoteTo(half, a.v[u + 1]));
      put<kStream>(hn::Combine(both, high, low), both, p + u * kLanes<D>);
    }
  }
#else
  // Highway 1.0.3 emulates these conversions with truncation and turns infinity into 65536.
  static HWY_INLINE float widened(std::uint16_t h) {
    std::uint32_t bits = static_cast<std::uint32_t>(h & 0x7fff) << 13;
    float f;
    std::memcpy(&f, &bits, 4);
    f *= 0x1p112f;  // also right for subnormals
    std::memcpy(&bits, &f, 4);
    if ((h & 0x7c00) == 0x7c00) {
      bits = 0x7f800000u | static_cast<std::uint32_t>(h & 0x3ff) << 13 | ((h & 0x3ff) != 0 ? 0x400000u : 0u);
    }
    bits |= static_cast<std::uint32_t>(h & 0x8000) << 16;
    std::memcpy(&f, &bits, 4);
    return f;
  }
  static HWY_INLINE std::uint16_t narrowed(float f) {
    std::uint32_t bits;
    std::memcpy(&bits, &f, 4);
    const std::uint32_t sign = bits >> 16 & 0x8000;
    bits &= 0x7fffffff;
    std::uint32_t r;
    if (bits > 0x7f800000u) {
      r = 0x7e00 | (bits >> 13 & 0x3ff);
    } else if (bits >= 0x477ff000u) {  // 65520 and above
      r = 0x7c00;
    } else if (bits < 0x38800000u) {  // subnormal: adding 0.5 rounds to the grid 2^-24
      float shifted;
      std::memcpy(&shifted, &bits, 4);
      shifted += 0.5f;
      std::memcpy(&r, &shifted, 4);
      r -= 0x3f000000;
    } else {
      r = (bits + 0xfff + (bits >> 13 & 1) - (112u << 23)) >> 13;
    }
    return static_cast<std::uint16_t>(r | sign);
  }
  template <int U>
  static HWY_INLINE void load(const Element* p, Pack<D, U>& r) {
    for (int u = 0; u < U; ++u) {
      alignas(64) float lanes[kLanes<D>];
      for (int i = 0; i < kLanes<D>; ++i) lanes[i] = widened(p[u * kLanes<D> + i]);
      r.v[u] = hn::Load(D(), lanes);
    }
  }
  template <bool kStream, Ties kTies, int U>
  static HWY_INLINE void store(Element* p, const Pack<D, U>& a) {
    for (int u = 0; u < U; ++u) {
      alignas(64) float lanes[kLanes<D>];
      hn::Store(a.v[u], D(), lanes);
      for (int i = 0; i < kLanes<D>; ++i) p[u * kLanes<D> + i] = narrowed(lanes[i]);
    }
  }
#endif
};

// --- The end of a row or span: nothing outside the arrays is read or written ----------------------------------------
/// Copies n < kCount elements to a buffer of kCount, zeros behind them.
template <int kCount, class Element>
HWY_INLINE void load_partial(const Element* from, std::int64_t n, Element* buffer) {
#if LAMBDA_GELU_AVX512
  // Masked-off lanes are not touched in memory. Whole vectors are stored, so that the loads that follow can forward.
  const hn::ScalableTag<Element> d;
  constexpr int lanes = 64 / sizeof(Element);
  HWY_UNROLL(4)
  for (int i = 0; i < kCount; i += lanes) {
    const auto mask = hn::FirstN(d, static_cast<std::size_t>(n > i ? n - i : 0));
    hn::Store(hn::MaskedLoad(mask, d, from + i), d, buffer + i);
  }
#else
  std::memset(buffer, 0, kCount * sizeof(Element));
  std::memcpy(buffer, from, static_cast<std::size_t>(n) * sizeof(Element));
#endif
}
template <int kCount, class Element>
HWY_INLINE void store_partial(const Element* buffer, std::int64_t n, Element* to) {
#if LAMBDA_GELU_AVX512
  const hn::ScalableTag<Element> d;
  constexpr int lanes = 64 / sizeof(Element);
  HWY_UNROLL(4)
  for (int i = 0; i < kCount; i += lanes) {
    const auto mask = hn::FirstN(d, static_cast<std::size_t>(n > i ? n - i : 0));
    hn::BlendedStore(hn::Load(d, buffer + i), mask, d, to + i);
  }
#else
  std::memcpy(to, buffer, static_cast<std::size_t>(n) * sizeof(Element));
#endif
}

}  // namespace HWY_NAMESPACE
}  // namespace lambda_gelu::kernels
HWY_AFTER_NAMESPACE();

#endif
