// CUDA tensors in a build without CUDA kernels: right, and said once.
#include <c10/util/Exception.h>
#include <lambda_gelu/ops/functional.h>
#include <torch/csrc/autograd/autograd.h>

#include <string>
#include <vector>

#include "cuda_testing.h"
#include "ops/operators.h"

namespace lambda_gelu::testing {
namespace {

struct Warnings final : c10::WarningHandler {
  void process(const c10::Warning& warning) override { messages.push_back(warning.msg()); }
  std::vector<std::string> messages;
};

TEST(WithoutKernels, RunsOnAtenOperationsAndSaysOnceHowToGetKernels) {
  Warnings warnings;
  const c10::WarningUtils::WarningHandlerGuard guard(&warnings);
  const auto x = normal({4, 6, 5}, at::kFloat);
  const auto g = normal({4, 6, 5}, at::kFloat);
  const auto raw = at::rand({6});
  for (int i = 0; i < 2; ++i) {
    const auto y = lambda_gelu(x.to(cuda()), raw.to(cuda()), 1, 0.8);
    EXPECT_EQ(y.device(), cuda());
    expect_close(y.cpu(), lambda_gelu(x, raw, 1, 0.8), 2e-6, 1e-6);
    const auto [dx, ds] = lambda_gelu_backward(g.to(cuda()), x.to(cuda()), raw.to(cuda()), 1, 0.8);
    const auto [expected_dx, expected_ds] = lambda_gelu_backward(g, x, raw, 1, 0.8);
    expect_close(dx.cpu(), expected_dx, 2e-6, 4e-6);
    expect_close(ds.cpu(), expected_ds, 1e-5, 1e-5);
    const auto grad = g.to(cuda());
    lambda_gelu_backward_(grad, x.to(cuda()), raw.to(cuda()), 1, 0.8);
    EXPECT_TRUE(at::equal(grad, dx));
  }
  ASSERT_EQ(warnings.messages.size(), 1);
  EXPECT_NE(warnings.messages[0].find("-config-settings=cmake.define.LAMBDA_GELU_CUDA=ON"), std::string::npos);
}

}  // namespace
}  // namespace lambda_gelu::testing
