#include "options.h"

#include <fmt/format.h>

#include <charconv>
#include <cmath>
#include <stdexcept>
#include <string_view>

namespace {

template <typename Number>
Number parse_number(std::string_view option, std::string_view text, std::string_view expected) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    throw std::invalid_argument(fmt::format("{} expects {}, got '{}'", option, expected, text));
  }
  return value;
}

int parse_count(std::string_view option, std::string_view text) {
  const int value = parse_number<int>(option, text, "a whole number of at least 1");
  if (value < 1)
    throw std::invalid_argument(fmt::format("{} expects a whole number of at least 1, got {}", option, text));
  return value;
}

double parse_target(std::string_view text) {
  const auto value = parse_number<double>("--target", text, "a positive number");
  if (!std::isfinite(value) || value <= 0) {
    throw std::invalid_argument(fmt::format("--target expects a positive number, got {}", text));
  }
  return value;
}

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
    options.target = parse_target(value);
  } else if (name == "--schedule") {
    options.schedule = parse_schedule(value);
  }
}

bool is_known(std::string_view name) {
  for (const auto known :
       {"--digits", "--data-dir", "--seed", "--seeds", "--epochs", "--init", "--target", "--schedule"}) {
    if (name == known) return true;
  }
  return false;
}

}  // namespace

Options parse_options(int argc, const char* const* argv) {
  Options options;
  bool has_digits = false;
  for (int i = 1; i < argc; ++i) {
    std::string_view name = argv[i];
    if (name == "--help" || name == "-h") {
      options.help = true;
      return options;
    }
    std::optional<std::string_view> value;
    if (const auto equals = name.find('='); equals != name.npos) {
      value = name.substr(equals + 1);
      name = name.substr(0, equals);
    }
    if (!is_known(name)) throw std::invalid_argument(fmt::format("unknown option '{}', see --help", name));
    if (!value) {
      if (++i == argc) throw std::invalid_argument(fmt::format("{} expects a value, got none", name));
      value = argv[i];
    }
    set_option(options, name, *value);
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
