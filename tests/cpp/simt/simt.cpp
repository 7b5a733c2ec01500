#include "simt.h"

#include <algorithm>
#include <array>
#include <bit>
#include <exception>
#include <memory>
#include <mutex>

#include "fiber.h"

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
// Every fiber is a thread to the sanitizer. The machinery switches between them in an order that a kernel must not rely
// on, so that it synchronizes nothing; only what a GPU promises is told: barriers, and the end of a block.
#define LG_UNSEEN __attribute__((no_sanitize("thread")))
#define LG_RELEASE(address) __tsan_release(address)
#define LG_ACQUIRE(address) __tsan_acquire(address)
#else
#define LG_UNSEEN
#define LG_RELEASE(address) static_cast<void>(address)
#define LG_ACQUIRE(address) static_cast<void>(address)
#endif

simt::Index threadIdx, blockIdx, blockDim, gridDim;

namespace simt {
namespace {

constexpr std::int64_t kLargestBlock = 1024;
constexpr std::int64_t kLargestGrid = 0x7fffffff;
constexpr int kWarp = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;

enum class State : std::uint8_t { kReady, kBlockBarrier, kWarpBarrier, kShuffle, kReturned };

struct Thread {
  Fiber fiber;
  State state = State::kReady;
  const char* file = nullptr;  ///< of the call that waits
  int line = 0;
  unsigned delta = 0;
  std::uint64_t value = 0;
};

struct Settings {
  Order order = Order::kAscending;
  std::uint64_t seed = 1;
  std::vector<BlockRange> blocks;
  int launches_of_blocks = 0;  ///< that run only these
  Recording* recording = nullptr;
  cudaError_t failure = cudaSuccess;
  int skip = 0;
  Device device;
} settings;

thread_local cudaError_t last_error = cudaSuccess;

class Machine {
 public:
  void run(const char* kernel, std::int64_t blocks, std::int64_t threads, void (*body)(const void*), const void* call);
  void wait(State state, const char* file, int line);
  Thread& current() { return threads_[threadIdx.x]; }

 private:
  static void thread_main();
  void run_block();
  void run_warp(int warp);
  void release_warp(int warp);
  bool release_block();
  int next_warp();
  std::uint64_t random(std::uint64_t below);
  template <class Iterator>
  void arrange(Iterator begin, Iterator end);
  [[noreturn]] void raise(const std::string& what);
  static std::string where(const Thread& thread, int number);
  int warps() const { return (size_ + kWarp - 1) / kWarp; }

  Fiber scheduler_;
  std::unique_ptr<Thread[]> threads_{new Thread[kLargestBlock]};
  const char* kernel_ = nullptr;
  void (*body_)(const void*) = nullptr;
  const void* call_ = nullptr;
  int size_ = 0;
  unsigned ready_ = 0;  ///< warps that can go on
  std::uint64_t random_ = 1;
  bool threw_ = false;
  std::exception_ptr thrown_;
  // Addresses for the sanitizer: what happened before a barrier, and all that the threads did.
  char block_sync_ = 0;
  std::array<char, kWarp> warp_sync_ = {};
  char joined_ = 0;
};

// Launches of different host threads follow one another: threadIdx and the shared memory exist once.
std::mutex machine_mutex;
Machine& machine() {
  static Machine instance;
  return instance;
}

std::uint64_t Machine::random(std::uint64_t below) {
  random_ ^= random_ << 13;
  random_ ^= random_ >> 7;
  random_ ^= random_ << 17;
  return (random_ * 0x9E3779B97F4A7C15ull >> 33) % below;
}

template <class Iterator>
void Machine::arrange(Iterator begin, Iterator end) {
  if (settings.order == Order::kDescending) std::reverse(begin, end);
  if (settings.order != Order::kShuffled) return;
  for (auto n = end - begin; n > 1; --n)
    std::iter_swap(begin + n - 1, begin + static_cast<std::ptrdiff_t>(random(static_cast<std::uint64_t>(n))));
}

void Machine::raise(const std::string& what) {
  LG_ACQUIRE(&joined_);
  throw Error(std::string(kernel_) + ", block " + std::to_string(blockIdx.x) + ": " + what);
}

std::string Machine::where(const Thread& thread, int number) {
  const std::string name = "thread " + std::to_string(number);
  const std::string place =
      thread.file == nullptr ? "" : " (" + std::string(thread.file) + ":" + std::to_string(thread.line) + ")";
  switch (thread.state) {
    case State::kBlockBarrier:
      return name + " waits in __syncthreads" + place;
    case State::kWarpBarrier:
      return name + " waits in __syncwarp" + place;
    case State::kShuffle:
      return name + " waits in __shfl_down_sync" + place;
    default:
      return name + " has returned";
  }
}

LG_UNSEEN void Machine::thread_main() {
  Machine& m = machine();
  LG_ACQUIRE(&m);
  try {
    m.body_(m.call_);
  } catch (...) {
    m.thrown_ = std::current_exception();
    m.threw_ = true;
  }
  LG_RELEASE(&m.joined_);
  Thread& thread = m.current();
  thread.state = State::kReturned;
  m.scheduler_.resume_from(thread.fiber, true);
}

LG_UNSEEN void Machine::wait(State state, const char* file, int line) {
  Thread& thread = current();
  const unsigned index = threadIdx.x;
  thread.state = state;
  thread.file = file;
  thread.line = line;
  char* sync = state == State::kBlockBarrier ? &block_sync_ : &warp_sync_[index / kWarp];
  LG_RELEASE(&joined_);
  if (state != State::kShuffle) LG_RELEASE(sync);
  scheduler_.resume_from(thread.fiber);
  if (state != State::kShuffle) LG_ACQUIRE(sync);
}

int Machine::next_warp() {
  switch (settings.order) {
    case Order::kAscending:
      return std::countr_zero(ready_);
    case Order::kDescending:
      return 31 - std::countl_zero(ready_);
    default: {
      unsigned rest = ready_;
      for (std::uint64_t skip = random(static_cast<std::uint64_t>(std::popcount(ready_))); skip > 0; --skip)
        rest &= rest - 1;
      return std::countr_zero(rest);
    }
  }
}

LG_UNSEEN void Machine::run_warp(int warp) {
  std::array<int, kWarp> order;
  const int lanes = std::min(size_ - warp * kWarp, kWarp);
  for (int lane = 0; lane < lanes; ++lane) order[static_cast<std::size_t>(lane)] = warp * kWarp + lane;
  arrange(order.begin(), order.begin() + lanes);
  for (int i = 0; i < lanes; ++i) {
    const int number = order[static_cast<std::size_t>(i)];
    Thread& thread = threads_[static_cast<std::size_t>(number)];
    if (thread.state != State::kReady) continue;
    threadIdx.x = static_cast<unsigned>(number);
    thread.fiber.resume_from(scheduler_);
    if (threw_) {
      LG_ACQUIRE(&joined_);
      threw_ = false;
      std::rethrow_exception(std::exchange(thrown_, nullptr));
    }
  }
}

LG_UNSEEN void Machine::release_warp(int warp) {
  Thread* first = &threads_[static_cast<std::size_t>(warp * kWarp)];
  const int lanes = std::min(size_ - warp * kWarp, kWarp);
  const auto in_warp = [](const Thread& t) { return t.state == State::kWarpBarrier || t.state == State::kShuffle; };
  const Thread* waiting = std::find_if(first, first + lanes, in_warp);
  if (waiting == first + lanes) {
    ready_ &= ~(1u << warp);
    return;
  }
  for (int lane = 0; lane < lanes; ++lane) {
    const Thread& t = first[lane];
    if (t.state != waiting->state || t.file != waiting->file || t.line != waiting->line) {
      raise(where(*waiting, warp * kWarp + static_cast<int>(waiting - first)) + " for its warp, but " +
            where(t, warp * kWarp + lane));
    }
  }
  std::array<std::uint64_t, kWarp> values;
  for (int lane = 0; lane < lanes; ++lane) values[static_cast<std::size_t>(lane)] = first[lane].value;
  for (int lane = 0; lane < lanes; ++lane) {
    Thread& t = first[lane];
    if (t.state == State::kShuffle && t.delta < static_cast<unsigned>(kWarp - lane)) {
      const int source = lane + static_cast<int>(t.delta);
      if (source >= lanes) {
        raise(where(t, warp * kWarp + lane) + " for the value of thread " + std::to_string(warp * kWarp + source) +
              ", but the block has " + std::to_string(size_));
      }
      t.value = values[static_cast<std::size_t>(source)];
    }
    t.state = State::kReady;
  }
}

// Whether any thread is left to go on.
LG_UNSEEN bool Machine::release_block() {
  const Thread& first = threads_[0];
  for (int i = 0; i < size_; ++i) {
    const Thread& t = threads_[static_cast<std::size_t>(i)];
    if (t.state != first.state || (t.state == State::kBlockBarrier && (t.file != first.file || t.line != first.line)))
      raise(where(first, 0) + ", but " + where(t, i));
  }
  if (first.state == State::kReturned) return false;
  for (int i = 0; i < size_; ++i) threads_[static_cast<std::size_t>(i)].state = State::kReady;
  return true;
}

LG_UNSEEN void Machine::run_block() {
  for (int i = 0; i < size_; ++i) {
    Thread& thread = threads_[static_cast<std::size_t>(i)];
    thread.fiber.start(&thread_main, static_cast<std::size_t>(i));
    thread.state = State::kReady;
    thread.file = nullptr;
  }
  LG_RELEASE(this);
  do {
    ready_ = warps() == kWarp ? kWholeWarp : (1u << warps()) - 1;
    while (ready_ != 0) {
      const int warp = next_warp();
      run_warp(warp);
      release_warp(warp);
    }
  } while (release_block());
  LG_ACQUIRE(&joined_);
}

void Machine::run(const char* kernel, std::int64_t blocks, std::int64_t threads, void (*body)(const void*),
                  const void* call) {
  kernel_ = kernel;
  body_ = body;
  call_ = call;
  size_ = static_cast<int>(threads);
  random_ = settings.seed * 2654435761u + 88172645463325252u;
  blockDim = {static_cast<unsigned>(threads), 1, 1};
  gridDim = {static_cast<unsigned>(blocks), 1, 1};
  std::vector<std::int64_t> chosen;
  const auto choose = [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t b = begin; b < std::min(end, blocks); ++b) chosen.push_back(b);
  };
  if (settings.launches_of_blocks > 0) {
    --settings.launches_of_blocks;
    for (const auto& [begin, end] : settings.blocks) choose(begin, end);
  } else {
    choose(0, blocks);
  }
  arrange(chosen.begin(), chosen.end());
  for (const std::int64_t b : chosen) {
    blockIdx.x = static_cast<unsigned>(b);
    run_block();
  }
}

}  // namespace

namespace detail {

void run(const char* kernel, std::int64_t blocks, std::int64_t threads, const void* stream, void (*body)(const void*),
         const void* call) {
  const std::lock_guard lock(machine_mutex);
  cudaError_t error = cudaSuccess;
  if (settings.failure != cudaSuccess && settings.skip-- == 0) error = std::exchange(settings.failure, cudaSuccess);
  if (blocks < 1 || blocks > kLargestGrid || threads < 1 || threads > kLargestBlock)
    error = cudaErrorInvalidConfiguration;
  if (settings.recording != nullptr)
    settings.recording->add({kernel, blocks, threads, stream, settings.device.index, error});
  if (error != cudaSuccess) {
    last_error = error;
    return;
  }
  machine().run(kernel, blocks, threads, body, call);
}

void wait_for_block(const char* file, int line) {
  machine().wait(State::kBlockBarrier, file, line);
}

static void expect_whole_warp(unsigned mask) {
  if (mask != kWholeWarp) throw Error("only the whole warp, mask 0xffffffff, can be synchronized here");
}

void wait_for_warp(unsigned mask, const char* file, int line) {
  expect_whole_warp(mask);
  machine().wait(State::kWarpBarrier, file, line);
}

LG_UNSEEN std::uint64_t shuffle_down(unsigned mask, std::uint64_t bits, unsigned delta, const char* file, int line) {
  expect_whole_warp(mask);
  Thread& thread = machine().current();
  thread.value = bits;
  thread.delta = delta;
  machine().wait(State::kShuffle, file, line);
  return thread.value;
}

}  // namespace detail

// --- Settings -------------------------------------------------------------------------------------------------------
UseOrder::UseOrder(Order order, std::uint64_t seed) : order_(settings.order), seed_(settings.seed) {
  settings.order = order;
  settings.seed = seed;
}
UseOrder::~UseOrder() {
  settings.order = order_;
  settings.seed = seed_;
}

UseBlocks::UseBlocks(std::vector<BlockRange> ranges, int launches)
    : ranges_(std::exchange(settings.blocks, std::move(ranges))),
      launches_(std::exchange(settings.launches_of_blocks, launches)) {}
UseBlocks::~UseBlocks() {
  settings.blocks = std::move(ranges_);
  settings.launches_of_blocks = launches_;
}

Recording::Recording() : outer_(std::exchange(settings.recording, this)) {}
Recording::~Recording() {
  settings.recording = outer_;
}
void Recording::add(const Launch& launch) {
  launches_.push_back(launch);
  if (outer_ != nullptr) outer_->add(launch);
}

void fail_launch(cudaError_t error, int skip) {
  settings.failure = error;
  settings.skip = skip;
}

Device& device() {
  return settings.device;
}

}  // namespace simt

cudaError_t cudaGetLastError() {
  return std::exchange(simt::last_error, cudaSuccess);
}

cudaError_t cudaPeekAtLastError() {
  return simt::last_error;
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInsufficientDriver:
      return "CUDA driver version is insufficient for CUDA runtime version";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorNoKernelImageForDevice:
      return "no kernel image is available for execution on the device";
    case cudaErrorUnsupportedPtxVersion:
      return "the provided PTX was compiled with an unsupported toolchain.";
    case cudaErrorIllegalAddress:
      return "an illegal memory access was encountered";
    case cudaErrorLaunchFailure:
      return "unspecified launch failure";
  }
  return "unrecognized error code";
}

cudaError_t cudaGetDevice(int* device) {
  *device = simt::device().index;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device != simt::device().index) return simt::last_error = cudaErrorInvalidDevice;
  *value = attribute == cudaDevAttrComputeCapabilityMajor ? simt::device().major : simt::device().minor;
  return cudaSuccess;
}
