// The command line of paper. No torch.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>

#include "paper/settings.h"

namespace paper {

struct Options {
  System system = systems().front();  ///< with the epochs and the learning rate that were asked for
  Arm arm = arm_of("uniform");
  std::uint64_t seed = 0;
  std::optional<int> examples;
  std::filesystem::path data_dir;
  std::filesystem::path output;
  bool show_settings = false;
  bool help = false;
};

/// Throws std::invalid_argument that names the option, what was expected and what came.
Options parse_options(int argc, const char* const* argv);

/// What --help prints.
std::string usage();

}  // namespace paper
