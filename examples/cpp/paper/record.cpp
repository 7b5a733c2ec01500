#include "paper/record.h"

#include <fmt/format.h>

#include <cerrno>
#include <cmath>
#include <cstring>
#include <stdexcept>

std::string to_json(double value) {
  return std::isfinite(value) ? fmt::format("{:.7g}", value) : "null";
}

std::string to_json(std::int64_t value) {
  return fmt::format("{}", value);
}

std::string to_json(bool value) {
  return value ? "true" : "false";
}

std::string to_json(std::string_view value) {
  std::string text = "\"";
  for (const char c : value) {
    if (c == '"' || c == '\\') {
      text += {'\\', c};
    } else if (static_cast<unsigned char>(c) < 0x20) {
      text += fmt::format("\\u{:04x}", static_cast<int>(c));
    } else {
      text += c;
    }
  }
  return text + "\"";
}

RecordFile::RecordFile(const std::filesystem::path& path) : name_(path.string()) {
  if (path.has_parent_path()) std::filesystem::create_directories(path.parent_path());
  // "x": two runs never share a record.
  file_.reset(std::fopen(name_.c_str(), "wx"));
  if (file_ != nullptr) return;
  if (errno == EEXIST) {
    throw std::runtime_error(fmt::format("{} is there already: remove it, or name another with --output", name_));
  }
  throw std::runtime_error(fmt::format("cannot write {}: {}", name_, std::strerror(errno)));
}

void RecordFile::write(const JsonObject& line) {
  const std::string text = line.text() + "\n";
  if (std::fwrite(text.data(), 1, text.size(), file_.get()) != text.size() || std::fflush(file_.get()) != 0) {
    throw std::runtime_error(fmt::format("cannot write {}: {}", name_, std::strerror(errno)));
  }
}
