// The command line of train. No torch.
#pragma once

#include <lambda_gelu/math/relu_gap.h>
#include <lambda_gelu/math/schedule.h>

#include <cstdint>
#include <optional>
#include <string>

struct Options {
  std::string digits = "build/digits.csv";
  std::optional<std::string> data_dir;  ///< Fashion-MNIST instead of the digits
  std::uint64_t seed = 0;
  std::optional<int> seeds;  ///< default: see DataSet in train.cpp, as for epochs
  std::optional<int> epochs;
  std::string init = "uniform";
  double target = lambda_gelu::target_from_gate_gap(0.1);
  lambda_gelu::Schedule schedule = lambda_gelu::Schedule::kLinear;
  bool help = false;
};

/// Throws std::invalid_argument that names the option, what was expected and what came.
Options parse_options(int argc, const char* const* argv);

/// What --help prints.
std::string usage();
