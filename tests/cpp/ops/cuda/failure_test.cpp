// What goes wrong on a device: said in words, and nothing is written where memory or kernels are missing.
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/util/Exception.h>
#include <lambda_gelu/ops/functional.h>
#include <simt.h>
#include <torch/csrc/autograd/autograd.h>

#include <optional>

#include "../../expect_refusal.h"
#include "cuda_testing.h"
#include "ops/operators.h"

namespace lambda_gelu::testing {
namespace {

class CudaFailure : public CudaTest {
 protected:
  void SetUp() override {
    CudaTest::SetUp();
    x = normal({40, 3, 61}, at::kFloat).to(cuda());
    g = normal({40, 3, 61}, at::kFloat).to(cuda());
    hardness = (at::rand({3}) + 1).to(cuda());
  }
  void TearDown() override { simt::device() = {}; }

  void expect_that_it_works_again() {
    const auto [dx, dh] = lambda_gelu_backward(g, x, hardness);
    const auto [cpu_dx, cpu_dh] = lambda_gelu_backward(g.cpu(), x.cpu(), hardness.cpu());
    expect_close(dx.cpu(), cpu_dx, 2e-6, 2e-6);
    expect_close(dh.cpu(), cpu_dh, 1e-5, 1e-4);
  }
  at::Tensor x, g, hardness;
};

TEST_F(CudaFailure, TensorsOnDifferentDevices) {
  const auto cpu = at::kCPU;
  expect_refusal<c10::Error>([&] { lambda_gelu(x, hardness.to(cpu)); },
                             "hardness must be on input's device cuda:0, got cpu");
  expect_refusal<c10::Error>([&] { lambda_gelu(x, hardness.to(cuda(1))); },
                             "hardness must be on input's device cuda:0, got cuda:1");
  expect_refusal<c10::Error>([&] { lambda_gelu(x.to(cpu), hardness); },
                             "hardness must be on input's device cpu, got cuda:0");
  expect_refusal<c10::Error>([&] { lambda_gelu_backward(g.to(cpu), x, hardness); },
                             "grad_output must be on input's device cuda:0, got cpu");
  expect_refusal<c10::Error>([&] { lambda_gelu_backward(g.to(cuda(1)), x, hardness); },
                             "grad_output must be on input's device cuda:0, got cuda:1");
  expect_refusal<c10::Error>([&] { lambda_gelu_backward(g, x.to(cpu), hardness.to(cpu)); },
                             "grad_output must be on input's device cpu, got cuda:0");
  expect_refusal<c10::Error>([&] { lambda_gelu_backward_(g, x.to(cuda(1)), hardness.to(cuda(1)), 1, std::nullopt); },
                             "grad_output must be on input's device cuda:1, got cuda:0");
}

TEST_F(CudaFailure, AGpuThatTheBuildHasNoKernelsFor) {
  simt::device().major = 7;
  simt::device().minor = 5;
  simt::fail_launch(cudaErrorNoKernelImageForDevice);
  expect_refusal<c10::Error>([&] { lambda_gelu(x, hardness); }, "architectures 80, 90 and PTX 90",
                             "compute capability 7.5");
  simt::fail_launch(cudaErrorNoKernelImageForDevice);
  expect_refusal<c10::Error>([&] { lambda_gelu_backward(g, x, hardness); }, "architectures 80, 90 and PTX 90",
                             "compute capability 7.5");
  expect_that_it_works_again();
}

TEST_F(CudaFailure, AFailedLaunchIsReportedAndLeavesNoMemoryBehind) {
  const auto before = fake_cuda::live_bytes();
  for (const int skip : {0, 1}) {  // the first and the second kernel of backward
    simt::fail_launch(cudaErrorLaunchFailure, skip);
    const simt::Recording recording;
    expect_refusal<c10::Error>([&] { lambda_gelu_backward(g, x, hardness); },
                               cudaGetErrorString(cudaErrorLaunchFailure));
    EXPECT_EQ(recording.launches().size(), skip + 1);
    EXPECT_EQ(fake_cuda::live_bytes(), before);
  }
  expect_that_it_works_again();
}

TEST_F(CudaFailure, OutOfMemoryInForward) {
  const simt::Recording recording;
  const auto before = fake_cuda::live_bytes();
  fake_cuda::fail_allocation();
  expect_refusal<c10::OutOfMemoryError>([&] { lambda_gelu(x, hardness); }, "CUDA out of memory");
  EXPECT_EQ(fake_cuda::live_bytes(), before);
  EXPECT_TRUE(recording.launches().empty());
}

TEST_F(CudaFailure, OutOfMemoryInBackwardChangesNothing) {
  const auto before = fake_cuda::live_bytes();
  const auto g_before = g.cpu();
  const auto x_before = x.cpu();
  for (const int skip : {0, 1, 2}) {
    SCOPED_TRACE(skip);
    const simt::Recording recording;
    fake_cuda::fail_allocation(skip);
    expect_refusal<c10::OutOfMemoryError>([&] { lambda_gelu_backward(g, x, hardness); }, "CUDA out of memory");
    if (skip < 2) {
      fake_cuda::fail_allocation(skip);
      expect_refusal<c10::OutOfMemoryError>([&] { lambda_gelu_backward_(g, x, hardness, 1, std::nullopt); },
                                            "CUDA out of memory");
    }
    EXPECT_TRUE(recording.launches().empty());
    EXPECT_EQ(fake_cuda::live_bytes(), before);
  }
  EXPECT_TRUE(at::equal(g.cpu(), g_before));
  EXPECT_TRUE(at::equal(x.cpu(), x_before));
  expect_that_it_works_again();
}

TEST_F(CudaFailure, OutOfMemoryInTheBackwardOfAGraphCanBeRetried) {
  x.requires_grad_();
  hardness.requires_grad_();
  const auto loss = lambda_gelu(x, hardness).pow(2).sum();
  const auto expected = torch::autograd::grad({loss}, {x, hardness}, {}, /*retain_graph=*/true);
  // One after the other until none is left to fail: whichever it is, the gradients of the next attempt are right.
  int failures = 0;
  for (bool failed = true; failed; ++failures) {
    ASSERT_LT(failures, 100);
    fake_cuda::fail_allocation(failures);
    failed = false;
    try {
      torch::autograd::grad({loss}, {x, hardness}, {}, true);
    } catch (const c10::OutOfMemoryError&) {
      failed = true;
    }
    const auto again = failed ? torch::autograd::grad({loss}, {x, hardness}, {}, true) : expected;
    EXPECT_TRUE(at::equal(again[0], expected[0]));
    EXPECT_TRUE(at::equal(again[1], expected[1]));
  }
  EXPECT_GE(failures, 3);
  fake_cuda::allow_allocations();
}

}  // namespace
}  // namespace lambda_gelu::testing
