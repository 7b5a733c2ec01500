#pragma once

#include <lambda_gelu/export.h>
#include <torch/nn/module.h>

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lambda_gelu {

/// Sets lambda of every site by depth, the three modes of arXiv 2603.21991. "uniform": lambda = 1 + ln 2 (s = 0)
/// everywhere, whatever low and high are; "increasing": linear from `low` at the first site to `high` at the last;
/// "decreasing": the other way round. A single site gets the first value. Depth is the order of registration.
///
/// low, high: 1 < low <= high, finite (the defaults are ours: the paper only says "close to 1").
/// Returns site names and their lambda in order of depth. Throws c10::ValueError for another mode or range, a model
/// without a site and a frozen site; nothing is changed then.
LAMBDA_GELU_API std::vector<std::pair<std::string, double>> init_hardness_(torch::nn::Module& model,
                                                                           std::string_view mode = "uniform",
                                                                           double low = 1.1, double high = 2.0);

}  // namespace lambda_gelu
