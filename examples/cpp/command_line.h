// Options of the form --name value or --name=value. No torch.
#pragma once

#include <fmt/format.h>

#include <charconv>
#include <optional>
#include <span>
#include <stdexcept>
#include <string_view>
#include <utility>
#include <vector>

/// Names and values in the order given; nothing where --help or -h is among them. Throws std::invalid_argument for a
/// name that is none of `known`, which it lists, and for one without a value. `flags` are names that take none.
std::optional<std::vector<std::pair<std::string_view, std::string_view>>> read_command_line(
    int argc, const char* const* argv, std::span<const std::string_view> known,
    std::span<const std::string_view> flags = {});

/// Throws std::invalid_argument that says what was expected.
template <typename Number>
Number parse_number(std::string_view option, std::string_view text, std::string_view expected) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size()) {
    throw std::invalid_argument(fmt::format("{} expects {}, got '{}'", option, expected, text));
  }
  return value;
}

int parse_count(std::string_view option, std::string_view text);        ///< at least 1
double parse_positive(std::string_view option, std::string_view text);  ///< finite and above 0
