// A record of one run in JSON Lines, as examples/paper/records.py reads it. No torch.
#pragma once

#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

/// Seven digits, which is more than float32 has; null for what is not finite.
std::string to_json(double value);
std::string to_json(std::int64_t value);
std::string to_json(bool value);
std::string to_json(std::string_view value);
inline std::string to_json(const char* value) {
  return to_json(std::string_view(value));
}
inline std::string to_json(int value) {
  return to_json(std::int64_t{value});
}
inline std::string to_json(std::nullopt_t) {
  return "null";
}

/// {"key": value, ...} in the order of add().
class JsonObject {
 public:
  template <typename Value>
  JsonObject& add(std::string_view key, const Value& value);

  std::string text() const { return "{" + members_ + "}"; }

 private:
  std::string members_;
};

inline std::string to_json(const JsonObject& value) {
  return value.text();
}
template <typename Value>
std::string to_json(const std::optional<Value>& value) {
  return value ? to_json(*value) : "null";
}
template <typename Value>
std::string to_json(const std::vector<Value>& values) {
  std::string text;
  for (const auto& value : values) text += (text.empty() ? "" : ",") + to_json(value);
  return "[" + text + "]";
}

template <typename Value>
JsonObject& JsonObject::add(std::string_view key, const Value& value) {
  members_ += (members_.empty() ? "" : ",") + to_json(key) + ":" + to_json(value);
  return *this;
}

/// The file of one run. A line is on disk when write() returns: whatever ends the program leaves whole lines.
class RecordFile {
 public:
  /// Makes the folders. Throws std::runtime_error where the file is there already or cannot be made.
  explicit RecordFile(const std::filesystem::path& path);

  /// Throws std::runtime_error where the line cannot be written.
  void write(const JsonObject& line);

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };

  std::string name_;
  std::unique_ptr<std::FILE, Close> file_;
};
