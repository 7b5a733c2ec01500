// A CUDA backend in host memory: devices, streams, allocator and ATen operators, enough for the dispatcher, the
// autograd engine and the operators of this library to run as they do on a GPU, where there is none. Linked into a
// test, it registers itself. ATen's operators run on the CPU, on copies.
#pragma once

#include <c10/core/Stream.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace lambda_gelu::testing::fake_cuda {

inline constexpr int kDevices = 2;
inline constexpr int kStreams = 4;  // of each device; 0 is its default stream

c10::Stream stream(int device, int id);
/// What kernels get for it, in place of a cudaStream_t.
void* native_handle(const c10::Stream& stream);

int current_device();

/// The next allocation, or the one after `skip` others, fails as it does where a GPU's memory is full.
void fail_allocation(int skip = 0);
/// Takes that back.
void allow_allocations();

/// Bytes allocated and not freed, on all devices.
std::int64_t live_bytes();

struct Allocation {
  std::int64_t bytes;
  int device;
  void* stream;  ///< the one that was current
};

/// Notes what happens on all threads until the end of the scope.
class Recording {
 public:
  Recording();
  ~Recording();
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

  std::vector<Allocation> allocations;
  std::vector<std::string> operators;  ///< of ATen, that reached the CUDA backend, other than views and empty ones
  int waits = 0;                       ///< of the host for a device
};

}  // namespace lambda_gelu::testing::fake_cuda
