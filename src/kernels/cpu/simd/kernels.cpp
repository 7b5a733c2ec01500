// The loops, compiled once per instruction set, and the choice among them at run time.
//
// Highway is used header-only: its own dispatch would have to be linked, and Debian has only a shared library of it.
// The bits disable every target without fused multiply-add (SSE2, SSSE3, SSE4: about 100 ns per element) and those
// that compile to the same speed as AVX3 (AVX10.2, AVX3_SPR, AVX3_ZEN4, AVX3_DL); numbers, because names differ
// between Highway's versions. AVX3, AVX2 and the scalar fallback remain.
#define HWY_DISABLED_TARGETS \
  ((1LL << 3) | (1LL << 4) | (1LL << 5) | (1LL << 6) | (1LL << 7) | (1LL << 11) | (1LL << 12) | (1LL << 14))

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "kernels/cpu/simd/kernels.cpp"
#include <hwy/foreach_target.h>
// foreach_target.h comes first.
#include <kernels/cpu/simd/loops-inl.h>
#include <kernels/cpu/simd/observe-inl.h>

#include <atomic>
#include <stdexcept>

HWY_BEFORE_NAMESPACE();
namespace lambda_gelu::kernels {
namespace HWY_NAMESPACE {

template <class S>
constexpr DTypeKernels kernels_of(Formula forward, Formula backward) {
  return {forward,
          backward,
          S::kSplit,
          &forward_span<S>,
          &backward_span<S>,
          &forward_columns<S>,
          &backward_columns<S>,
          &observe_span<S>,
          &observe_columns<S>};
}

void stream_copy(void* to, const void* from, std::int64_t size) {
  const hn::CappedTag<std::uint8_t, 64> d;
  constexpr std::int64_t lanes = static_cast<std::int64_t>(hn::MaxLanes(d));
  auto* out = static_cast<std::uint8_t*>(to);
  const auto* in = static_cast<const std::uint8_t*>(from);
  const std::int64_t misaligned = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(out) % 64);
  std::int64_t i = misaligned == 0 ? 0 : 64 - misaligned;
  if (i > size) i = size;
  std::memcpy(out, in, static_cast<std::size_t>(i));
  for (; i + lanes <= size; i += lanes) hn::Stream(hn::LoadU(d, in + i), d, out + i);
  std::memcpy(out + i, in + i, static_cast<std::size_t>(size - i));
}

void flush_stream() {
  hwy::FlushStream();
}

const KernelTable& table() {
#if LAMBDA_GELU_AVX512
  constexpr const char* name = "avx512";
#elif LAMBDA_GELU_AVX2
  constexpr const char* name = "avx2";
#else
  constexpr const char* name = "scalar";
#endif
  static constexpr KernelTable kTable{
      name,
      {kernels_of<Float32>(kFloatForward, Formula::kRational), kernels_of<Float64>(Formula::kDouble, Formula::kDouble),
       kernels_of<BFloat16>(kMidForward, Formula::kRationalMid),
       kernels_of<Float16>(kMidForward, Formula::kRationalMid)},
      &stream_copy,
      &flush_stream};
  return kTable;
}

}  // namespace HWY_NAMESPACE
}  // namespace lambda_gelu::kernels
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace lambda_gelu::kernels {
namespace {

// Best first.
std::vector<const KernelTable*> supported_tables() {
  std::vector<const KernelTable*> tables;
#if HWY_ARCH_X86
  __builtin_cpu_init();
  [[maybe_unused]] const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                                     __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                                     __builtin_cpu_supports("f16c");
#if HWY_TARGETS & HWY_AVX3
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512cd")) {
    tables.push_back(&N_AVX3::table());
  }
#endif
#if HWY_TARGETS & HWY_AVX2
  if (avx2) tables.push_back(&N_AVX2::table());
#endif
#endif
  tables.push_back(&HWY_STATIC_DISPATCH(table)());
  return tables;
}

const std::vector<const KernelTable*>& tables() {
  static const std::vector<const KernelTable*> all = supported_tables();
  return all;
}

std::atomic<const KernelTable*>& chosen() {
  static std::atomic<const KernelTable*> table{tables().front()};
  return table;
}

}  // namespace

const KernelTable& active_kernels() {
  return *chosen().load(std::memory_order_relaxed);
}

std::vector<std::string> supported_targets() {
  std::vector<std::string> names;
  for (const KernelTable* table : tables()) names.emplace_back(table->name);
  return names;
}

std::string active_target() {
  return active_kernels().name;
}

void set_target(const std::string& name) {
  if (name.empty()) {
    chosen().store(tables().front(), std::memory_order_relaxed);
    return;
  }
  std::string supported;
  for (const KernelTable* table : tables()) {
    if (name == table->name) {
      chosen().store(table, std::memory_order_relaxed);
      return;
    }
    supported += (supported.empty() ? "" : ", ") + std::string(table->name);
  }
  throw std::invalid_argument("target must be one of " + supported + ", got " + name);
}

}  // namespace lambda_gelu::kernels
#endif
