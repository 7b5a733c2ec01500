// f = x Phi(z), z = lambda x, and its derivatives in differentiable ATen operations: for devices without kernels, and
// for the second order and the tangents of all devices.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <cstdint>
#include <optional>

namespace lambda_gelu {

/// Elementwise terms of input's shape, in the compute type: float32, or float64 if input or hardness is.
///
/// Every power of x is taken of x clamped to where phi(z) has not yet underflowed. Otherwise x^3 phi(z) is inf * 0 =
/// NaN for large x, and masking that term only moves the NaN to the next order of derivative. NaN passes the clamp.
class Formulas {
 public:
  /// temperature: `hardness` holds s and lambda = 1 + softplus(s / temperature). Arguments have been checked.
  Formulas(const at::Tensor& input, const at::Tensor& hardness, int64_t channel_dim, std::optional<double> temperature);

  /// f = max(x, 0) - |x| Phi(-|z|): without cancellation in either tail.
  at::Tensor value() const;
  at::Tensor dx() const;        ///< df/dx = Phi + z phi
  at::Tensor dlambda() const;   ///< df/dlambda = x^2 phi
  at::Tensor dxx() const;       ///< lambda phi (2 - z^2)
  at::Tensor dxlambda() const;  ///< x phi (2 - z^2)
  at::Tensor dlambda2() const;  ///< -x^3 z phi

  /// To the compute type.
  at::Tensor cast(const at::Tensor& tensor) const { return tensor.to(dtype_); }
  /// One value for each lambda -> a tensor in the compute type that broadcasts over input.
  at::Tensor spread(const at::Tensor& per_hardness) const;
  /// Elementwise -> the sum over the elements that share one lambda, in hardness's shape.
  at::Tensor sum(const at::Tensor& elementwise) const;
  /// t d lambda / d s; t itself without a temperature.
  at::Tensor chain(const at::Tensor& t) const;
  /// t d^2 lambda / d s^2; undefined, that is 0, without a temperature.
  at::Tensor chain_second(const at::Tensor& t) const;

 private:
  at::Tensor gate() const;

  at::Tensor hardness_;
  std::optional<double> temperature_;
  at::ScalarType dtype_;
  c10::SmallVector<c10::SymInt, 6> shape_;  // of the hardness, broadcastable to input
  at::Tensor x_;
  at::Tensor clamped_;
  at::Tensor lambda_;
  at::Tensor z_;
  at::Tensor phi_;
};

}  // namespace lambda_gelu
