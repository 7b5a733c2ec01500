// The networks of examples/paper/networks.py: under the same seed of torch's generator they have the same weights.
#pragma once

#include <lambda_gelu/nn/lambda_gelu.h>
#include <torch/nn/module.h>

#include <memory>

#include "paper/settings.h"

namespace paper {

class Network : public torch::nn::Module {
 public:
  virtual at::Tensor forward(const at::Tensor& x) = 0;
};

/// The network of a system; its sites have the names that they have in Python. Dropout is left out: no system here has
/// any.
std::shared_ptr<Network> make_network(const System& system, Activation activation);

}  // namespace paper
