#pragma once

#include <lambda_gelu/nn/sites.h>

#include <vector>

namespace lambda_gelu {

/// find_sites with the substituted ones, and possibly empty.
std::vector<Site> find_modules(torch::nn::Module& model);

}  // namespace lambda_gelu
