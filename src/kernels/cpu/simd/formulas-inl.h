// The gate formulas (gate.h) on packs of vectors. Included once per instruction set.
#if defined(LAMBDA_GELU_FORMULAS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef LAMBDA_GELU_FORMULAS_INL_H
#undef LAMBDA_GELU_FORMULAS_INL_H
#else
#define LAMBDA_GELU_FORMULAS_INL_H
#endif

#include <kernels/cpu/simd/pack-inl.h>
#include <kernels/gate.h>

HWY_BEFORE_NAMESPACE();
namespace lambda_gelu::kernels {
namespace HWY_NAMESPACE {

/// Gate<T> for the lanes of a pack.
template <class D, int U>
struct GatePack {
  Pack<D, U> scale_hi, scale_lo, limit, slope;
};

/// What a formula makes of x for the backward pass.
template <class D, int U>
struct Derivative {
  Pack<D, U> dx;    ///< D(x) = Phi(z) + z phi(z)
  Pack<D, U> term;  ///< 2^-(w^2) w |x|, see unscaled_sum_to_gradient
};

// 2^-(w^2) = exp and R = ratio, so that Phi(-|z|) = exp * ratio; a = |x| clamped.
template <class D, int U>
struct GateValue {
  Pack<D, U> a, w, exp, ratio;
};

template <class D, int U>
HWY_INLINE Pack<D, U> forward_from(const Pack<D, U>& x, const GateValue<D, U>& v) {
  return fnma(v.a, v.exp * v.ratio, relu(x));
}
template <class D, int U>
HWY_INLINE Derivative<D, U> derivative_from(const Pack<D, U>& x, const GateValue<D, U>& v, const Pack<D, U>& slope) {
  return {reflect(x, v.exp * fnma(slope, v.a, v.ratio)), v.exp * (v.w * v.a)};
}

/// kRational and kRationalMid: 2^-(w^2) by a table of 8 and a cubic, R by one division.
template <class Coefficients, bool kCompensated>
struct RationalFormula {
  using D = DF;
  Table8 table;

  // Written out: GCC gives an implicit constructor the target options of the place that first needs it.
  HWY_INLINE RationalFormula() : table(load_table8(ExpTable8::bits)) {}

  template <int U>
  HWY_INLINE GateValue<D, U> evaluate(const Pack<D, U>& x, const GatePack<D, U>& gate) const {
    const hn::RebindToUnsigned<D> bits;
    const auto ax = absolute(x);
    const auto a = clamp(gate.limit, ax);
    const auto w = gate.scale_hi * a;
    const auto ratio = rational(w, Coefficients::p, Coefficients::q);
    // Fused, so that the rounding of w^2 is no part of r.
    const auto round = constant<D, U>(ExpTable8::round);
    const auto sum = fma(w, w, round);
    auto r = fms(w, w, sum - round);
    if constexpr (kCompensated) {
      // w + low is k |x| to twice the precision; an error of w would be amplified by w in the exponential.
      const auto low = fma(gate.scale_lo, a, fms(gate.scale_hi, a, w));
      r = fma(w + w, low, r);
    }
    const auto entries = look_up(table, ExpTable8::bits, sum);
    Pack<D, U> power;
    LG_EACH power.v[u] =
        hn::BitCast(D(), hn::Sub(entries.v[u], hn::ShiftLeft<ExpTable8::shift>(hn::BitCast(bits, sum.v[u]))));
    const auto exp = zero_beyond(gate.limit, ax, power) * polynomial(r, ExpTable8::p);
    return {a, w, exp, ratio};
  }
  template <int U>
  HWY_INLINE Pack<D, U> forward(const Pack<D, U>& x, const GatePack<D, U>& gate) const {
    return forward_from(x, evaluate(x, gate));
  }
  template <int U>
  HWY_INLINE Derivative<D, U> derivative(const Pack<D, U>& x, const GatePack<D, U>& gate) const {
    return derivative_from(x, evaluate(x, gate), gate.slope);
  }
};
using FloatFormula = RationalFormula<RationalFloat, true>;
using MidFormula = RationalFormula<RationalMid, false>;

#if LAMBDA_GELU_AVX512
// kLog and kLogMid: -log2 Phi(-|z|) by a polynomial per interval, then one exponential; no division, and no cut either,
// because the last entries of the tables are 2^-127 by bits. NaN comes back through relu_keeping_nan.
template <int U>
HWY_INLINE Pack<DF, U> forward_from_log(const Pack<DF, U>& x, const Pack<DF, U>& a, const Pack<DF, U>& log,
                                        const Pack<DF, U>& round, const Table32& table) {
  const hn::RebindToUnsigned<DF> bits;
  const auto sum = log + round;
  const auto r = remainder<5>(log);
  auto power = look_up(table, sum);
  LG_EACH power.v[u] = hn::BitCast(
      DF(), hn::Sub(hn::BitCast(bits, power.v[u]), hn::ShiftLeft<ExpTable32::shift>(hn::BitCast(bits, sum.v[u]))));
  return fnma(a * power, polynomial(r, ExpTable32::p), relu_keeping_nan(x));
}

/// kLog: intervals of equal width.
struct LogFormula {
  using D = DF;
  Table32 c0, c1, c2, c3, c4, round, table;

  HWY_INLINE LogFormula()
      : c0(load_table32(LogTable::c0)),
        c1(load_table32(LogTable::c1)),
        c2(load_table32(LogTable::c2)),
        c3(load_table32(LogTable::c3)),
        c4(load_table32(LogTable::c4)),
        round(shifted(load_table32(LogTable::base), ExpTable32::round)),
        table(load_table32(ExpTable32::bits)) {}

  template <int U>
  HWY_INLINE Pack<D, U> forward(const Pack<D, U>& x, const GatePack<D, U>& gate) const {
    const auto a = clamp_magnitude(gate.limit, x);
    const auto nearest = constant<D, U>(12582912.0f);  // 1.5 * 2^23
    const auto index = fma(gate.scale_hi, a, nearest);
    const auto t = fma(gate.scale_lo, a, fms(gate.scale_hi, a, index - nearest));
    auto v = fma(look_up(c4, index), t, look_up(c3, index));
    v = fma(v, t, look_up(c2, index));
    v = fma(v, t, look_up(c1, index));
    // c0 has to enter before the reduction: added to r afterwards, r would leave the range of the exponential.
    v = fma(v, t, look_up(c0, index));
    return forward_from_log(x, a, v, look_up(round, index), table);
  }
};

/// kLogMid: the exponent and two bits of 1 + w choose the interval; its lower end is what is left of the bits.
struct LogMidFormula {
  using D = DF;
  Table32 c0, c1, c2, c3, round, table;

  HWY_INLINE LogMidFormula()
      : c0(load_table32(LogMidTable::c0)),
        c1(load_table32(LogMidTable::c1)),
        c2(load_table32(LogMidTable::c2)),
        c3(load_table32(LogMidTable::c3)),
        round(shifted(load_table32(LogMidTable::base), ExpTable32::round)),
        table(load_table32(ExpTable32::bits)) {}

  template <int U>
  HWY_INLINE Pack<D, U> forward(const Pack<D, U>& x, const GatePack<D, U>& gate) const {
    const hn::RebindToUnsigned<D> bits;
    const auto a = clamp_magnitude(gate.limit, x);
    const auto shifted_w = fma(gate.scale_hi, a, constant<D, U>(1.0f));
    Pack<D, U> index, lower;
    LG_EACH {
      const auto b = hn::BitCast(bits, shifted_w.v[u]);
      index.v[u] = hn::BitCast(D(), hn::ShiftRight<LogMidTable::shift>(b));
      lower.v[u] = hn::BitCast(D(), hn::And(b, hn::Set(bits, LogMidTable::mask)));
    }
    const auto t = shifted_w - lower;
    auto v = fma(look_up(c3, index), t, look_up(c2, index));
    v = fma(v, t, look_up(c1, index));
    v = fma(v, t, look_up(c0, index));
    return forward_from_log(x, a, v, look_up(round, index), table);
  }
};
using FloatForwardFormula = LogFormula;
using MidForwardFormula = LogMidFormula;
inline constexpr Formula kFloatForward = Formula::kLog;
inline constexpr Formula kMidForward = Formula::kLogMid;
#else
using FloatForwardFormula = FloatFormula;
using MidForwardFormula = MidFormula;
inline constexpr Formula kFloatForward = Formula::kRational;
inline constexpr Formula kMidForward = Formula::kRationalMid;
#endif

/// kDouble
struct DoubleFormula {
  using D = DD;

  HWY_INLINE DoubleFormula() {}

  template <int U>
  HWY_INLINE GateValue<D, U> evaluate(const Pack<D, U>& x, const GatePack<D, U>& gate) const {
    const hn::RebindToUnsigned<D> bits;
    const auto ax = absolute(x);
    const auto a = clamp(gate.limit, ax);
    const auto w = gate.scale_hi * a;
    const auto round = constant<D, U>(ExpPolynomialDouble::round);
    const auto sum = fma(w, w, round);
    const auto low = fma(gate.scale_lo, a, fms(gate.scale_hi, a, w));
    const auto r = fnma(w + w, low, fnma(w, w, sum - round));
    const auto square = w * w;
    const auto ratio = polynomial(w, square, RationalDouble::p) / polynomial(w, square, RationalDouble::q);
    auto exp = polynomial(r, r * r, ExpPolynomialDouble::p);
    LG_EACH exp.v[u] = hn::BitCast(
        D(),
        hn::Sub(hn::BitCast(bits, exp.v[u]), hn::ShiftLeft<ExpPolynomialDouble::shift>(hn::BitCast(bits, sum.v[u]))));
    return {a, w, zero_beyond(gate.limit, ax, exp), ratio};
  }
  template <int U>
  HWY_INLINE Pack<D, U> forward(const Pack<D, U>& x, const GatePack<D, U>& gate) const {
    return forward_from(x, evaluate(x, gate));
  }
  template <int U>
  HWY_INLINE Derivative<D, U> derivative(const Pack<D, U>& x, const GatePack<D, U>& gate) const {
    return derivative_from(x, evaluate(x, gate), gate.slope);
  }
};

}  // namespace HWY_NAMESPACE
}  // namespace lambda_gelu::kernels
HWY_AFTER_NAMESPACE();

#endif
