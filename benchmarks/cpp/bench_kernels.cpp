// The kernels on raw pointers and warm memory, beside the limits of the machine measured in the same run: the clock (a
// chain of dependent instructions) and non-temporal copies. Every figure is the best of many calls, because anything
// else that runs on the machine only ever adds time.
//
//   bench_kernels [--benchmark_filter=<regex>] [--benchmark_out=<file> --benchmark_out_format=json]
#include <benchmark/benchmark.h>
#include <emmintrin.h>
#include <kernels/cpu/lambda_gelu.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <functional>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace {

using lambda_gelu::kernels::Backward;
using lambda_gelu::kernels::DType;
using lambda_gelu::kernels::element_size;
using lambda_gelu::kernels::Forward;
using lambda_gelu::kernels::Geometry;

constexpr std::int64_t kInCache = 65536;
constexpr std::int64_t kInMemory = std::int64_t{1} << 26;
constexpr std::int64_t kPerChannel = std::int64_t{1} << 21;
constexpr double kHardness = 1.3;

double seconds(const std::function<void()>& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double best_seconds(int calls, const std::function<void()>& call) {
  double best = 1e9;
  for (int i = 0; i < calls; ++i) best = std::min(best, seconds(call));
  return best;
}

/// Hertz. A multiplication of 64-bit integers waits three cycles for the one before on every x86 since 2008.
double clock_frequency() {
  constexpr int multiplications = 200000;
  constexpr int latency = 3;
  const double best = best_seconds(15, [] {
    std::uint64_t x = 3;
    for (int i = 0; i < multiplications; ++i) asm volatile("imulq %0, %0" : "+r"(x));
    benchmark::DoNotOptimize(x);
  });
  return multiplications * latency / best;
}

const char* name_of(DType dtype) {
  constexpr const char* names[] = {"float32", "float64", "bfloat16", "float16"};
  return names[static_cast<int>(dtype)];
}

void store(DType dtype, double value, void* to) {
  if (dtype == DType::kFloat64) {
    std::memcpy(to, &value, 8);
  } else if (dtype == DType::kFloat32) {
    const auto rounded = static_cast<float>(value);
    std::memcpy(to, &rounded, 4);
  } else if (dtype == DType::kFloat16) {
    const auto rounded = static_cast<_Float16>(value);
    std::memcpy(to, &rounded, 2);
  } else {
    const auto rounded = static_cast<float>(value);
    std::memcpy(to, reinterpret_cast<const char*>(&rounded) + 2, 2);
  }
}

/// Input, incoming gradient and result, large enough for every benchmark and touched once.
struct Memory {
  char* x = allocate();
  char* g = allocate();
  char* y = allocate();

  /// A pattern that fits in the cache, repeated: pre-activations are about normal.
  void fill(DType dtype, std::int64_t size) {
    const std::int64_t bytes = element_size(dtype);
    std::mt19937_64 random(1);
    std::normal_distribution<double> normal(0, 1.5);
    const std::int64_t pattern = std::min(size, kInCache);
    for (std::int64_t i = 0; i < pattern; ++i) {
      store(dtype, normal(random), x + i * bytes);
      store(dtype, normal(random), g + i * bytes);
    }
    for (std::int64_t i = pattern; i < size; i += pattern) {
      const auto n = static_cast<std::size_t>(std::min(pattern, size - i) * bytes);
      std::memcpy(x + i * bytes, x, n);
      std::memcpy(g + i * bytes, g, n);
    }
  }

 private:
  static char* allocate() {
    constexpr std::size_t bytes = static_cast<std::size_t>(kInMemory) * sizeof(double);
    auto* p = static_cast<char*>(std::aligned_alloc(4096, bytes));
    std::memset(p, 0, bytes);
    return p;
  }
};

Memory& memory() {
  static Memory all;
  return all;
}

/// Keeps this thread on one processor: a scheduler leaves short-lived threads on the processor of their parent.
void stay_on(int processor) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(processor, &set);
  sched_setaffinity(0, sizeof(set), &set);
}

/// This thread and others, each on a processor of its own, that wait for work by spinning: to start a thread, or to
/// wake one, costs as much as a slice.
class Team {
 public:
  using Work = std::function<void(std::int64_t, std::int64_t)>;

  explicit Team(int threads) : threads_(threads) {
    for (int t = 1; t < threads; ++t) members_.emplace_back([this, t] { serve(t); });
  }
  ~Team() {
    work_ = nullptr;
    round_.fetch_add(1);
    for (std::thread& member : members_) member.join();
  }
  Team(const Team&) = delete;
  Team& operator=(const Team&) = delete;

  /// f(begin, end) over [0, size), one part for each.
  void run(std::int64_t size, const Work& f) {
    size_ = size;
    work_ = &f;
    busy_.store(threads_ - 1);
    round_.fetch_add(1);
    f(0, size / threads_);
    while (busy_.load() != 0) _mm_pause();
  }

 private:
  void serve(int member) {
    stay_on(member);
    for (int round = 0;;) {
      while (round_.load() == round) _mm_pause();
      ++round;
      if (work_ == nullptr) return;
      (*work_)(size_* member / threads_, size_ * (member + 1) / threads_);
      busy_.fetch_sub(1);
    }
  }

  const int threads_;
  std::int64_t size_ = 0;
  const Work* work_ = nullptr;
  std::atomic<int> round_{0};
  std::atomic<int> busy_{0};
  std::vector<std::thread> members_;
};

/// One dtype and pass; visit() calls f with its kernel over `geometry`.
struct Case {
  DType dtype;
  bool backward;

  int tensors() const { return backward ? 3 : 2; }
  std::string name() const { return std::string(name_of(dtype)) + (backward ? "/backward" : "/forward"); }

  template <class F>
  void visit(const Geometry& geometry, const double* hardness, F&& f) const {
    const Memory& m = memory();
    if (backward) {
      Backward kernel(dtype, geometry, {.data = m.g}, {.data = m.x}, m.y, hardness);
      f(kernel);
      std::vector<double> dhardness(static_cast<std::size_t>(geometry.channels));
      kernel.sum(dhardness.data());
      benchmark::DoNotOptimize(dhardness.data());
    } else {
      Forward kernel(dtype, geometry, {.data = m.x}, m.y, hardness);
      f(kernel);
    }
  }
  /// Everything that a call costs, on this thread.
  void run(const Geometry& geometry, const double* hardness) const {
    visit(geometry, hardness, [](auto& kernel) { kernel.run(0, kernel.units()); });
  }
  void run(std::int64_t size) const { run({1, 1, size}, &kHardness); }
};

/// One read, or two, and one non-temporal write of the bytes [begin, end).
void copy(bool two_reads, std::int64_t begin, std::int64_t end) {
  const Memory& m = memory();
  for (std::int64_t i = begin; i < end; i += 16) {
    __m128i v = _mm_load_si128(reinterpret_cast<const __m128i*>(m.x + i));
    if (two_reads) v = _mm_xor_si128(v, _mm_load_si128(reinterpret_cast<const __m128i*>(m.g + i)));
    _mm_stream_si128(reinterpret_cast<__m128i*>(m.y + i), v);
  }
  _mm_sfence();
}

/// Cycles per element where everything lies in the second-level cache.
void in_cache(benchmark::State& state, const std::string& target, const Case& c) {
  lambda_gelu::kernels::set_target(target);
  memory().fill(c.dtype, kInCache);
  const double clock = clock_frequency();
  double best = 1e9;
  for (auto _ : state) best = std::min(best, seconds([&] { c.run(kInCache); }));
  state.counters["cycles_per_element"] = best * std::max(clock, clock_frequency()) / kInCache;
  state.counters["ns_per_element"] = best * 1e9 / kInCache;
  lambda_gelu::kernels::set_target("");
}

/// 64M elements slice by slice, each in turn with the copy that moves as many bytes. The best slice counts: a whole
/// pass is never left alone on a shared machine.
void in_memory(benchmark::State& state, const std::string& target, const Case& c, int threads) {
  lambda_gelu::kernels::set_target(target);
  memory().fill(c.dtype, kInMemory);
  constexpr std::int64_t slices = 32;
  const std::int64_t slice_bytes = kInMemory / slices * element_size(c.dtype);
  const double cached =
      best_seconds(200, [&] { c.run(kInCache); }) * (static_cast<double>(kInMemory / slices) / kInCache);
  double best = 1e9;
  double best_copy = 1e9;
  Team team(threads);
  for (auto _ : state) {
    c.visit({1, 1, kInMemory}, &kHardness, [&](auto& kernel) {
      const std::int64_t units = kernel.units() / slices;
      for (std::int64_t s = 0; s < slices; ++s) {
        best_copy = std::min(best_copy, seconds([&] {
                               team.run(slice_bytes / 64, [&](std::int64_t begin, std::int64_t end) {
                                 copy(c.backward, s * slice_bytes + begin * 64, s * slice_bytes + end * 64);
                               });
                             }));
        best = std::min(best, seconds([&] {
                          team.run(units, [&](std::int64_t begin, std::int64_t end) {
                            kernel.run(s * units + begin, s * units + end);
                          });
                        }));
      }
    });
  }
  const double moved = static_cast<double>(slice_bytes * c.tensors());
  state.counters["GB_per_s"] = moved / best * 1e-9;
  state.counters["copy_GB_per_s"] = moved / best_copy * 1e-9;
  state.counters["in_cache_GB_per_s"] = moved / cached * threads * 1e-9;
  state.counters["of_limit"] = std::max(best_copy, cached / threads) / best;
  lambda_gelu::kernels::set_target("");
}

/// One lambda per channel, in turn with one lambda for all.
void per_channel(benchmark::State& state, const std::string& target, const Case& c, const Geometry& geometry) {
  lambda_gelu::kernels::set_target(target);
  memory().fill(c.dtype, kPerChannel);
  const std::vector<double> hardness(static_cast<std::size_t>(geometry.channels), kHardness);
  double best = 1e9;
  double best_one = 1e9;
  for (auto _ : state) {
    best = std::min(best, seconds([&] { c.run(geometry, hardness.data()); }));
    best_one = std::min(best_one, seconds([&] { c.run(geometry.size()); }));
  }
  state.counters["ns_per_element"] = best * 1e9 / static_cast<double>(geometry.size());
  state.counters["of_one_lambda"] = best_one / best;
  lambda_gelu::kernels::set_target("");
}

void register_all() {
  constexpr DType dtypes[] = {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16};
  for (const std::string& target : lambda_gelu::kernels::supported_targets()) {
    if (target == "scalar") continue;  // exact, not fast
    for (const DType dtype : dtypes) {
      for (const bool backward : {false, true}) {
        const Case c{dtype, backward};
        const std::string name = target + "/" + c.name();
        benchmark::RegisterBenchmark(("in_cache/" + name).c_str(), in_cache, target, c)->Iterations(1000);
        for (const int threads : {1, 2}) {
          benchmark::RegisterBenchmark(("64M/" + name + "/threads:" + std::to_string(threads)).c_str(), in_memory,
                                       target, c, threads)
              ->Iterations(3)
              ->Unit(benchmark::kMillisecond);
        }
        const auto channels = [&](const std::string& what, const Geometry& geometry) {
          benchmark::RegisterBenchmark((what + "/" + name).c_str(), per_channel, target, c, geometry)
              ->Iterations(25)
              ->Unit(benchmark::kMillisecond);
        };
        for (const std::int64_t plane : {49, 196, 1024}) {
          channels("planes:" + std::to_string(plane), {kPerChannel / (64 * plane), 64, plane});
        }
        for (const std::int64_t columns : {64, 768, 770, 4096}) {
          channels("columns:" + std::to_string(columns), {kPerChannel / columns, columns, 1});
        }
      }
    }
  }
}

std::string cpu_model() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

void describe_machine() {
  benchmark::AddCustomContext("cpu", cpu_model());
  benchmark::AddCustomContext("threads", std::to_string(std::thread::hardware_concurrency()));
  benchmark::AddCustomContext("clock_GHz", std::to_string(clock_frequency() * 1e-9));
  benchmark::AddCustomContext("L1d_bytes", std::to_string(sysconf(_SC_LEVEL1_DCACHE_SIZE)));
  benchmark::AddCustomContext("L2_bytes", std::to_string(sysconf(_SC_LEVEL2_CACHE_SIZE)));
  benchmark::AddCustomContext("last_level_cache_bytes", std::to_string(lambda_gelu::kernels::last_level_cache_bytes()));
  std::string targets;
  for (const std::string& target : lambda_gelu::kernels::supported_targets())
    targets += (targets.empty() ? "" : " ") + target;
  benchmark::AddCustomContext("targets", targets);
}

}  // namespace

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  describe_machine();
  stay_on(0);
  register_all();
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
