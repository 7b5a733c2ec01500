#pragma once

#include <ATen/core/Tensor.h>
#include <lambda_gelu/export.h>
#include <torch/nn/module.h>

#include <vector>

namespace lambda_gelu {

/// What correct_bias_ changed, and the way back.
class LAMBDA_GELU_API BiasCorrection {
 public:
  BiasCorrection(at::Tensor corrected, at::Tensor before) : corrected_(corrected), before_(before) {}

  /// Puts back what was there, to the last bit.
  void rollback();

 private:
  at::Tensor corrected_, before_;
};

/// Takes what the swap to ReLU adds to each channel in the mean out of the layer that reads the site's output: for a
/// linear layer b -= W E[e], for a convolution with the sum of the kernel (pixels at a padded border get more than they
/// should: padding is 0 before and after the swap), for a batch norm, which must be in evaluation to be exact,
/// running_mean += E[e].
///
/// successor: a torch::nn::Linear, Conv1d to Conv3d (groups too) or BatchNorm1d to BatchNorm3d, the only reader of the
/// site's output; C++ cannot trace a model, so the caller names it. expected_gap: SiteStatistics::expected_gaps, one
/// value for each input channel of the successor; after a flatten every channel's value once for each of its pixels.
///
/// Keep it only where a calibration metric improves, and roll it back otherwise: it is not universal. Throws
/// c10::ValueError for another module, another number of values, values that are not finite, and a successor without a
/// bias or running statistics; nothing is changed then.
LAMBDA_GELU_API BiasCorrection correct_bias_(torch::nn::Module& successor, const std::vector<double>& expected_gap);

}  // namespace lambda_gelu
