// One vector of a thread: loaded, put through the formula, stored.
#pragma once

#include <kernels/cuda/operand.h>
#include <kernels/cuda/storage.h>

#include <cstdint>

namespace lambda_gelu::kernels::cuda {

/// A vector at `at`, of which `left` > 0 elements exist; the others are zero, and so are their terms of the sum.
template <class Storage, class Operand>
LAMBDA_GELU_HD Words load(const Operand& operand, std::int64_t at, std::int64_t left) {
  return operand.part(at, left < Storage::kVector ? static_cast<int>(left) : Storage::kVector);
}

/// Arithmetic on any of these vectors waits for the loads of all: otherwise ptxas puts off a load until the arithmetic
/// on another is done. `nothing` is 0, which the compiler must not know.
template <class... Vectors>
LAMBDA_GELU_HD void wait_for_all(std::uint32_t nothing, Vectors&... vectors) {
  const std::uint32_t zero = (vectors.word[3] | ...) & nothing;
  ((vectors.word[0] |= zero, vectors.word[2] |= zero), ...);  // with word 0 alone, arithmetic on word 2 starts early
}

/// kAligned: `output` lies on 16 bytes.
template <class Storage, bool kAligned>
LAMBDA_GELU_HD void store(typename Storage::Element* output, std::int64_t at, std::int64_t left, const Words& value) {
  auto* to = output + at;
  if (left >= Storage::kVector && (kAligned || on_vector(to))) {
    store_vector(to, value);
  } else {
    store_elements<Storage>(to, value, left < Storage::kVector ? static_cast<int>(left) : Storage::kVector);
  }
}

/// gates(i): the constants of element i.
template <class Storage, class Gates>
LAMBDA_GELU_HD Words forward_vector(const Words& x, const Gates& gates) {
  typename Storage::Compute value[Storage::kVector];
  Storage::unpack(x, value);
#pragma unroll
  for (int i = 0; i < Storage::kVector; ++i) value[i] = Storage::Formula::value(value[i], gates(i));
  return Storage::pack(value);
}

/// add_term(i, g, term): the term of element i goes to its sum.
template <class Storage, class Gates, class Add>
LAMBDA_GELU_HD Words backward_vector(const Words& g, const Words& x, const Gates& gates, const Add& add_term) {
  typename Storage::Compute gradient[Storage::kVector];
  typename Storage::Compute value[Storage::kVector];
  Storage::unpack(g, gradient);
  Storage::unpack(x, value);
#pragma unroll
  for (int i = 0; i < Storage::kVector; ++i) {
    const auto derivative = Storage::Formula::derivative(value[i], gates(i));
    add_term(i, gradient[i], derivative.term);
    value[i] = mul(gradient[i], derivative.value);
  }
  return Storage::pack(value);
}

}  // namespace lambda_gelu::kernels::cuda
