// Runs CUDA kernels on the host, from their own source: enough of the language's words and of the run time library for
// kernels that use one dimension of threads, barriers, shuffles and static shared memory. Every thread of a block is a
// fiber and switches only where it waits; blocks follow one another. What a GPU leaves undefined is an error here, and
// what it leaves to chance, the order of threads, warps and blocks, is chosen by the test. Compiled with
// -fsanitize=thread, accesses of two threads of a block without a barrier between them are reported.
#pragma once

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

// --- Words of the language ------------------------------------------------------------------------------------------
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
// One block at a time. It finds what the block before left, which a GPU does not promise either.
#define __shared__ static

// --- The part of the run time library that launches and reports errors ----------------------------------------------
enum cudaError {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInsufficientDriver = 35,
  cudaErrorInvalidDevice = 101,
  cudaErrorNoKernelImageForDevice = 209,
  cudaErrorUnsupportedPtxVersion = 222,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchFailure = 719,
};
using cudaError_t = cudaError;
#define CUDART_VERSION 13000
using cudaStream_t = struct CUstream_st*;
enum cudaDeviceAttr { cudaDevAttrComputeCapabilityMajor = 75, cudaDevAttrComputeCapabilityMinor = 76 };

/// The last error, which it forgets.
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetDevice(int* device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);

namespace simt {

/// A kernel did what has no defined result on a GPU. Thrown by the launch.
class Error : public std::logic_error {
  using std::logic_error::logic_error;
};

// --- What a test chooses --------------------------------------------------------------------------------------------
enum class Order : std::uint8_t {
  kAscending,   ///< each warp, thread by thread, as far as it comes before the next one starts
  kDescending,  ///< the same from the last to the first
  kShuffled,    ///< blocks, warps between shuffles and threads between barriers in pseudo-random order
};

/// Until the end of the scope blocks, warps and threads take turns in this order.
class UseOrder {
 public:
  explicit UseOrder(Order order, std::uint64_t seed = 1);
  ~UseOrder();
  UseOrder(const UseOrder&) = delete;
  UseOrder& operator=(const UseOrder&) = delete;

 private:
  Order order_;
  std::uint64_t seed_;
};

struct BlockRange {
  std::int64_t begin, end;
};

/// Until the end of the scope only these blocks run, as far as a grid has them, of the next `launches` launches.
class UseBlocks {
 public:
  explicit UseBlocks(std::vector<BlockRange> ranges, int launches = 1);
  ~UseBlocks();
  UseBlocks(const UseBlocks&) = delete;
  UseBlocks& operator=(const UseBlocks&) = delete;

 private:
  std::vector<BlockRange> ranges_;
  int launches_;
};

struct Launch {
  std::string kernel;
  std::int64_t blocks;
  std::int64_t threads;
  const void* stream;
  int device;
  cudaError_t error;  ///< of the launch itself; then nothing ran
};

/// Notes every launch until the end of the scope.
class Recording {
 public:
  Recording();
  ~Recording();
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;
  const std::vector<Launch>& launches() const { return launches_; }
  void add(const Launch& launch);

 private:
  std::vector<Launch> launches_;
  Recording* outer_;
};

/// The next launch, or the one after `skip` others, fails with `error` instead of running.
void fail_launch(cudaError_t error, int skip = 0);

/// The device that is current.
struct Device {
  int index = 0;
  int major = 9;
  int minor = 0;
};
Device& device();

// --- What kernels use -----------------------------------------------------------------------------------------------
struct Index {
  unsigned x = 0, y = 0, z = 0;
};

namespace detail {
void run(const char* kernel, std::int64_t blocks, std::int64_t threads, const void* stream, void (*body)(const void*),
         const void* call);
void wait_for_block(const char* file, int line);
void wait_for_warp(unsigned mask, const char* file, int line);
std::uint64_t shuffle_down(unsigned mask, std::uint64_t bits, unsigned delta, const char* file, int line);
}  // namespace detail

/// kernel<<<blocks, threads, 0, stream>>>(arguments...), which is over when it returns.
template <class... Parameters, class... Arguments>
void launch(const char* name, std::int64_t blocks, std::int64_t threads, const void* stream,
            void (*kernel)(Parameters...), const Arguments&... arguments) {
  static_assert((std::is_trivially_copyable_v<Parameters> && ...), "a kernel's arguments are copied byte by byte");
  struct Call {
    void (*kernel)(Parameters...);
    std::tuple<Parameters...> arguments;
  };
  static_assert(sizeof(Call) <= 4096, "a kernel's arguments take at most 4 KB");
  const Call call{kernel, {arguments...}};
  const auto body = [](const void* p) {
    const auto& made = *static_cast<const Call*>(p);
    std::apply(made.kernel, made.arguments);
  };
  detail::run(name, blocks, threads, stream, body, &call);
}

}  // namespace simt

#define LAMBDA_GELU_LAUNCH(kernel, blocks, threads, stream, ...) \
  ::simt::launch(#kernel, (blocks), (threads), (stream), (kernel)__VA_OPT__(, ) __VA_ARGS__)

extern simt::Index threadIdx, blockIdx;
extern simt::Index blockDim, gridDim;
inline constexpr int warpSize = 32;

inline void __syncthreads(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  simt::detail::wait_for_block(file, line);
}

inline void __syncwarp(unsigned mask = 0xffffffffu, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  simt::detail::wait_for_warp(mask, file, line);
}

/// The value of lane + delta; a lane whose source lies beyond the warp keeps its own.
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, const char* file = __builtin_FILE(),
                   int line = __builtin_LINE()) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = simt::detail::shuffle_down(mask, bits, delta, file, line);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}
