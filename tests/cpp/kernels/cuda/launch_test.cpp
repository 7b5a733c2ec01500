// What is launched, where, and what becomes of a launch that fails; and that no order of threads, warps and blocks
// shows in the results.
#include <kernels/cuda/plan.h>

#include <cmath>

#include "cuda_testing.h"

namespace lambda_gelu::kernels::cuda::testing {
namespace {

constexpr Geometry kOneTile = {1, 1, 1003};
constexpr Geometry kSeveral[] = {{1, 1, 20011}, {3, 7, 403}, {2, 3, 1032}, {41, 6, 49}, {130, 35, 1}};

struct Call {
  Array x, g, dx, dhardness;
  HardnessArray hardness;
  std::vector<double> workspace;
  Geometry geometry;
  DType dtype;

  Call(DType type, const Geometry& shape)
      : x(random_normal(type, shape.size(), 1.3, 31)),
        g(random_normal(type, shape.size(), 1.0, 32)),
        dx(type, shape.size()),
        dhardness(DType::kFloat32, shape.channels),
        hardness(DType::kFloat32, some_hardness(shape.channels)),
        workspace(static_cast<std::size_t>(backward_workspace(type, shape)) / sizeof(double)),
        geometry(shape),
        dtype(type) {}
  Status forward(void* stream = nullptr) {
    return cuda::forward(dtype, geometry, {x.data()}, dx.data(), hardness.argument(), stream);
  }
  Status backward(void* stream = nullptr) {
    return cuda::backward(dtype, geometry, {g.data()}, {x.data()}, dx.data(), hardness.argument(), dhardness.data(),
                          workspace.data(), stream);
  }
};

TEST(Launch, OneForwardAndAtMostTwoBackwardOnTheStream) {
  char place;
  for (const DType dtype : kAllDTypes) {
    const auto count = [&](const Geometry& geometry, auto run) {
      Call call(dtype, geometry);
      const simt::Recording recording;
      EXPECT_TRUE(run(call));
      for (const simt::Launch& launch : recording.launches()) EXPECT_EQ(launch.stream, &place) << launch.kernel;
      return recording.launches().size();
    };
    const auto forward = [&](Call& call) { return call.forward(&place); };
    const auto backward = [&](Call& call) { return call.backward(&place); };
    EXPECT_EQ(count(kOneTile, forward), 1u);
    EXPECT_EQ(count(kOneTile, backward), 1u);
    EXPECT_EQ(backward_workspace(dtype, kOneTile), 0);
    for (const Geometry& geometry : kSeveral) {
      SCOPED_TRACE(describe(dtype, geometry));
      EXPECT_EQ(count(geometry, forward), 1u);
      EXPECT_EQ(count(geometry, backward), 2u);
    }
  }
}

TEST(Launch, NoElementsNoLaunch) {
  for (const DType dtype : kAllDTypes) {
    for (const Geometry& geometry :
         {Geometry{1, 1, 0}, Geometry{0, 5, 1}, Geometry{0, 5, 600}, Geometry{4, 5, 0}, Geometry{4, 0, 9}}) {
      const simt::Recording recording;
      const HardnessArray hardness(DType::kFloat32, {1.0});
      EXPECT_EQ(backward_workspace(dtype, geometry), 0);
      EXPECT_TRUE(cuda::forward(dtype, geometry, {}, nullptr, hardness.argument(), nullptr));
      EXPECT_TRUE(cuda::backward(dtype, geometry, {}, {}, nullptr, hardness.argument(), nullptr, nullptr, nullptr));
      EXPECT_TRUE(recording.launches().empty());
    }
  }
}

TEST(Launch, FailureIsToldAndForgotten) {
  for (const Geometry& geometry : kSeveral) {
    Call call(DType::kFloat32, geometry);
    const simt::Recording recording;
    simt::fail_launch(cudaErrorLaunchFailure);
    const Status forward = call.forward();
    EXPECT_FALSE(forward);
    EXPECT_EQ(forward.code, cudaErrorLaunchFailure);
    EXPECT_NE(forward.message.find("unspecified launch failure"), std::string::npos) << forward.message;
    EXPECT_TRUE(call.forward());
    EXPECT_EQ(recording.launches().size(), 2u);

    // The second kernel is not started on what the first one did not write.
    simt::fail_launch(cudaErrorMemoryAllocation);
    const Status first = call.backward();
    EXPECT_EQ(first.code, cudaErrorMemoryAllocation);
    EXPECT_NE(first.message.find("out of memory"), std::string::npos) << first.message;
    EXPECT_EQ(recording.launches().size(), 3u);
    simt::fail_launch(cudaErrorMemoryAllocation, 1);
    EXPECT_EQ(call.backward().code, cudaErrorMemoryAllocation);
    EXPECT_EQ(recording.launches().size(), 5u);
    EXPECT_TRUE(call.backward());
  }
}

TEST(Launch, UnknownGpuIsNamedWithTheArchitectures) {
  Call call(DType::kBFloat16, kOneTile);
  simt::device() = {2, 7, 5};
  simt::fail_launch(cudaErrorNoKernelImageForDevice);
  const Status status = call.forward();
  simt::device() = {};
  EXPECT_EQ(status.code, cudaErrorNoKernelImageForDevice);
  for (const std::string& word : {std::string("7.5"), architectures()})
    EXPECT_NE(status.message.find(word), std::string::npos) << status.message;
  EXPECT_EQ(architectures(), "80, 90 and PTX 90");
  EXPECT_TRUE(call.forward());
}

// More blocks than a grid may have: an error, not a part of the work.
TEST(Launch, LargestGrid) {
  const HardnessArray hardness(DType::kFloat32, {1.0});
  Array nothing(DType::kFloat64, 2);
  const Status status = cuda::forward(DType::kFloat64, {1, 1, std::int64_t{1} << 52}, {nothing.data()}, nothing.data(),
                                      hardness.argument(), nullptr);
  EXPECT_EQ(status.code, cudaErrorInvalidConfiguration);
}

// A race between threads of a block, or between blocks, would show in one of these orders.
TEST(Launch, AnyOrderOfThreadsGivesTheSameBits) {
  for (const DType dtype : kAllDTypes) {
    std::vector<Geometry> geometries(std::begin(kSeveral), std::end(kSeveral));
    geometries.push_back(kOneTile);
    for (const Geometry& geometry : geometries) {
      SCOPED_TRACE(describe(dtype, geometry));
      Call call(dtype, geometry);
      ASSERT_TRUE(call.forward());
      const Array y = call.dx;
      ASSERT_TRUE(call.backward());
      const Backward expected{call.dx, call.dhardness};
      const auto expect_same = [&](simt::Order order, std::uint64_t seed) {
        // Another input and lambda, so that nothing right is left in shared memory.
        Call other(dtype, geometry);
        other.x = random_normal(dtype, geometry.size(), 2.0, 33);
        other.hardness =
            HardnessArray(DType::kFloat32, std::vector<double>(static_cast<std::size_t>(geometry.channels), 7.0));
        ASSERT_TRUE(other.backward());
        const simt::UseOrder use(order, seed);
        call.workspace.assign(call.workspace.size(), std::nan(""));
        ASSERT_TRUE(call.backward());
        EXPECT_TRUE(same_bits({call.dx, call.dhardness}, expected));
        ASSERT_TRUE(other.backward());
        ASSERT_TRUE(call.forward());
        EXPECT_TRUE(call.dx.same_bits(y));
      };
      expect_same(simt::Order::kAscending, 1);
      expect_same(simt::Order::kDescending, 1);
      for (const std::uint64_t seed : {1, 2, 3}) expect_same(simt::Order::kShuffled, seed);
    }
  }
}

}  // namespace
}  // namespace lambda_gelu::kernels::cuda::testing
