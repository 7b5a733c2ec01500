// What the operators ask of a device: its stream, its memory, and nothing else.
#include <ATen/autocast_mode.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/StreamGuard.h>
#include <lambda_gelu/nn/lambda_gelu.h>
#include <lambda_gelu/ops/functional.h>
#include <simt.h>

#include <optional>
#include <vector>

#include "cuda_testing.h"
#include "kernels/cuda/lambda_gelu.h"
#include "ops/operators.h"

namespace lambda_gelu::testing {
namespace {

class CudaDevice : public CudaTest {
 protected:
  // Tensors of several tiles, so that backward needs a workspace and a second kernel.
  void make(int index) {
    x = normal({40, 3, 61}, at::kFloat).to(cuda(index));
    g = normal({40, 3, 61}, at::kFloat).to(cuda(index));
    hardness = (at::rand({3}) + 1).to(cuda(index));
  }
  at::Tensor x, g, hardness;
};

TEST_F(CudaDevice, KernelsRunOnTheCurrentStreamOfTheTensorsDevice) {
  for (const int index : {0, 1}) {
    make(index);
    for (const int id : {0, 3}) {
      const auto stream = fake_cuda::stream(index, id);
      const c10::StreamGuard side_stream(stream);
      const c10::DeviceGuard elsewhere(cuda(1 - index));
      const simt::Recording recording;
      lambda_gelu(x, hardness);
      lambda_gelu_backward(g, x, hardness);
      lambda_gelu_backward_(g, x, hardness, 1, std::nullopt);
      EXPECT_EQ(recording.launches().size(), 1 + 2 + 2);
      for (const auto& launch : recording.launches()) {
        EXPECT_EQ(launch.stream, fake_cuda::native_handle(stream)) << launch.kernel;
        EXPECT_EQ(launch.device, index) << launch.kernel;
      }
      EXPECT_EQ(fake_cuda::current_device(), 1 - index);
    }
  }
}

TEST_F(CudaDevice, MemoryComesFromTheAllocatorOnTheSameStreamAndIsGivenBack) {
  make(1);
  const auto stream = fake_cuda::stream(1, 2);
  const c10::StreamGuard side_stream(stream);
  const c10::DeviceGuard elsewhere(cuda(0));
  const auto before = fake_cuda::live_bytes();
  const auto bytes = static_cast<std::int64_t>(x.nbytes());
  {
    const fake_cuda::Recording recording;
    const auto y = lambda_gelu(x, hardness);
    ASSERT_EQ(recording.allocations.size(), 1);
    EXPECT_EQ(recording.allocations[0].bytes, bytes);
    EXPECT_EQ(fake_cuda::live_bytes() - before, bytes);
  }
  {
    const fake_cuda::Recording recording;
    const auto gradients = lambda_gelu_backward(g, x, hardness);
    ASSERT_EQ(recording.allocations.size(), 3);  // dx, d hardness, workspace
    for (const auto& allocation : recording.allocations) {
      EXPECT_EQ(allocation.device, 1);
      EXPECT_EQ(allocation.stream, fake_cuda::native_handle(stream));
    }
    EXPECT_EQ(fake_cuda::live_bytes() - before, bytes + static_cast<std::int64_t>(hardness.nbytes()));
  }
  EXPECT_EQ(fake_cuda::live_bytes(), before);
}

TEST_F(CudaDevice, TheWorkspaceIsSmall) {
  const auto workspace = [](const at::Tensor& x, const at::Tensor& hardness) {
    const auto grad = at::ones_like(x);
    const fake_cuda::Recording recording;
    lambda_gelu_backward_(grad, x, hardness, 1, std::nullopt);
    std::int64_t bytes = 0;
    for (const auto& allocation : recording.allocations) bytes += allocation.bytes;
    return bytes - static_cast<std::int64_t>(hardness.nbytes());
  };
  EXPECT_EQ(workspace(at::zeros({200}, cuda()), at::ones({1}, cuda())), 0);
  EXPECT_LT(workspace(at::zeros({1'000'000}, cuda()), at::ones({1}, cuda())), 1 << 16);

  struct Part {
    kernels::DType dtype;
    kernels::Geometry geometry;
    int of_tensor;  // the workspace is at most this part of it
  };
  constexpr kernels::DType kFloat = kernels::DType::kFloat32, kHalf = kernels::DType::kBFloat16;
  for (const auto& [dtype, geometry, of_tensor] : {
           Part{kFloat, {65536, 768, 1}, 64},
           Part{kHalf, {65536, 768, 1}, 16},
           Part{kFloat, {4096, 256, 49}, 64},
           Part{kHalf, {4096, 256, 49}, 16},
           Part{kFloat, {256, 64, 3136}, 800},
           Part{kHalf, {256, 64, 3136}, 500},
       }) {
    const auto tensor = geometry.size() * element_size(dtype);
    const auto bytes = kernels::cuda::backward_workspace(dtype, geometry);
    EXPECT_GT(bytes, 0);
    EXPECT_LE(bytes, tensor / of_tensor) << geometry.channels << " channels, inner " << geometry.inner;
  }
}

// No copy of a strided operand, no conversion, no fill: the kernels are all that is launched.
TEST_F(CudaDevice, NothingButTheKernelsIsLaunchedAndNothingWaits) {
  for (const auto& layout : layouts()) {
    SCOPED_TRACE(layout.name);
    const auto input = to_cuda(layout.make(at::kBFloat16));
    const auto grad = to_cuda(at::ones({1}, at::kBFloat16)).expand_as(input);
    for (const int64_t count : {1, 6}) {
      const auto raw = to_cuda(at::zeros({2 * count}, at::kDouble)).slice(0, 0, 2 * count, 2);
      const fake_cuda::Recording recording;
      const simt::Recording kernels;
      const auto y = lambda_gelu(input, raw, 1, 0.1);
      EXPECT_EQ(kernels.launches().size(), 1);
      lambda_gelu_backward(grad, input, raw, 1, 0.1);
      EXPECT_LE(kernels.launches().size(), 3);
      EXPECT_EQ(recording.operators, std::vector<std::string>());
      EXPECT_EQ(recording.waits, 0);
    }
  }
}

TEST_F(CudaDevice, AHardnessGivenAsANumberCostsOneFill) {
  make(0);
  const fake_cuda::Recording recording;
  lambda_gelu(x, 2.0);
  EXPECT_EQ(recording.operators, std::vector<std::string>{"aten::fill_"});
  EXPECT_EQ(recording.waits, 0);
}

TEST_F(CudaDevice, TheModuleMovesThereAndItsForwardWaitsForNothing) {
  LambdaGELU module(LambdaGELUOptions(3).init_hardness(1.5));
  const auto input = normal({5, 3}, at::kFloat);
  const auto expected = module->forward(input);
  module->to(cuda(1));
  const auto on_device = input.to(cuda(1));
  for (const bool frozen : {false, true}) {
    if (frozen) module->freeze_hardness();
    const fake_cuda::Recording recording;
    const auto y = module->forward(on_device);
    EXPECT_EQ(recording.waits, 0);
    EXPECT_EQ(y.device(), cuda(1));
    expect_close(y.cpu(), expected, 2e-6, 2e-7);
  }
  expect_close(module->hardness().cpu(), at::full({3}, 1.5), 1e-6, 0);
}

TEST_F(CudaDevice, AutocastLeavesDtypesAlone) {
  make(0);
  at::autocast::set_autocast_enabled(at::kCUDA, true);
  at::autocast::set_autocast_dtype(at::kCUDA, at::kBFloat16);
  EXPECT_EQ(lambda_gelu(x, hardness).scalar_type(), at::kFloat);
  EXPECT_EQ(lambda_gelu(x.to(at::kBFloat16), hardness).scalar_type(), at::kBFloat16);
  at::autocast::set_autocast_enabled(at::kCUDA, false);
}

}  // namespace
}  // namespace lambda_gelu::testing
