#include "options.h"

#include <fmt/format.h>

#include <array>
#include <stdexcept>
#include <string_view>

#include "command_line.h"

namespace {

std::string parse_init(std::string_view text) {
  if (text != "uniform" && text != "increasing" && text != "decreasing") {
    throw std::invalid_argument(fmt::format("--init expects uniform, increasing or decreasing, got '{}'", text));
  }
  return std::string(text);
}

lambda_gelu::Schedule parse_schedule(std::string_view text) {
  try {
    return lambda_gelu::schedule_from_name(text);
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument(fmt::format("--{}", error.what()));
  }
}

void set_option(Options& options, std::string_view name, std::string_view value) {
  if (name == "--digits") {
    options.digits = value;
  } else if (name == "--data-dir") {
    options.data_dir = value;
  } else if (name == "--seed") {
    options.seed = parse_number<std::uint64_t>(name, value, "a whole number of at least 0");
  } else if (name == "--seeds") {
    options.seeds = parse_count(name, value);
  } else if (name == "--epochs") {
    options.epochs = parse_count(name, value);
  } else if (name == "--init") {
    options.init = parse_init(value);
  } else if (name == "--target") {
    options.target = parse_positive(name, value);
  } else if (name == "--schedule") {
    options.schedule = parse_schedule(value);
  }
}

constexpr std::array<std::string_view, 8> kKnown = {"--digits", "--data-dir", "--seed",   "--seeds",
                                                    "--epochs", "--init",     "--target", "--schedule"};

}  // namespace

Options parse_options(int argc, const char* const* argv) {
  Options options;
  const auto given = read_command_line(argc, argv, kKnown);
  if (!given) {
    options.help = true;
    return options;
  }
  bool has_digits = false;
  for (const auto& [name, value] : *given) {
    set_option(options, name, value);
    has_digits = has_digits || name == "--digits";
  }
  if (has_digits && options.data_dir) {
    throw std::invalid_argument("expected one of --digits and --data-dir, got both");
  }
  return options;
}

std::string usage() {
  const Options defaults;
  return fmt::format(
      R"(Trains GELU, lambda-GELU and ReLU networks, hardens lambda, swaps to ReLU and shows what that costs:
Table II of the lambda-GELU paper (arXiv 2603.21991) in small, in C++.

usage: train [options]
  --digits FILE    scikit-learn's digits as CSV (default {}); written by
                   examples/python/digits.py --export-digits FILE
  --data-dir DIR   Fashion-MNIST instead: the folder with its IDX files (.gz), as published
  --seed N         first seed (default {})
  --seeds N        number of seeds (default 5; Fashion-MNIST 3)
  --epochs N       epochs of every run (default 60; Fashion-MNIST 15)
  --init MODE      lambda over depth at the start: uniform, increasing, decreasing (default {})
  --target LAMBDA  lambda to reach (default {:.4g}: gate gap 0.1)
  --schedule NAME  how lambda rises: linear, geometric, harmonic, cosine (default {})
  --help           this text
)",
      defaults.digits, defaults.seed, defaults.init, defaults.target, lambda_gelu::schedule_name(defaults.schedule));
}
