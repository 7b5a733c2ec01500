#pragma once

#include <lambda_gelu/export.h>
#include <lambda_gelu/nn/lambda_gelu.h>

#include <memory>
#include <string>
#include <vector>

namespace lambda_gelu {

/// An activation's place in a model.
struct Site {
  std::string name;                        ///< as in named_modules(); empty for the model itself
  std::vector<std::string> also_at;        ///< further names of the same module
  std::shared_ptr<LambdaGELUImpl> module;  ///< keeps it alive
};

/// The LambdaGELU modules of a model, in the order of registration, without those that are substituted by ReLU. A
/// module that is registered at several places is one site. A model that is itself a LambdaGELU and not owned by a
/// shared_ptr must outlive the result. Throws c10::ValueError where there is none.
LAMBDA_GELU_API std::vector<Site> find_sites(torch::nn::Module& model);

}  // namespace lambda_gelu
