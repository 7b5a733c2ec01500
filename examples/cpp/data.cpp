#include "data.h"

#include <fmt/format.h>
#include <sys/wait.h>

#include <charconv>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <stdexcept>

namespace {

namespace fs = std::filesystem;

constexpr int kDigitPixels = 64, kClasses = 10;

template <typename... Arguments>
[[noreturn]] void fail(fmt::format_string<Arguments...> format, Arguments&&... arguments) {
  throw std::runtime_error(fmt::format(format, std::forward<Arguments>(arguments)...));
}

// "1,2,3" -> {1, 2, 3}
std::vector<int> parse_line(const std::string& line, const fs::path& path, std::size_t number) {
  std::vector<int> values;
  const char* end = line.data() + line.size();
  for (const char* at = line.data(); at < end;) {
    int value = 0;
    const auto [next, error] = std::from_chars(at, end, value);
    if (error != std::errc() || (next != end && *next != ',' && *next != '\r')) {
      fail("{}, line {}: expected whole numbers with commas between them, got '{}'", path.string(), number, line);
    }
    values.push_back(value);
    at = next == end ? end : next + 1;
  }
  return values;
}

void check_digit(const std::vector<int>& values, const fs::path& path, std::size_t number) {
  if (values.size() != kDigitPixels + 1) {
    fail("{}, line {}: expected {} pixels and a label, got {} numbers", path.string(), number, kDigitPixels,
         values.size());
  }
  for (int i = 0; i < kDigitPixels; ++i) {
    if (values[i] < 0 || values[i] > 16) {
      fail("{}, line {}: expected pixels from 0 to 16, got {}", path.string(), number, values[i]);
    }
  }
  if (values.back() < 0 || values.back() >= kClasses) {
    fail("{}, line {}: expected a label from 0 to {}, got {}", path.string(), number, kClasses - 1, values.back());
  }
}

std::string shell_quoted(const std::string& text) {
  std::string quoted = "'";
  for (const char c : text) quoted += c == '\'' ? std::string("'\\''") : std::string(1, c);
  return quoted + "'";
}

// gzip and xz are on every Unix machine; linking their libraries would need headers.
std::string unpack(const char* program, const fs::path& path) {
  FILE* pipe = popen(fmt::format("{} -dc -- {}", program, shell_quoted(fs::absolute(path).string())).c_str(), "r");
  if (pipe == nullptr) fail("cannot start {} to unpack {}", program, path.string());
  std::string content;
  std::vector<char> buffer(std::size_t{1} << 16);
  while (const std::size_t count = std::fread(buffer.data(), 1, buffer.size(), pipe)) {
    content.append(buffer.data(), count);
  }
  const int status = pclose(pipe);
  if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    fail("{} could not unpack {}", program, path.string());
  }
  return content;
}

std::string read_file(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail("cannot read {}", path.string());
  return {std::istreambuf_iterator<char>(file), {}};
}

std::uint32_t big_endian(const std::string& bytes, std::size_t offset) {
  std::uint32_t value = 0;
  for (std::size_t i = 0; i < 4; ++i) value = value << 8 | static_cast<unsigned char>(bytes[offset + i]);
  return value;
}

// `path`, or what `program` has packed it into.
std::string read_packed_or_plain(const fs::path& path, const char* program, const std::string& suffix) {
  const fs::path packed = path.string() + suffix;
  if (fs::exists(packed)) return unpack(program, packed);
  if (fs::exists(path)) return read_file(path);
  throw MissingData(fmt::format("expected {} or {}, found neither", packed.string(), path.string()));
}

struct Idx {
  std::vector<std::uint32_t> sizes;
  std::string bytes;
};

// The IDX format: 0, 0, element type (8: unsigned byte), number of dimensions, their sizes, the elements.
Idx read_idx_file(const fs::path& folder, const std::string& name, std::size_t dimensions) {
  const fs::path path = folder / name;
  const std::string content = read_packed_or_plain(path, "gzip", ".gz");

  const std::size_t header = 4 * (1 + dimensions);
  const auto magic = static_cast<std::uint32_t>(0x800 + dimensions);
  if (content.size() < header)
    fail("{}: expected an IDX header of {} bytes, got {}", path.string(), header, content.size());
  if (big_endian(content, 0) != magic) {
    fail("{}: expected the IDX magic number {:#x} (bytes in {} dimensions), got {:#x}", path.string(), magic,
         dimensions, big_endian(content, 0));
  }
  Idx result;
  std::uint64_t count = 1;
  for (std::size_t i = 1; i <= dimensions; ++i) {
    result.sizes.push_back(big_endian(content, 4 * i));
    count *= result.sizes.back();
  }
  result.bytes = content.substr(header);
  if (result.bytes.size() != count) {
    fail("{}: expected {} elements behind the header, got {}", path.string(), count, result.bytes.size());
  }
  return result;
}

}  // namespace

Images read_digits(const fs::path& csv) {
  std::ifstream file(csv);
  if (!file)
    fail("cannot read {}: write it with 'python examples/python/digits.py --export-digits {}'", csv.string(),
         csv.string());
  Images images{kDigitPixels, {}, {}};
  std::string line;
  for (std::size_t number = 1; std::getline(file, line); ++number) {
    if (line.empty() || line == "\r") continue;
    const auto values = parse_line(line, csv, number);
    check_digit(values, csv, number);
    images.pixels.insert(images.pixels.end(), values.begin(), values.end() - 1);
    images.labels.push_back(values.back());
  }
  if (images.labels.empty()) fail("{}: expected one image per line, the file is empty", csv.string());
  return images;
}

Images read_idx(const fs::path& folder, const std::string& part) {
  const Idx pixels = read_idx_file(folder, part + "-images-idx3-ubyte", 3);
  const Idx labels = read_idx_file(folder, part + "-labels-idx1-ubyte", 1);
  if (pixels.sizes[0] != labels.sizes[0]) {
    fail("{}: expected as many labels as images, got {} and {}", folder.string(), labels.sizes[0], pixels.sizes[0]);
  }
  Images images{std::int64_t{pixels.sizes[1]} * pixels.sizes[2], {}, {}};
  images.pixels.reserve(pixels.bytes.size());
  for (const char byte : pixels.bytes) images.pixels.push_back(static_cast<unsigned char>(byte));
  for (const char byte : labels.bytes) {
    const auto label = static_cast<unsigned char>(byte);
    if (label >= kClasses) fail("{}: expected labels from 0 to {}, got {}", folder.string(), kClasses - 1, int{label});
    images.labels.push_back(label);
  }
  return images;
}

std::string read_text(const fs::path& path, std::size_t size) {
  std::string text = read_packed_or_plain(path, "xz", ".xz");
  if (text.size() != size) fail("{}: expected {} bytes, got {}", path.string(), size, text.size());
  return text;
}
