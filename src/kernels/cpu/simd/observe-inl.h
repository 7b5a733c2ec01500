// Histograms and moments of a span, or of every column of a tile. Included once per instruction set.
#if defined(LAMBDA_GELU_OBSERVE_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef LAMBDA_GELU_OBSERVE_INL_H
#undef LAMBDA_GELU_OBSERVE_INL_H
#else
#define LAMBDA_GELU_OBSERVE_INL_H
#endif

#include <kernels/cpu/simd/kernel_table.h>
#include <kernels/cpu/simd/storage-inl.h>
#include <math/histogram_bins.h>

#include <algorithm>

HWY_BEFORE_NAMESPACE();
namespace lambda_gelu::kernels {
namespace HWY_NAMESPACE {

// A step is what one load of every storage divides: two rounds of the virtual lanes of the sums. As in the backward
// pass, element i of a step belongs to lane i mod 16, in a split storage to lane i / 2, on every instruction set.
inline constexpr int kObserveStep = 2 * kSumLanes;

template <class S>
struct Observed {
  using D = typename S::D;
  using T = hn::TFromD<D>;
  using Integer = typename histogram::Bits<T>::Integer;
  static constexpr int kVectorsOfStep = kObserveStep / kLanes<D>;

  /// The element of a step that lies at place p of its vectors.
  static constexpr int element(int p) {
    if constexpr (!S::kSplit) return p;
    const int vector = p / kLanes<D>, lane = p % kLanes<D>;
    return vector / 2 * 2 * kLanes<D> + 2 * lane + vector % 2;
  }
};

#if LAMBDA_GELU_AVX512 || LAMBDA_GELU_AVX2

/// kMoments times `kValues` doubles in vectors.
template <int kValues>
struct MomentSums {
  static constexpr int kVectors = kValues / kLanes<DD>;
  Pack<DD, kVectors> sum, sq_sum, sq_sum_relu;

  HWY_INLINE void load(const double* from) {
    for (int v = 0; v < kVectors; ++v) {
      sum.v[v] = hn::LoadU(DD(), from + v * kLanes<DD>);
      sq_sum.v[v] = hn::LoadU(DD(), from + kValues + v * kLanes<DD>);
      sq_sum_relu.v[v] = hn::LoadU(DD(), from + 2 * kValues + v * kLanes<DD>);
    }
  }
  HWY_INLINE void store(double* to) const {
    for (int v = 0; v < kVectors; ++v) {
      hn::StoreU(sum.v[v], DD(), to + v * kLanes<DD>);
      hn::StoreU(sq_sum.v[v], DD(), to + kValues + v * kLanes<DD>);
      hn::StoreU(sq_sum_relu.v[v], DD(), to + 2 * kValues + v * kLanes<DD>);
    }
  }
  HWY_INLINE void add(int at, hn::VFromD<DD> x) {
    const auto positive = hn::ZeroIfNegative(x);
    sum.v[at] = hn::Add(sum.v[at], x);
    sq_sum.v[at] = hn::MulAdd(x, x, sq_sum.v[at]);
    sq_sum_relu.v[at] = hn::MulAdd(positive, positive, sq_sum_relu.v[at]);
  }
  /// The vector of floats, or of doubles, whose first lane is value `first`.
  HWY_INLINE void add_vector(int first, hn::VFromD<DF> x) {
    const hn::Half<DF> half;
    add(first / kLanes<DD>, hn::PromoteTo(DD(), hn::LowerHalf(half, x)));
    add(first / kLanes<DD> + 1, hn::PromoteTo(DD(), hn::UpperHalf(half, x)));
  }
  HWY_INLINE void add_vector(int first, hn::VFromD<DD> x) { add(first / kLanes<DD>, x); }
};

/// Writes the bins of a vector and returns it with 0 for what is not finite.
template <class D, class V, class Integer>
HWY_INLINE V classify(D d, V x, Integer* bins) {
  using B = histogram::Bits<hn::TFromD<D>>;
  const hn::RebindToSigned<D> integers;
  const auto constant = [&](auto value) { return hn::Set(integers, static_cast<Integer>(value)); };
  const auto bits = hn::BitCast(integers, x);
  const auto magnitude = hn::And(bits, constant(B::kMagnitude));
  const auto nonfinite = hn::Gt(magnitude, constant(B::kInfinity - 1));
  auto bin = hn::Sub(hn::ShiftRight<B::kShift>(magnitude), constant(B::kFirst));
  bin = hn::Min(hn::Max(bin, constant(0)), constant(histogram::kBinsPerSign - 1));
  bin = hn::Add(bin, hn::IfThenZeroElse(hn::Gt(bits, constant(0)), constant(histogram::kBinsPerSign)));
  hn::Store(hn::IfThenElse(nonfinite, constant(histogram::kNonfinite), bin), integers, bins);
  return hn::IfThenZeroElse(hn::RebindMask(d, nonfinite), x);
}

#else

/// The same without vectors.
template <int kValues>
struct MomentSums {
  double values[3 * kValues];

  void load(const double* from) { std::copy_n(from, 3 * kValues, values); }
  void store(double* to) const { std::copy_n(values, 3 * kValues, to); }
  void add(int at, double x) {
    const double positive = x > 0 ? x : 0;
    values[at] += x;
    values[kValues + at] = std::fma(x, x, values[kValues + at]);
    values[2 * kValues + at] = std::fma(positive, positive, values[2 * kValues + at]);
  }
  template <class V>
  void add_vector(int first, V x) {
    using D = hn::DFromV<V>;
    alignas(64) hn::TFromD<D> lanes[kLanes<D>];
    hn::Store(x, D(), lanes);
    for (int i = 0; i < kLanes<D>; ++i) add(first + i, static_cast<double>(lanes[i]));
  }
};

template <class D, class V, class Integer>
V classify(D d, V x, Integer* bins) {
  alignas(64) hn::TFromD<D> lanes[kLanes<D>];
  hn::Store(x, d, lanes);
  for (int i = 0; i < kLanes<D>; ++i) {
    bins[i] = static_cast<Integer>(histogram::bin_of(lanes[i]));
    if (bins[i] == histogram::kNonfinite) lanes[i] = 0;
  }
  return hn::Load(d, lanes);
}

#endif

// Steps between writing bins and counting them: scalar reads right behind vector stores would wait for these. What is
// written and what is counted is done side by side.
inline constexpr int kObserveLag = 8;

// --- Spans ----------------------------------------------------------------------------------------------------------
template <class S>
HWY_INLINE void observe_step(const typename S::Element* x, typename Observed<S>::Integer* bins,
                             MomentSums<kSumLanes>& moments) {
  using D = typename S::D;
  Pack<D, Observed<S>::kVectorsOfStep> values;
  S::load(x, values);
  HWY_UNROLL(8)
  for (int v = 0; v < Observed<S>::kVectorsOfStep; ++v) {
    const auto finite = classify(D(), values.v[v], bins + v * kLanes<D>);
    moments.add_vector(S::kSplit ? v / 2 * kLanes<D> : v * kLanes<D> % kSumLanes, finite);
  }
}

template <class Integer>
HWY_INLINE void count_step(const Integer* bins, std::uint32_t* tables) {
  HWY_UNROLL(32)
  for (int p = 0; p < kObserveStep; ++p) ++tables[p % kObserveTables * kObserveTable + bins[p]];
}

template <class S>
void observe_span(const void* input, std::int64_t size, std::uint32_t* tables, double* lanes) {
  using Element = typename S::Element;
  const auto* x = static_cast<const Element*>(input);
  MomentSums<kSumLanes> moments;
  moments.load(lanes);
  using Integer = typename Observed<S>::Integer;
  alignas(64) Integer bins[kObserveLag * kObserveStep];
  const auto slot = [&](std::int64_t step) { return bins + step % kObserveLag * kObserveStep; };
  const std::int64_t steps = size / kObserveStep, ahead = std::min<std::int64_t>(steps, kObserveLag);
  for (std::int64_t step = 0; step < ahead; ++step) observe_step<S>(x + step * kObserveStep, slot(step), moments);
  for (std::int64_t step = ahead; step < steps; ++step) {
    count_step(slot(step), tables);
    observe_step<S>(x + step * kObserveStep, slot(step), moments);
  }
  for (std::int64_t step = steps - ahead; step < steps; ++step) count_step(slot(step), tables);
  const std::int64_t i = steps * kObserveStep;
  if (i < size) {
    alignas(64) Element rest[kObserveStep];
    load_partial<kObserveStep>(x + i, size - i, rest);
    observe_step<S>(rest, bins, moments);
    for (int p = 0; p < kObserveStep; ++p) {
      if (Observed<S>::element(p) < size - i) ++tables[bins[p]];
    }
  }
  moments.store(lanes);
}

// --- Columns --------------------------------------------------------------------------------------------------------
/// What is not finite adds nothing to bin 0.
template <class S>
HWY_INLINE void count_columns(const typename Observed<S>::Integer* bins, int columns, std::int64_t* counts,
                              std::int64_t* nonfinite) {
  HWY_UNROLL(32)
  for (int p = 0; p < kObserveStep; ++p) {
    const int column = Observed<S>::element(p);
    if (columns < kObserveStep && column >= columns) continue;
    const auto bin = static_cast<std::int64_t>(bins[p]);
    const std::int64_t outside = bin >> 8;
    counts[column * histogram::kBins + (bin & (histogram::kBins - 1))] += 1 - outside;
    nonfinite[column] += outside;
  }
}

/// One step of columns, `rows` rows of it: adds to the columns' bins, and to their moments in the order of vectors.
template <class S>
HWY_INLINE void observe_group(const typename S::Element* x, std::int64_t stride, std::int64_t rows, int columns,
                              std::int64_t* counts, std::int64_t* nonfinite, double* sums) {
  using D = typename S::D;
  using Element = typename S::Element;
  using Integer = typename Observed<S>::Integer;
  MomentSums<kObserveStep> moments;
  moments.load(sums);
  alignas(64) Integer bins[kObserveLag * kObserveStep];
  alignas(64) Element rest[kObserveStep];
  const auto slot = [&](std::int64_t row) { return bins + row % kObserveLag * kObserveStep; };
  for (std::int64_t row = 0; row < rows; ++row) {
    if (row >= kObserveLag) count_columns<S>(slot(row), columns, counts, nonfinite);
    const Element* from = x + row * stride;
    if (columns < kObserveStep) {
      load_partial<kObserveStep>(from, columns, rest);
      from = rest;
    }
    Pack<D, Observed<S>::kVectorsOfStep> values;
    S::load(from, values);
    HWY_UNROLL(8)
    for (int v = 0; v < Observed<S>::kVectorsOfStep; ++v) {
      moments.add_vector(v * kLanes<D>, classify(D(), values.v[v], slot(row) + v * kLanes<D>));
    }
  }
  for (std::int64_t row = std::max<std::int64_t>(0, rows - kObserveLag); row < rows; ++row) {
    count_columns<S>(slot(row), columns, counts, nonfinite);
  }
  moments.store(sums);
}
static_assert(histogram::kNonfinite == 1 << 8);

// Rows that pass through one group before the next: a group's sums stay in registers, its memory in the cache.
inline constexpr std::int64_t kObserveRows = 64;

template <class S>
void observe_columns(const void* input, std::int64_t stride, std::int64_t rows, std::int64_t columns,
                     std::int64_t* counts, std::int64_t* nonfinite, double* moments) {
  const auto* x = static_cast<const typename S::Element*>(input);
  constexpr int kGroups = kObserveColumns / kObserveStep;
  alignas(64) double sums[kGroups][kObserveMoments * kObserveStep] = {};
  for (std::int64_t row = 0; row < rows; row += kObserveRows) {
    const std::int64_t some = std::min(kObserveRows, rows - row);
    for (std::int64_t c = 0; c < columns; c += kObserveStep) {
      observe_group<S>(x + row * stride + c, stride, some,
                       static_cast<int>(std::min<std::int64_t>(kObserveStep, columns - c)),
                       counts + c * histogram::kBins, nonfinite + c, sums[c / kObserveStep]);
    }
  }
  for (std::int64_t c = 0; c < columns; c += kObserveStep) {
    for (int p = 0; p < kObserveStep; ++p) {
      const std::int64_t column = c + Observed<S>::element(p);
      if (column >= columns) continue;
      for (int m = 0; m < kObserveMoments; ++m) {
        moments[column * kObserveMoments + m] = sums[c / kObserveStep][m * kObserveStep + p];
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace lambda_gelu::kernels
HWY_AFTER_NAMESPACE();

#endif
