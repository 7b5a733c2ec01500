// The operators on CUDA: tensors in, kernels on the current stream of their device. Nothing here waits for the device,
// and nothing but the kernels is launched. No header of CUDA: device, stream and allocator come from the torch that is
// loaded, so that one binary serves its builds with and without CUDA.
#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/library.h>

#include <tuple>

#include "kernels/cuda/lambda_gelu.h"
#include "ops/checks.h"
#include "ops/layout.h"

namespace lambda_gelu::cuda {
namespace {

// What ATen's own empty_cuda takes its memory from: the caching allocator, or the one that replaces it.
c10::Allocator* allocator() {
  return at::detail::getCUDAHooks().getCUDADeviceAllocator();
}

// With the strides of at::empty_like(tensor), and without the dispatcher where that is possible. On the current device.
at::Tensor uninitialized_like(const at::Tensor& tensor) {
  if (!tensor.is_non_overlapping_and_dense()) return at::empty_like(tensor);
  return at::Tensor(at::detail::empty_strided_generic(tensor.sizes(), tensor.strides(), allocator(),
                                                      c10::DispatchKeySet(c10::DispatchKey::CUDA),
                                                      tensor.scalar_type()));
}

// A cudaStream_t.
void* current_stream(at::Device device) {
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device).native_handle();
}

// Its values are read by the kernels: here they are not known.
kernels::cuda::Hardness kernel_hardness(const at::Tensor& hardness, std::optional<double> temperature) {
  return {.data = hardness.const_data_ptr(),
          .dtype = kernel_dtype(hardness.scalar_type()),
          .stride = hardness.stride(0),
          .temperature = temperature.value_or(0)};
}

// The tensor, or a copy of one whose strides are more than the kernels take: no other operand is ever copied.
at::Tensor readable(const at::Tensor& tensor, const at::Tensor& output, const Dims& order) {
  constexpr auto most = kernels::cuda::kMaxDimensions;
  if (tensor.dim() <= most || StridedOperand(tensor, output, order).operand().ndim <= most) return tensor;
  return at::empty_like(output).copy_(tensor);
}

void check(const kernels::cuda::Status& status) {
  TORCH_CHECK(status, status.message);
}

at::Tensor forward(const at::Tensor& input, const at::Tensor& hardness, int64_t channel_dim,
                   std::optional<double> temperature) {
  check_forward(input, hardness, channel_dim, temperature);
  const c10::DeviceGuard guard(input.device());
  auto output = uninitialized_like(input);
  if (output.numel() == 0) return output;

  const auto order = memory_order(output);
  const auto read_input = readable(input, output, order);
  const StridedOperand x(read_input, output, order);
  check(kernels::cuda::forward(kernel_dtype(input.scalar_type()), make_geometry(output, order, hardness, channel_dim),
                               x.operand(), output.mutable_data_ptr(), kernel_hardness(hardness, temperature),
                               current_stream(input.device())));
  return output;
}

// Writes d input into `grad_input`, which may be grad_output itself, and returns d hardness. Called on their device.
at::Tensor backward_into(const at::Tensor& grad_input, const at::Tensor& grad_output, const at::Tensor& input,
                         const at::Tensor& hardness, int64_t channel_dim, std::optional<double> temperature) {
  if (grad_input.numel() == 0) return at::zeros_like(hardness);

  const auto dtype = kernel_dtype(input.scalar_type());
  const auto order = memory_order(grad_input);
  const auto geometry = make_geometry(grad_input, order, hardness, channel_dim);
  const auto read_input = readable(input, grad_input, order);
  const auto read_grad_output = readable(grad_output, grad_input, order);
  // All memory before anything is written. The workspace is given back when the host is done with it, since the
  // allocator hands it out again only to what runs later on the same stream.
  auto grad_hardness = uninitialized_like(hardness);
  const auto workspace = allocator()->allocate(kernels::cuda::backward_workspace(dtype, geometry));
  // Before the operands are read: it detaches a lazily copied grad_output from its source.
  auto* const dx = grad_input.mutable_data_ptr();
  const StridedOperand g(read_grad_output, grad_input, order);
  const StridedOperand x(read_input, grad_input, order);
  check(kernels::cuda::backward(dtype, geometry, g.operand(), x.operand(), dx, kernel_hardness(hardness, temperature),
                                grad_hardness.mutable_data_ptr(), workspace.get(), current_stream(input.device())));
  return grad_hardness;
}

std::tuple<at::Tensor, at::Tensor> backward(const at::Tensor& grad_output, const at::Tensor& input,
                                            const at::Tensor& hardness, int64_t channel_dim,
                                            std::optional<double> temperature) {
  check_backward(grad_output, input, hardness, channel_dim, temperature);
  const c10::DeviceGuard guard(input.device());
  auto grad_input = uninitialized_like(input);
  auto grad_hardness = backward_into(grad_input, grad_output, input, hardness, channel_dim, temperature);
  return {std::move(grad_input), std::move(grad_hardness)};
}

at::Tensor backward_inplace(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& hardness,
                            int64_t channel_dim, std::optional<double> temperature) {
  check_backward_inplace(grad_output, input, hardness, channel_dim, temperature);
  const c10::DeviceGuard guard(input.device());
  return backward_into(grad_output, grad_output, input, hardness, channel_dim, temperature);
}

}  // namespace

TORCH_LIBRARY_IMPL(lambda_gelu, CUDA, m) {
  m.impl("lambda_gelu", forward);
  m.impl("lambda_gelu_backward", backward);
  m.impl("lambda_gelu_backward_", backward_inplace);
}

}  // namespace lambda_gelu::cuda
