#include "paper/options.h"

#include <fmt/format.h>

#include <array>
#include <cstdlib>

#include "command_line.h"

namespace paper {
namespace {

constexpr std::array<std::string_view, 8> kKnown = {"--system", "--arm",      "--seed",     "--epochs",
                                                    "--lr",     "--examples", "--data-dir", "--output"};

constexpr std::array<std::string_view, 1> kFlags = {"--show-settings"};

template <typename Item>
std::string names_of(std::span<const Item> items) {
  std::string names;
  for (const auto& item : items) names += fmt::format("{}{}", names.empty() ? "" : ", ", item.name);
  return names;
}

std::filesystem::path default_data_dir() {
  const char* variable = std::getenv("LAMBDA_GELU_DATA");
  return variable != nullptr && *variable != '\0' ? variable : "data";
}

}  // namespace

Options parse_options(int argc, const char* const* argv) {
  Options options;
  const auto given = read_command_line(argc, argv, kKnown, kFlags);
  if (!given) {
    options.help = true;
    return options;
  }
  options.data_dir = default_data_dir();
  std::optional<int> epochs;
  std::optional<double> lr;
  for (const auto& [name, value] : *given) {
    if (name == "--system") {
      options.system = system_of(value);
    } else if (name == "--arm") {
      options.arm = arm_of(value);
    } else if (name == "--seed") {
      options.seed = parse_number<std::uint64_t>(name, value, "a whole number of at least 0");
    } else if (name == "--epochs") {
      epochs = parse_count(name, value);
    } else if (name == "--lr") {
      lr = parse_positive(name, value);
    } else if (name == "--examples") {
      options.examples = parse_count(name, value);
    } else if (name == "--data-dir") {
      options.data_dir = value;
    } else if (name == "--output") {
      options.output = value;
    } else if (name == "--show-settings") {
      options.show_settings = true;
    }
  }
  options.system.epochs = epochs.value_or(options.system.epochs);
  options.system.lr = lr.value_or(options.system.lr);
  if (options.output.empty()) {
    options.output = fmt::format("build/paper-cpp/{}/{}-{}.jsonl", options.system.name, options.arm.name, options.seed);
  }
  return options;
}

std::string usage() {
  return fmt::format(
      R"(Trains one system of examples/paper in C++, with the settings and the random numbers of Python's, and writes
the same record: JSON Lines that "python -m examples.paper.run" and its report read.

usage: paper [options]
  --system NAME    {} (default {})
  --arm NAME       {} (default uniform)
  --seed N         (default 0)
  --epochs N       (default: the system's)
  --lr RATE        learning rate (default: the system's)
  --examples N     only so many of each part of the data, to see whether it runs
  --data-dir DIR   folder with fashion-mnist/ and wikitext-2/ (default: LAMBDA_GELU_DATA, else data)
  --output FILE    the record (default build/paper-cpp/SYSTEM/ARM-SEED.jsonl)
  --show-settings  writes the settings as JSON instead, without any data
  --help           this text
)",
      names_of(systems()), systems().front().name, names_of(arms()));
}

}  // namespace paper
