// The emulator itself: small kernels, right and wrong ones.
#include <gtest/gtest.h>
#include <simt.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "../expect_refusal.h"

namespace {

constexpr int kThreads = 256;
constexpr simt::Order kOrders[] = {simt::Order::kAscending, simt::Order::kDescending, simt::Order::kShuffled};

// --- Right ----------------------------------------------------------------------------------------------------------
template <class T>
__global__ void __launch_bounds__(kThreads) sum_blocks(const T* __restrict__ values, double* __restrict__ sums) {
  T value = values[static_cast<std::int64_t>(blockIdx.x) * blockDim.x + threadIdx.x];
#pragma unroll
  for (int delta = 16; delta > 0; delta /= 2) value += __shfl_down_sync(0xffffffffu, value, delta);
  __shared__ double warps[kThreads / 32];
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x == 0) {
    double sum = 0;
    for (unsigned w = 0; w < blockDim.x / 32; ++w) sum += warps[w];
    sums[blockIdx.x] = sum;
  }
}

// A tree in shared memory, with a barrier per step.
__global__ void sum_tree(const double* values, double* sum) {
  __shared__ double tree[1024];
  tree[threadIdx.x] = values[threadIdx.x];
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    __syncthreads();
    if (threadIdx.x < half) tree[threadIdx.x] += tree[threadIdx.x + half];
  }
  if (threadIdx.x == 0) *sum = tree[0];
}

__global__ void note_indices(unsigned* indices) {
  unsigned* mine = indices + 4 * (blockIdx.x * blockDim.x + threadIdx.x);
  mine[0] = threadIdx.x;
  mine[1] = blockIdx.x;
  mine[2] = blockDim.x;
  mine[3] = gridDim.x;
}

__global__ void shift(int* values, int delta) {
  values[threadIdx.x] = __shfl_down_sync(0xffffffffu, values[threadIdx.x], static_cast<unsigned>(delta));
}

__global__ void exchange_in_warp(int* values) {
  __shared__ int box[64];
  box[threadIdx.x] = values[threadIdx.x];
  __syncwarp();
  values[threadIdx.x] = box[threadIdx.x ^ 1];
}

__global__ void set_to(int* value, int number) {
  if (threadIdx.x == 0) *value = number;
}

// --- Wrong ----------------------------------------------------------------------------------------------------------
__global__ void neighbour_without_barrier(const double* values, double* out) {
  __shared__ double box[kThreads];
  box[threadIdx.x] = values[threadIdx.x];
  out[threadIdx.x] = box[(threadIdx.x + 1) % blockDim.x];
}

// Warps read what other warps write one shuffle later.
__global__ void warps_without_barrier(double base, double* out) {
  __shared__ double box[kThreads / 32];
  const unsigned warp = threadIdx.x / 32;
  double one = __shfl_down_sync(0xffffffffu, 1.0, 1);
  if (threadIdx.x % 32 == 0) box[warp] = base + one + warp;
  one = __shfl_down_sync(0xffffffffu, one, 1);
  if (threadIdx.x % 32 == 0) out[warp] = box[(warp + 1) % (blockDim.x / 32)];
}

__global__ void blocks_in_turn(int* last) {
  if (threadIdx.x == 0) *last = static_cast<int>(blockIdx.x);
}

__global__ void early_return() {
  if (threadIdx.x == 77) return;
  __syncthreads();
}

__global__ void two_barriers() {
  if (threadIdx.x < 128) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void barrier_and_shuffle(int* out) {
  if (threadIdx.x < 5) {
    __syncthreads();
  } else {
    out[threadIdx.x] = __shfl_down_sync(0xffffffffu, 1, 1);
  }
}

__global__ void half_a_warp_shuffles(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_down_sync(0xffffffffu, 1, 1);
}

__global__ void names_half_a_warp(int* out) {
  out[threadIdx.x] = __shfl_down_sync(0x0000ffffu, 1, 1);
}

__global__ void throws_in_one_thread() {
  if (threadIdx.x == 3) throw std::runtime_error("thread 3");
  __syncthreads();
}

// --- Tests ----------------------------------------------------------------------------------------------------------
TEST(Simt, IndicesOfEveryThread) {
  for (const simt::Order order : kOrders) {
    const simt::UseOrder use(order);
    std::vector<unsigned> indices(4 * 3 * 70);
    LAMBDA_GELU_LAUNCH(note_indices, 3, 70, nullptr, indices.data());
    for (unsigned i = 0; i < 210; ++i) {
      const std::vector<unsigned> got(indices.begin() + 4 * i, indices.begin() + 4 * i + 4);
      EXPECT_EQ(got, (std::vector<unsigned>{i % 70, i / 70, 70, 3}));
    }
  }
}

TEST(Simt, ReductionIsTheSameInEveryOrder) {
  std::vector<float> values(10 * kThreads);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = 1.0f / static_cast<float>(1 + i);
  std::vector<double> expected(10);
  for (std::size_t block = 0; block < 10; ++block) {
    for (std::size_t warp = 0; warp < 8; ++warp) {
      std::vector<float> tree(values.begin() + static_cast<std::ptrdiff_t>(block * kThreads + warp * 32),
                              values.begin() + static_cast<std::ptrdiff_t>(block * kThreads + warp * 32 + 32));
      for (std::size_t half = 16; half > 0; half /= 2) {
        for (std::size_t i = 0; i < half; ++i) tree[i] += tree[i + half];
      }
      expected[block] += tree[0];
    }
  }
  for (const simt::Order order : kOrders) {
    for (const std::uint64_t seed : {1, 2, 3}) {
      const simt::UseOrder use(order, seed);
      std::vector<double> sums(10);
      LAMBDA_GELU_LAUNCH(sum_blocks<float>, 10, kThreads, nullptr, values.data(), sums.data());
      EXPECT_EQ(sums, expected);
    }
  }
}

TEST(Simt, BarriersInALoop) {
  for (const int threads : {1, 2, 32, 64, 512, 1024}) {
    std::vector<double> values(static_cast<std::size_t>(threads));
    std::iota(values.begin(), values.end(), 1.0);
    for (const simt::Order order : kOrders) {
      const simt::UseOrder use(order);
      double sum = 0;
      LAMBDA_GELU_LAUNCH(sum_tree, 1, threads, nullptr, values.data(), &sum);
      EXPECT_EQ(sum, 0.5 * threads * (threads + 1));
    }
  }
}

TEST(Simt, ShuffleBeyondTheWarpKeepsTheOwnValue) {
  for (const int delta : {0, 1, 16, 31, 32, 40}) {
    std::vector<int> values(64);
    std::iota(values.begin(), values.end(), 0);
    LAMBDA_GELU_LAUNCH(shift, 1, 64, nullptr, values.data(), delta);
    for (int i = 0; i < 64; ++i)
      EXPECT_EQ(values[static_cast<std::size_t>(i)], i % 32 + delta < 32 ? i + delta : i) << delta;
  }
}

TEST(Simt, WarpBarrier) {
  for (const simt::Order order : kOrders) {
    const simt::UseOrder use(order);
    std::vector<int> values(64);
    std::iota(values.begin(), values.end(), 0);
    LAMBDA_GELU_LAUNCH(exchange_in_warp, 1, 64, nullptr, values.data());
    for (int i = 0; i < 64; ++i) EXPECT_EQ(values[static_cast<std::size_t>(i)], i ^ 1);
  }
}

template <class Result>
std::vector<Result> in_every_order(const std::function<Result()>& run) {
  std::vector<Result> results;
  for (const simt::Order order : kOrders) {
    const simt::UseOrder use(order);
    results.push_back(run());
  }
  return results;
}

TEST(Simt, RacesShowInTheOrder) {
  std::vector<double> values(kThreads);
  std::iota(values.begin(), values.end(), 0.0);
  const auto threads = in_every_order<std::vector<double>>([&] {
    std::vector<double> out(kThreads);
    LAMBDA_GELU_LAUNCH(neighbour_without_barrier, 1, kThreads, nullptr, values.data(), out.data());
    std::reverse(values.begin(), values.end());  // the next run must not find its own values
    return out;
  });
  EXPECT_NE(threads[0], threads[1]);

  // Shared memory keeps what the block before left there: it must not be what this one writes.
  double base = 0;
  const auto warps = in_every_order<std::vector<double>>([&] {
    base += 100;
    std::vector<double> out(kThreads / 32);
    LAMBDA_GELU_LAUNCH(warps_without_barrier, 1, kThreads, nullptr, base, out.data());
    for (double& value : out) value -= base;
    return out;
  });
  EXPECT_NE(warps[0], warps[1]);

  const auto blocks = in_every_order<int>([] {
    int last = -1;
    LAMBDA_GELU_LAUNCH(blocks_in_turn, 50, 32, nullptr, &last);
    return last;
  });
  EXPECT_EQ(blocks[0], 49);
  EXPECT_EQ(blocks[1], 0);
}

TEST(Simt, DivergenceIsAnError) {
  std::vector<int> out(kThreads);
  for (const simt::Order order : kOrders) {
    const simt::UseOrder use(order);
    expect_refusal<simt::Error>([&] { LAMBDA_GELU_LAUNCH(early_return, 2, kThreads, nullptr); }, "early_return",
                                "__syncthreads", "simt_test.cpp", "thread 77 has returned");
    expect_refusal<simt::Error>([&] { LAMBDA_GELU_LAUNCH(two_barriers, 1, kThreads, nullptr); }, "two_barriers",
                                "thread 0", "thread 128");
    expect_refusal<simt::Error>([&] { LAMBDA_GELU_LAUNCH(barrier_and_shuffle, 1, kThreads, nullptr, out.data()); },
                                "__shfl_down_sync", "__syncthreads");
    expect_refusal<simt::Error>([&] { LAMBDA_GELU_LAUNCH(half_a_warp_shuffles, 1, 32, nullptr, out.data()); },
                                "__shfl_down_sync", "thread 16 has returned");
    expect_refusal<simt::Error>([&] { LAMBDA_GELU_LAUNCH(shift, 1, 40, nullptr, out.data(), 1); }, "thread 40",
                                "the block has 40");
    expect_refusal<simt::Error>([&] { LAMBDA_GELU_LAUNCH(names_half_a_warp, 1, 32, nullptr, out.data()); }, "mask");
    expect_refusal<std::runtime_error>([&] { LAMBDA_GELU_LAUNCH(throws_in_one_thread, 1, 32, nullptr); }, "thread 3");
  }
  // And the next launch runs.
  double sum = 0;
  const std::vector<double> ones(64, 1.0);
  LAMBDA_GELU_LAUNCH(sum_tree, 1, 64, nullptr, ones.data(), &sum);
  EXPECT_EQ(sum, 64);
}

TEST(Simt, OnlySomeBlocks) {
  const simt::UseBlocks some({{1, 3}, {2147483640, 4000000000}}, 2);
  std::vector<unsigned> indices(4 * 5);
  LAMBDA_GELU_LAUNCH(note_indices, 5, 1, nullptr, indices.data());
  for (unsigned block = 0; block < 5; ++block) EXPECT_EQ(indices[4 * block + 2], block == 1 || block == 2 ? 1u : 0u);
  // The last blocks of the largest grid.
  int last = 0;
  LAMBDA_GELU_LAUNCH(blocks_in_turn, 2147483647, 1, nullptr, &last);
  EXPECT_EQ(last, 2147483646);
  // Those of the third launch are not chosen.
  LAMBDA_GELU_LAUNCH(blocks_in_turn, 5, 1, nullptr, &last);
  EXPECT_EQ(last, 4);
}

TEST(Simt, LaunchesAreRecorded) {
  int value = 0;
  char stream = 0;
  const simt::Recording outer;
  {
    const simt::Recording recording;
    LAMBDA_GELU_LAUNCH(set_to, 1, 32, &stream, &value, 7);
    LAMBDA_GELU_LAUNCH(set_to, 4, 64, nullptr, &value, 8);
    ASSERT_EQ(recording.launches().size(), 2u);
    EXPECT_EQ(recording.launches()[0].kernel, "set_to");
    EXPECT_EQ(recording.launches()[0].stream, &stream);
    EXPECT_EQ(recording.launches()[0].blocks, 1);
    EXPECT_EQ(recording.launches()[1].blocks, 4);
    EXPECT_EQ(recording.launches()[1].threads, 64);
    EXPECT_EQ(recording.launches()[1].stream, nullptr);
  }
  EXPECT_EQ(outer.launches().size(), 2u);
  EXPECT_EQ(value, 8);
}

TEST(Simt, FailingLaunchesRunNothing) {
  int value = 0;
  const simt::Recording recording;
  simt::fail_launch(cudaErrorNoKernelImageForDevice, 1);
  LAMBDA_GELU_LAUNCH(set_to, 1, 1, nullptr, &value, 1);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  LAMBDA_GELU_LAUNCH(set_to, 1, 1, nullptr, &value, 2);
  EXPECT_EQ(value, 1);
  EXPECT_EQ(cudaPeekAtLastError(), cudaErrorNoKernelImageForDevice);
  EXPECT_EQ(cudaGetLastError(), cudaErrorNoKernelImageForDevice);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  LAMBDA_GELU_LAUNCH(set_to, 1, 1, nullptr, &value, 3);
  EXPECT_EQ(value, 3);

  for (const std::int64_t blocks : {std::int64_t{0}, std::int64_t{-1}, std::int64_t{1} << 31, std::int64_t{1} << 32}) {
    LAMBDA_GELU_LAUNCH(set_to, blocks, 1, nullptr, &value, 4);
    EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidConfiguration) << blocks;
  }
  LAMBDA_GELU_LAUNCH(set_to, 1, 1025, nullptr, &value, 4);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidConfiguration);
  EXPECT_EQ(value, 3);
  EXPECT_EQ(recording.launches().back().error, cudaErrorInvalidConfiguration);
  EXPECT_STREQ(cudaGetErrorString(cudaErrorMemoryAllocation), "out of memory");
}

TEST(Simt, DeviceIsTheOneThatWasSet) {
  simt::device() = {3, 12, 1};
  int device = -1;
  int major = 0;
  int minor = 0;
  EXPECT_EQ(cudaGetDevice(&device), cudaSuccess);
  EXPECT_EQ(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), cudaSuccess);
  EXPECT_EQ(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), cudaSuccess);
  EXPECT_EQ(device, 3);
  EXPECT_EQ(major, 12);
  EXPECT_EQ(minor, 1);
  EXPECT_EQ(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0), cudaErrorInvalidDevice);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidDevice);
  simt::device() = {};
}

TEST(Simt, ManyBlocks) {
  const std::vector<float> values(10000 * kThreads, 1.0f);
  std::vector<double> sums(10000);
  LAMBDA_GELU_LAUNCH(sum_blocks<float>, 10000, kThreads, nullptr, values.data(), sums.data());
  EXPECT_EQ(sums, std::vector<double>(10000, kThreads));
}

}  // namespace
