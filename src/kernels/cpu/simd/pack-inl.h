// Several vectors that go through a formula side by side, statement by statement: the latency of one hides behind the
// others, which the compiler's own scheduling does not achieve. Included once per instruction set.
#if defined(LAMBDA_GELU_PACK_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef LAMBDA_GELU_PACK_INL_H
#undef LAMBDA_GELU_PACK_INL_H
#else
#define LAMBDA_GELU_PACK_INL_H
#endif

#include <hwy/highway.h>

#include <cmath>
#include <cstdint>
#include <cstring>

HWY_BEFORE_NAMESPACE();
namespace lambda_gelu::kernels {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Widths of at most 512 bits, because the sum has a fixed number of lanes.
using DF = hn::CappedTag<float, 16>;
using DD = hn::CappedTag<double, 8>;
template <class D>
inline constexpr int kLanes = static_cast<int>(hn::MaxLanes(D()));

#undef LAMBDA_GELU_AVX512
#undef LAMBDA_GELU_AVX2
#if HWY_TARGET == HWY_AVX3
#define LAMBDA_GELU_AVX512 1
#define LAMBDA_GELU_AVX2 0
#elif HWY_TARGET == HWY_AVX2
#define LAMBDA_GELU_AVX512 0
#define LAMBDA_GELU_AVX2 1
#else
#define LAMBDA_GELU_AVX512 0
#define LAMBDA_GELU_AVX2 0
#endif

#define LG_EACH HWY_UNROLL(8) for (int u = 0; u < U; ++u)

// --- One vector -----------------------------------------------------------------------------------------------------
// Highway's MulAdd rounds twice where the target has no fused one; the error terms need the exact one.
#if HWY_NATIVE_FMA
template <class D, class V>
HWY_INLINE V fused(D, V a, V b, V c) {
  return hn::MulAdd(a, b, c);
}
template <class D, class V>
HWY_INLINE V fused_minus(D, V a, V b, V c) {
  return hn::MulSub(a, b, c);
}
template <class D, class V>
HWY_INLINE V fused_negated(D, V a, V b, V c) {
  return hn::NegMulAdd(a, b, c);
}
#else
// The product of two floats is exact in double. Rounding its sum with c to odd, then to float, rounds once (Boldo and
// Melquiond, "Emulation of FMA and correctly rounded sums", IEEE Trans. Computers 57, 2008).
static HWY_INLINE float fused_lane(float a, float b, float c) {
  const double product = static_cast<double>(a) * b;
  const double sum = product + c;
  const double carried = sum - product;
  const double error = (product - (sum - carried)) + (c - carried);
  if (!(error < 0 || error > 0)) return static_cast<float>(sum);
  std::int64_t bits;
  std::memcpy(&bits, &sum, 8);
  if ((bits & 1) == 0) bits += (error > 0) == (sum > 0) ? 1 : -1;
  double odd;
  std::memcpy(&odd, &bits, 8);
  return static_cast<float>(odd);
}
static HWY_INLINE double fused_lane(double a, double b, double c) {
  return std::fma(a, b, c);
}

template <class D, class V>
HWY_INLINE V fused(D d, V a, V b, V c) {
  using T = hn::TFromD<D>;
  alignas(64) T x[kLanes<D>], y[kLanes<D>], z[kLanes<D>];
  hn::Store(a, d, x);
  hn::Store(b, d, y);
  hn::Store(c, d, z);
  for (int i = 0; i < kLanes<D>; ++i) z[i] = fused_lane(x[i], y[i], z[i]);
  return hn::Load(d, z);
}
template <class D, class V>
HWY_INLINE V fused_minus(D d, V a, V b, V c) {
  return fused(d, a, b, hn::Neg(c));
}
template <class D, class V>
HWY_INLINE V fused_negated(D d, V a, V b, V c) {
  return fused(d, hn::Neg(a), b, c);
}
#endif

// min(limit, x), and x where x or limit is NaN.
template <class V>
HWY_INLINE V clamp_keeping_nan(V limit, V x) {
#if LAMBDA_GELU_AVX512 || LAMBDA_GELU_AVX2
  return hn::Min(limit, x);  // MINPS returns its second operand if either is NaN
#else
  return hn::IfThenElse(hn::Gt(x, limit), limit, x);
#endif
}

// --- Packs ----------------------------------------------------------------------------------------------------------
template <class D, int U>
struct Pack {
  using V = hn::VFromD<D>;
  V v[U];
};

template <class D, int U, class T>
HWY_INLINE Pack<D, U> constant(T value) {
  Pack<D, U> r;
  LG_EACH r.v[u] = hn::Set(D(), value);
  return r;
}
template <class D, int U>
HWY_INLINE Pack<D, U> absolute(Pack<D, U> a) {
  LG_EACH a.v[u] = hn::Abs(a.v[u]);
  return a;
}
template <class D, int U>
HWY_INLINE Pack<D, U> operator+(Pack<D, U> a, const Pack<D, U>& b) {
  LG_EACH a.v[u] = hn::Add(a.v[u], b.v[u]);
  return a;
}
template <class D, int U>
HWY_INLINE Pack<D, U> operator-(Pack<D, U> a, const Pack<D, U>& b) {
  LG_EACH a.v[u] = hn::Sub(a.v[u], b.v[u]);
  return a;
}
template <class D, int U>
HWY_INLINE Pack<D, U> operator*(Pack<D, U> a, const Pack<D, U>& b) {
  LG_EACH a.v[u] = hn::Mul(a.v[u], b.v[u]);
  return a;
}
template <class D, int U>
HWY_INLINE Pack<D, U> operator/(Pack<D, U> a, const Pack<D, U>& b) {
  LG_EACH a.v[u] = hn::Div(a.v[u], b.v[u]);
  return a;
}
// a b + c, a b - c, c - a b, each rounded once
template <class D, int U>
HWY_INLINE Pack<D, U> fma(const Pack<D, U>& a, const Pack<D, U>& b, Pack<D, U> c) {
  LG_EACH c.v[u] = fused(D(), a.v[u], b.v[u], c.v[u]);
  return c;
}
template <class D, int U>
HWY_INLINE Pack<D, U> fms(const Pack<D, U>& a, const Pack<D, U>& b, Pack<D, U> c) {
  LG_EACH c.v[u] = fused_minus(D(), a.v[u], b.v[u], c.v[u]);
  return c;
}
template <class D, int U>
HWY_INLINE Pack<D, U> fnma(const Pack<D, U>& a, const Pack<D, U>& b, Pack<D, U> c) {
  LG_EACH c.v[u] = fused_negated(D(), a.v[u], b.v[u], c.v[u]);
  return c;
}
template <class D, int U>
HWY_INLINE Pack<D, U> clamp(const Pack<D, U>& limit, Pack<D, U> x) {
  LG_EACH x.v[u] = clamp_keeping_nan(limit.v[u], x.v[u]);
  return x;
}
// 0 where x > limit
template <class D, int U>
HWY_INLINE Pack<D, U> zero_beyond(const Pack<D, U>& limit, const Pack<D, U>& x, Pack<D, U> value) {
  LG_EACH value.v[u] = hn::IfThenZeroElse(hn::Gt(x.v[u], limit.v[u]), value.v[u]);
  return value;
}
// x, and -0 where the sign bit of x is set. Not Max(0, x), which treats -0 differently on every target.
template <class D, int U>
HWY_INLINE Pack<D, U> relu(Pack<D, U> x) {
  const hn::RebindToUnsigned<D> bits;
  using B = hn::TFromD<decltype(bits)>;
  const auto sign = hn::Set(bits, static_cast<B>(B{1} << (8 * sizeof(B) - 1)));
  LG_EACH x.v[u] = hn::BitCast(D(), hn::Min(hn::BitCast(bits, x.v[u]), sign));
  return x;
}
// v where the sign bit of x is set, 1 - v elsewhere
template <class D, int U>
HWY_INLINE Pack<D, U> reflect(const Pack<D, U>& x, Pack<D, U> v) {
  const auto one = hn::Set(D(), hn::TFromD<D>{1});
  LG_EACH v.v[u] = hn::IfNegativeThenElse(x.v[u], v.v[u], hn::Sub(one, v.v[u]));
  return v;
}

// Horner's rule, highest coefficient first. Float kernels are bound by throughput, where nothing is cheaper.
template <class D, int U, class T, std::size_t kCount>
HWY_INLINE Pack<D, U> polynomial(const Pack<D, U>& x, const T (&c)[kCount]) {
  Pack<D, U> r = fma(constant<D, U>(c[0]), x, constant<D, U>(c[1]));
  HWY_UNROLL(16)
  for (std::size_t i = 2; i < kCount; ++i) r = fma(r, x, constant<D, U>(c[i]));
  return r;
}

// P(x) / Q(x), the two side by side; Q has one coefficient more.
template <class D, int U, std::size_t kCount>
HWY_INLINE Pack<D, U> rational(const Pack<D, U>& x, const float (&p)[kCount], const float (&q)[kCount + 1]) {
  auto denominator = fma(constant<D, U>(q[0]), x, constant<D, U>(q[1]));
  auto numerator = constant<D, U>(p[0]);
  HWY_UNROLL(16)
  for (std::size_t i = 1; i < kCount; ++i) {
    denominator = fma(denominator, x, constant<D, U>(q[i + 1]));
    numerator = fma(numerator, x, constant<D, U>(p[i]));
  }
  return numerator / denominator;
}

// Even and odd part in x^2 (already there): half the latency of Horner, for the long polynomials of double.
template <int kFirst, int kLast, class D, int U, class T, std::size_t kCount>
HWY_INLINE Pack<D, U> every_second(const Pack<D, U>& x2, const T (&c)[kCount]) {
  Pack<D, U> r = constant<D, U>(c[kFirst]);
  HWY_UNROLL(8)
  for (int i = kFirst + 2; i <= kLast; i += 2) r = fma(r, x2, constant<D, U>(c[i]));
  return r;
}
template <class D, int U, class T, std::size_t kCount>
HWY_INLINE Pack<D, U> polynomial(const Pack<D, U>& x, const Pack<D, U>& x2, const T (&c)[kCount]) {
  constexpr int degree = static_cast<int>(kCount) - 1;
  return fma(x, every_second<(degree - 1) % 2, degree - 1>(x2, c), every_second<degree % 2, degree>(x2, c));
}

// --- Tables: entry j = the low bits of the index vector -------------------------------------------------------------
// Tables of 8: one permutation of a register on AVX2 and AVX-512.
struct Table8 {
  hn::VFromD<hn::RebindToUnsigned<DF>> entries;
};
static HWY_INLINE Table8 load_table8(const std::uint32_t (&table)[8]) {
  const hn::RebindToUnsigned<DF> bits;
  alignas(64) std::uint32_t repeated[16];
  for (int i = 0; i < 16; ++i) repeated[i] = table[i % 8];
  return {hn::Load(bits, repeated)};
}
template <int U>
HWY_INLINE Pack<hn::RebindToUnsigned<DF>, U> look_up(const Table8& table, const std::uint32_t (&plain)[8],
                                                     const Pack<DF, U>& index) {
  const hn::RebindToUnsigned<DF> bits;
  Pack<hn::RebindToUnsigned<DF>, U> r;
#if LAMBDA_GELU_AVX512
  (void)plain;
  // Raw intrinsics, because hn::IndicesFromVec insists on cleared upper bits.
  LG_EACH r.v[u].raw = _mm512_permutexvar_epi32(hn::BitCast(bits, index.v[u]).raw, table.entries.raw);
#elif LAMBDA_GELU_AVX2
  (void)plain;
  LG_EACH r.v[u].raw = _mm256_permutevar8x32_epi32(table.entries.raw, hn::BitCast(bits, index.v[u]).raw);
#else
  (void)table;
  LG_EACH {
    alignas(64) std::uint32_t lanes[kLanes<DF>];
    hn::Store(hn::BitCast(bits, index.v[u]), bits, lanes);
    for (std::uint32_t& lane : lanes) lane = plain[lane % 8];
    r.v[u] = hn::Load(bits, lanes);
  }
#endif
  return r;
}

#if LAMBDA_GELU_AVX512
// Tables of 32: one permutation of two registers, AVX-512 only.
struct Table32 {
  __m512i low, high;
};
template <class T>
HWY_INLINE Table32 load_table32(const T (&table)[32]) {
  static_assert(sizeof(T) == 4);
  return {_mm512_loadu_si512(table), _mm512_loadu_si512(table + 16)};
}
HWY_INLINE Table32 shifted(Table32 table, float by) {
  const __m512 all = _mm512_set1_ps(by);
  return {_mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(table.low), all)),
          _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(table.high), all))};
}
// min(limit, |x|), and limit where x is NaN, in one instruction.
template <int U>
HWY_INLINE Pack<DF, U> clamp_magnitude(const Pack<DF, U>& limit, Pack<DF, U> x) {
  LG_EACH x.v[u].raw = _mm512_range_ps(x.v[u].raw, limit.v[u].raw, 0xA);
  return x;
}
// x - (x rounded to a multiple of 2^-kFractionBits, ties to even)
template <int kFractionBits, int U>
HWY_INLINE Pack<DF, U> remainder(Pack<DF, U> x) {
  LG_EACH x.v[u].raw = _mm512_reduce_ps(x.v[u].raw, kFractionBits << 4);
  return x;
}
// max(0, x), and x where x is NaN or a zero of any sign.
template <int U>
HWY_INLINE Pack<DF, U> relu_keeping_nan(Pack<DF, U> x) {
  LG_EACH x.v[u].raw = _mm512_max_ps(_mm512_setzero_ps(), x.v[u].raw);
  return x;
}
template <int U>
HWY_INLINE Pack<DF, U> look_up(const Table32& table, const Pack<DF, U>& index) {
  Pack<DF, U> r;
  LG_EACH r.v[u].raw =
      _mm512_castsi512_ps(_mm512_permutex2var_epi32(table.low, _mm512_castps_si512(index.v[u].raw), table.high));
  return r;
}
#endif

}  // namespace HWY_NAMESPACE
}  // namespace lambda_gelu::kernels
HWY_AFTER_NAMESPACE();

#endif
