#include "ops/gradient_reuse.h"

#include <ATen/core/grad_mode.h>
#include <c10/core/DispatchKeySet.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <lambda_gelu/ops/gradient_reuse.h>
#include <torch/csrc/autograd/variable.h>

#include <atomic>

namespace lambda_gelu {
namespace {

std::atomic<bool> enabled{true};
std::atomic<int64_t> reuses{0};

// Everything else (functorch wrappers, Python subclasses and modes, tracing, functionalization, lazy conjugation and
// negation, sparse or quantized layouts) gives writing in place a meaning of its own.
bool plain_dispatch(const at::Tensor& tensor) {
  constexpr auto plain = c10::DispatchKeySet(c10::DispatchKeySet::RAW, c10::full_backend_mask) |
                         c10::DispatchKeySet({c10::DispatchKey::Dense, c10::DispatchKey::BackendSelect}) |
                         c10::autograd_dispatch_keyset_with_ADInplaceOrView | c10::autocast_dispatch_keyset;
  const auto keys = tensor.key_set() | c10::impl::tls_local_dispatch_key_set().included_;
  return (keys.raw_repr() & ~plain.raw_repr()) == 0;  // operator- would keep the bits of the backend
}

// Nothing that autograd has recorded or would have to record is attached to it.
bool plain_value(const at::Tensor& tensor) {
  return !tensor.requires_grad() && !tensor._fw_grad(/*level=*/0).defined() && !tensor.is_inference();
}

bool plain_arguments(const at::Tensor& input, const at::Tensor& hardness) {
  return plain_dispatch(input) && plain_dispatch(hardness) && !input._fw_grad(0).defined() &&
         !hardness._fw_grad(0).defined();
}

// A gradient that came through a reshape (as in every Linear over more than two dimensions) is a view. Its base is
// then kept alive by nothing but the view's own record of it.
bool sole_view_of_its_base(const at::Tensor& tensor) {
  const auto* view = torch::autograd::impl::get_view_autograd_meta(tensor);
  return view != nullptr && view->has_bw_view() && (view->shared_view_info() || !view->has_fw_view()) &&
         view->get_backward_view().base_.use_count() == 1;
}

// Memory that is not resizable has been made by someone else (from_blob, NumPy, DLPack, shared memory), who may look
// at it without holding the tensor or its storage.
bool sole_owner(const at::Tensor& tensor) {
  if (tensor.use_count() != 1 || !tensor.has_storage() || !tensor.storage().resizable()) return false;
  const auto owners = tensor.storage().use_count();
  return tensor.is_view() ? owners == 2 && sole_view_of_its_base(tensor) : owners == 1;
}

bool same_layout(const at::Tensor& grad_output, const at::Tensor& input) {
  return grad_output.scalar_type() == input.scalar_type() && grad_output.device() == input.device() &&
         grad_output.sizes() == input.sizes() && grad_output.strides() == input.strides() &&
         input.is_non_overlapping_and_dense();
}

}  // namespace

bool can_reuse(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& hardness) {
  return gradient_reuse_enabled() && !at::GradMode::is_enabled() && plain_dispatch(grad_output) &&
         plain_arguments(input, hardness) && sole_owner(grad_output) && plain_value(grad_output) &&
         same_layout(grad_output, input);
}

void count_reuse() {
  reuses.fetch_add(1, std::memory_order_relaxed);
}

void set_gradient_reuse(bool on) {
  enabled.store(on, std::memory_order_relaxed);
}

bool gradient_reuse_enabled() {
  return enabled.load(std::memory_order_relaxed);
}

int64_t gradient_reuse_count() {
  return reuses.load(std::memory_order_relaxed);
}

}  // namespace lambda_gelu
