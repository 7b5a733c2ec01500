// Loops over spans (one lambda) and over columns (one lambda each). Included once per instruction set.
#if defined(LAMBDA_GELU_LOOPS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef LAMBDA_GELU_LOOPS_INL_H
#undef LAMBDA_GELU_LOOPS_INL_H
#else
#define LAMBDA_GELU_LOOPS_INL_H
#endif

#include <kernels/cpu/simd/kernel_table.h>
#include <kernels/cpu/simd/storage-inl.h>

#include <algorithm>
#include <type_traits>

HWY_BEFORE_NAMESPACE();
namespace lambda_gelu::kernels {
namespace HWY_NAMESPACE {

template <int U, class D>
HWY_INLINE GatePack<D, U> broadcast(D, const Gate<hn::TFromD<D>>& gate) {
  return {constant<D, U>(gate.scale_hi), constant<D, U>(gate.scale_lo), constant<D, U>(gate.limit),
          constant<D, U>(gate.slope)};
}

// --- Spans ----------------------------------------------------------------------------------------------------------
// Vectors side by side in a span, measured: the forward formulas of AVX-512 have registers for four.
template <class S>
inline constexpr int kForwardLockstep = LAMBDA_GELU_AVX512 && sizeof(hn::TFromD<typename S::D>) == 4 ? 4 : 2;
inline constexpr int kLockstep = 2;

template <class S, bool kStream>
HWY_INLINE void forward_step(const typename S::Forward& formula,
                             const GatePack<typename S::D, kForwardLockstep<S>>& gate, const typename S::Element* x,
                             typename S::Element* y) {
  Pack<typename S::D, kForwardLockstep<S>> values;
  S::load(x, values);
  S::template store<kStream, Ties::kUp>(y, formula.forward(values, gate));
}

template <class S, bool kStream>
void forward_span_loop(const typename S::Element* x, typename S::Element* y, std::int64_t size,
                       const Gate<hn::TFromD<typename S::D>>& constants) {
  constexpr int step = kForwardLockstep<S> * kLanes<typename S::D>;
  const typename S::Forward formula;
  const auto gate = broadcast<kForwardLockstep<S>>(typename S::D(), constants);
  std::int64_t i = 0;
  for (; i + step <= size; i += step) forward_step<S, kStream>(formula, gate, x + i, y + i);
  if (i < size) {
    constexpr int padded = step < 32 ? 32 : step;
    alignas(64) typename S::Element from[padded];
    alignas(64) typename S::Element to[padded];
    load_partial<padded>(x + i, size - i, from);
    forward_step<S, false>(formula, gate, from, to);
    store_partial<padded>(to, size - i, y + i);
  }
}

template <class S>
void forward_span(const void* input, void* output, std::int64_t size, const void* gate, bool stream) {
  using Element = typename S::Element;
  const auto* x = static_cast<const Element*>(input);
  auto* y = static_cast<Element*>(output);
  const auto& constants = *static_cast<const Gate<hn::TFromD<typename S::D>>*>(gate);
  if (stream) {
    forward_span_loop<S, true>(x, y, size, constants);
  } else {
    forward_span_loop<S, false>(x, y, size, constants);
  }
}

// The accumulators of the virtual lanes, as vectors.
template <class D>
inline constexpr int kAccumulators = kSumLanes / kLanes<D>;

// A step is two rounds of the virtual lanes. Element i of a block belongs to lane i mod 16, in bfloat16 to lane
// (i mod 32) / 2 (even and odd elements come in different vectors); within a lane the order is that of the elements.
inline constexpr int kBackwardStep = 2 * kSumLanes;

template <class S, bool kStream, class D = typename S::D>
HWY_INLINE void backward_step(const typename S::Backward& formula, const GatePack<D, kLockstep>& gate,
                              const typename S::Element* x, const typename S::Element* g, typename S::Element* dx,
                              Pack<D, kAccumulators<D>>& sums) {
  constexpr int group = kLockstep * kLanes<D>;
  HWY_UNROLL(8)
  for (int j = 0; j < kBackwardStep / group; ++j) {
    Pack<D, kLockstep> values, grads;
    S::load(x + j * group, values);
    S::load(g + j * group, grads);
    const auto derivative = formula.derivative(values, gate);
    S::template store<kStream, Ties::kAway>(dx + j * group, grads * derivative.dx);
    HWY_UNROLL(8)
    for (int u = 0; u < kLockstep; ++u) {
      const int vector = j * kLockstep + u;
      auto& sum = sums.v[S::kSplit ? vector / 2 : vector % kAccumulators<D>];
      sum = fused(D(), grads.v[u], derivative.term.v[u], sum);
    }
  }
}

template <class D>
HWY_INLINE void add_to_lanes(const Pack<D, kAccumulators<D>>& sums, double* lanes) {
  using T = hn::TFromD<D>;
  alignas(64) T values[kSumLanes];
  for (int j = 0; j < kAccumulators<D>; ++j) hn::Store(sums.v[j], D(), values + j * kLanes<D>);
  for (int i = 0; i < kSumLanes; ++i) lanes[i] += static_cast<double>(values[i]);
}

template <class S, bool kStream>
void backward_span_loop(const typename S::Element* x, const typename S::Element* g, typename S::Element* dx,
                        std::int64_t size, const Gate<hn::TFromD<typename S::D>>& constants, double* lanes) {
  using D = typename S::D;
  const typename S::Backward formula;
  const auto gate = broadcast<kLockstep>(D(), constants);
  for (std::int64_t block = 0; block < size; block += kSumBlock) {
    const std::int64_t end = size - block < kSumBlock ? size : block + kSumBlock;
    auto sums = constant<D, kAccumulators<D>>(hn::TFromD<D>{0});
    std::int64_t i = block;
    for (; i + kBackwardStep <= end; i += kBackwardStep) {
      backward_step<S, kStream>(formula, gate, x + i, g + i, dx + i, sums);
    }
    if (i < end) {
      alignas(64) typename S::Element values[kBackwardStep];
      alignas(64) typename S::Element grads[kBackwardStep];
      alignas(64) typename S::Element to[kBackwardStep];
      load_partial<kBackwardStep>(x + i, end - i, values);
      load_partial<kBackwardStep>(g + i, end - i, grads);
      backward_step<S, false>(formula, gate, values, grads, to, sums);
      store_partial<kBackwardStep>(to, end - i, dx + i);
    }
    add_to_lanes(sums, lanes);
  }
}

template <class S>
void backward_span(const void* input, const void* grad_output, void* dx, std::int64_t size, const void* gate,
                   bool stream, double* lanes) {
  using Element = typename S::Element;
  const auto* x = static_cast<const Element*>(input);
  const auto* g = static_cast<const Element*>(grad_output);
  auto* to = static_cast<Element*>(dx);
  const auto& constants = *static_cast<const Gate<hn::TFromD<typename S::D>>*>(gate);
  if (stream) {
    backward_span_loop<S, true>(x, g, to, size, constants, lanes);
  } else {
    backward_span_loop<S, false>(x, g, to, size, constants, lanes);
  }
}

// --- Columns --------------------------------------------------------------------------------------------------------
// Rows that share one load of the gates and of the sums, measured: in the backward pass four rows of three tensors
// would fill a set of the first-level cache where the rows lie a multiple of its way apart.
template <bool kBackward>
inline constexpr int kRowsTogether = kBackward ? 2 : 4;
// Of these, the rows that go through the formula side by side.
template <class S, bool kBackward>
inline constexpr int kRowsInLockstep = std::max(1, (kBackward ? kLockstep : kForwardLockstep<S>) / S::kVectors);

// Where vector `k` of the load at column c has its gates and sums.
template <class S>
HWY_INLINE std::int64_t slot(std::int64_t c, int k) {
  return column_slot<S::kSplit>(c) + k * (S::kSplit ? kTileColumns / 2 : kLanes<typename S::D>);
}

template <class S, class D = typename S::D>
HWY_INLINE GatePack<D, S::kVectors> load_gates(const GateTile<hn::TFromD<D>>& tile, std::int64_t c) {
  GatePack<D, S::kVectors> r;
  HWY_UNROLL(2)
  for (int k = 0; k < S::kVectors; ++k) {
    const std::int64_t s = slot<S>(c, k);
    r.scale_hi.v[k] = hn::Load(D(), tile.scale_hi + s);
    r.scale_lo.v[k] = hn::Load(D(), tile.scale_lo + s);
    r.limit.v[k] = hn::Load(D(), tile.limit + s);
    r.slope.v[k] = hn::Load(D(), tile.slope + s);
  }
  return r;
}

// The vectors of one row, once per row.
template <int kRows, class D, int K>
HWY_INLINE Pack<D, kRows * K> repeated(const Pack<D, K>& one) {
  Pack<D, kRows * K> r;
  HWY_UNROLL(8)
  for (int u = 0; u < kRows * K; ++u) r.v[u] = one.v[u % K];
  return r;
}

template <class Element>
struct Rows {
  const Element* x;
  std::int64_t x_stride;
  const Element* g;
  std::int64_t g_stride;
  Element* out;
  std::int64_t out_stride;
};

template <class S, int kRows, class D = typename S::D>
HWY_INLINE Pack<D, kRows * S::kVectors> load_rows(const typename S::Element* p, std::int64_t stride) {
  Pack<D, kRows * S::kVectors> r;
  HWY_UNROLL(4)
  for (int row = 0; row < kRows; ++row) {
    Pack<D, S::kVectors> one;
    S::load(p + row * stride, one);
    HWY_UNROLL(2)
    for (int k = 0; k < S::kVectors; ++k) r.v[row * S::kVectors + k] = one.v[k];
  }
  return r;
}

template <class S, bool kStream, Ties kTies, int kRows, class D = typename S::D>
HWY_INLINE void store_rows(typename S::Element* p, std::int64_t stride, const Pack<D, kRows * S::kVectors>& values) {
  HWY_UNROLL(4)
  for (int row = 0; row < kRows; ++row) {
    Pack<D, S::kVectors> one;
    HWY_UNROLL(2)
    for (int k = 0; k < S::kVectors; ++k) one.v[k] = values.v[row * S::kVectors + k];
    S::template store<kStream, kTies>(p + row * stride, one);
  }
}

// One load's width of columns, from column c on, in kRows rows.
template <class S, bool kBackward, bool kStream, int kRows, class D = typename S::D>
HWY_INLINE void column_step(const std::conditional_t<kBackward, typename S::Backward, typename S::Forward>& formula,
                            const GatePack<D, S::kVectors>& one_gate, const Rows<typename S::Element>& rows,
                            std::int64_t c, hn::TFromD<D>* sums) {
  constexpr int together = std::min(kRows, kRowsInLockstep<S, kBackward>);
  const GatePack<D, together * S::kVectors> gate{
      repeated<together>(one_gate.scale_hi), repeated<together>(one_gate.scale_lo), repeated<together>(one_gate.limit),
      repeated<together>(one_gate.slope)};
  Pack<D, S::kVectors> sum;
  if constexpr (kBackward) {
    HWY_UNROLL(2)
    for (int k = 0; k < S::kVectors; ++k) sum.v[k] = hn::Load(D(), sums + slot<S>(c, k));
  }
  HWY_UNROLL(4)
  for (int row = 0; row < kRows; row += together) {
    const auto values = load_rows<S, together>(rows.x + row * rows.x_stride + c, rows.x_stride);
    auto* out = rows.out + row * rows.out_stride + c;
    if constexpr (kBackward) {
      const auto grads = load_rows<S, together>(rows.g + row * rows.g_stride + c, rows.g_stride);
      const auto derivative = formula.derivative(values, gate);
      store_rows<S, kStream, Ties::kAway, together>(out, rows.out_stride, grads * derivative.dx);
      HWY_UNROLL(8)
      for (int u = 0; u < together * S::kVectors; ++u) {
        auto& to = sum.v[u % S::kVectors];
        to = fused(D(), grads.v[u], derivative.term.v[u], to);
      }
    } else {
      store_rows<S, kStream, Ties::kUp, together>(out, rows.out_stride, formula.forward(values, gate));
    }
  }
  if constexpr (kBackward) {
    HWY_UNROLL(2)
    for (int k = 0; k < S::kVectors; ++k) hn::Store(sum.v[k], D(), sums + slot<S>(c, k));
  }
}

template <class S, bool kBackward, bool kStream, int kRows, class D = typename S::D>
HWY_INLINE void column_rows(const std::conditional_t<kBackward, typename S::Backward, typename S::Forward>& formula,
                            const GateTile<hn::TFromD<D>>& tile, const Rows<typename S::Element>& rows,
                            std::int64_t columns, hn::TFromD<D>* sums) {
  using Element = typename S::Element;
  constexpr int width = S::kVectors * kLanes<D>;
  std::int64_t c = 0;
  for (; c + width <= columns; c += width) {
    // The hardware prefetcher follows too few of these streams.
    HWY_UNROLL(4)
    for (int row = 0; row < kRows; ++row) {
      hwy::Prefetch(rows.x + (kRows + row) * rows.x_stride + c);
      if (kBackward) hwy::Prefetch(rows.g + (kRows + row) * rows.g_stride + c);
      // The lines of dx too: freshly allocated, they are seldom in a near cache.
      if (kBackward && !kStream) hwy::Prefetch(rows.out + (kRows + row) * rows.out_stride + c);
    }
    column_step<S, kBackward, kStream, kRows>(formula, load_gates<S>(tile, c), rows, c, sums);
  }
  if (c < columns) {
    constexpr int padded = 32;
    alignas(64) Element x[kRows * padded];
    alignas(64) Element g[kRows * padded];
    alignas(64) Element out[kRows * padded];
    const std::int64_t n = columns - c;
    for (int row = 0; row < kRows; ++row) {
      load_partial<padded>(rows.x + row * rows.x_stride + c, n, x + row * padded);
      if (kBackward) load_partial<padded>(rows.g + row * rows.g_stride + c, n, g + row * padded);
    }
    // Shifted by c, so that column c of the step lies at the start of the buffers.
    const auto gate = load_gates<S>(tile, c);
    const Rows<Element> buffers{x, padded, g, padded, out, padded};
    column_step<S, kBackward, false, kRows>(formula, gate, buffers, 0, sums + slot<S>(c, 0));
    for (int row = 0; row < kRows; ++row)
      store_partial<padded>(out + row * padded, n, rows.out + row * rows.out_stride + c);
  }
}

// to[i] += from[i] for i < n, a multiple of the lanes of a vector
template <class T>
HWY_INLINE void add_widened(const T* from, std::int64_t n, double* to) {
  for (std::int64_t i = 0; i < n; i += kLanes<DD>) {
    hn::VFromD<DD> wide;
    if constexpr (sizeof(T) == 8) {
      wide = hn::Load(DD(), from + i);
    } else {
      wide = hn::PromoteTo(DD(), hn::Load(hn::Rebind<float, DD>(), from + i));
    }
    hn::Store(hn::Add(hn::Load(DD(), to + i), wide), DD(), to + i);
  }
}

template <class S, bool kBackward, bool kStream>
void column_loop(const ColumnBlock& block, const GateTile<hn::TFromD<typename S::D>>& tile, double* sums) {
  using Element = typename S::Element;
  using T = hn::TFromD<typename S::D>;
  const std::conditional_t<kBackward, typename S::Backward, typename S::Forward> formula;
  const auto* x = static_cast<const Element*>(block.input);
  const auto* g = static_cast<const Element*>(block.grad_output);
  auto* out = static_cast<Element*>(block.output);
  const auto rows_at = [&](std::int64_t row) HWY_ATTR {
    return Rows<Element>{x + row * block.input_stride,
                         block.input_stride,
                         kBackward ? g + row * block.grad_output_stride : nullptr,
                         block.grad_output_stride,
                         out + row * block.output_stride,
                         block.output_stride};
  };
  // The slots of this block: whole loads, and for split columns an even and an odd range.
  const auto for_each_slots = [&](const auto& f) {
    constexpr std::int64_t width = S::kVectors * kLanes<typename S::D>;
    const std::int64_t columns = (block.columns + width - 1) / width * width;
    if constexpr (S::kSplit) {
      f(std::int64_t{0}, columns / 2);
      f(kTileColumns / 2, columns / 2);
    } else {
      f(std::int64_t{0}, columns);
    }
  };
  alignas(64) T partial[kTileColumns];
  for (std::int64_t first = 0; first < block.rows; first += kSumRows) {
    const std::int64_t end = block.rows - first < kSumRows ? block.rows : first + kSumRows;
    if constexpr (kBackward) {
      for_each_slots([&](std::int64_t from, std::int64_t n) { std::fill_n(partial + from, n, T{0}); });
    }
    std::int64_t row = first;
    for (; row + kRowsTogether<kBackward> <= end; row += kRowsTogether<kBackward>) {
      column_rows<S, kBackward, kStream, kRowsTogether<kBackward>>(formula, tile, rows_at(row), block.columns, partial);
    }
    for (; row + 2 <= end; row += 2) {
      column_rows<S, kBackward, kStream, 2>(formula, tile, rows_at(row), block.columns, partial);
    }
    if (row < end) column_rows<S, kBackward, kStream, 1>(formula, tile, rows_at(row), block.columns, partial);
    if constexpr (kBackward) {
      for_each_slots([&](std::int64_t from, std::int64_t n) HWY_ATTR { add_widened(partial + from, n, sums + from); });
    }
  }
}

template <class S>
void forward_columns(const ColumnBlock& block, const void* gates) {
  const auto& tile = *static_cast<const GateTile<hn::TFromD<typename S::D>>*>(gates);
  if (block.stream) {
    column_loop<S, false, true>(block, tile, nullptr);
  } else {
    column_loop<S, false, false>(block, tile, nullptr);
  }
}

template <class S>
void backward_columns(const ColumnBlock& block, const void* gates, double* sums) {
  const auto& tile = *static_cast<const GateTile<hn::TFromD<typename S::D>>*>(gates);
  if (block.stream) {
    column_loop<S, true, true>(block, tile, sums);
  } else {
    column_loop<S, true, false>(block, tile, sums);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace lambda_gelu::kernels
HWY_AFTER_NAMESPACE();

#endif
