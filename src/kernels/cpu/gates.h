// The constants of every lambda of one call.
#pragma once

#include <kernels/gate.h>
#include <kernels/geometry.h>

#include <cstddef>
#include <memory>

namespace lambda_gelu::kernels {

class Gates {
 public:
  Gates(DType dtype, Formula formula, const double* hardness, std::int64_t channels);

  /// Gate<T> of a channel, T = double for float64 and float otherwise.
  const void* at(std::int64_t channel) const { return data() + channel * gate_size_; }
  template <class T>
  const Gate<T>* of() const {
    return reinterpret_cast<const Gate<T>*>(data());
  }
  /// See unscaled_sum_to_gradient.
  double to_gradient(std::int64_t channel, double unscaled_sum) const;

 private:
  const std::byte* data() const { return many_ ? many_.get() : one_; }

  bool is_double_;
  std::int64_t gate_size_;
  alignas(Gate<double>) std::byte one_[sizeof(Gate<double>)];  // one lambda: no allocation
  std::unique_ptr<std::byte[]> many_;
};

}  // namespace lambda_gelu::kernels
