#include "command_line.h"

#include <algorithm>
#include <cmath>

std::optional<std::vector<std::pair<std::string_view, std::string_view>>> read_command_line(
    int argc, const char* const* argv, std::span<const std::string_view> known,
    std::span<const std::string_view> flags) {
  std::vector<std::pair<std::string_view, std::string_view>> options;
  for (int i = 1; i < argc; ++i) {
    std::string_view name = argv[i];
    if (name == "--help" || name == "-h") return std::nullopt;
    if (std::ranges::find(flags, name) != flags.end()) {
      options.emplace_back(name, "");
      continue;
    }
    std::optional<std::string_view> value;
    if (const auto equals = name.find('='); equals != name.npos) {
      value = name.substr(equals + 1);
      name = name.substr(0, equals);
    }
    if (std::ranges::find(known, name) == known.end()) {
      throw std::invalid_argument(fmt::format("unknown option '{}', expected one of {}; see --help", name,
                                              fmt::join(known.begin(), known.end(), ", ")));
    }
    if (!value) {
      if (++i == argc) throw std::invalid_argument(fmt::format("{} expects a value, got none", name));
      value = argv[i];
    }
    options.emplace_back(name, *value);
  }
  return options;
}

int parse_count(std::string_view option, std::string_view text) {
  constexpr std::string_view kExpected = "a whole number of at least 1";
  const int value = parse_number<int>(option, text, kExpected);
  if (value < 1) throw std::invalid_argument(fmt::format("{} expects {}, got {}", option, kExpected, text));
  return value;
}

double parse_positive(std::string_view option, std::string_view text) {
  constexpr std::string_view kExpected = "a positive number";
  const auto value = parse_number<double>(option, text, kExpected);
  if (!std::isfinite(value) || value <= 0) {
    throw std::invalid_argument(fmt::format("{} expects {}, got {}", option, kExpected, text));
  }
  return value;
}
