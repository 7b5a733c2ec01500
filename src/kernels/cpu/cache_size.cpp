#include <kernels/cpu/lambda_gelu.h>
#include <unistd.h>

#include <fstream>
#include <string>

namespace lambda_gelu::kernels {
namespace {

constexpr std::int64_t kTypical = std::int64_t{32} << 20;

/// What the kernel says about the highest level: "32768K". 0 where it says nothing.
std::int64_t from_sysfs() {
  std::int64_t bytes = 0;
  for (int index = 0; index < 8; ++index) {
    std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/size");
    std::int64_t size = 0;
    char unit = 0;
    if (!(file >> size >> unit)) break;
    bytes = size << (unit == 'K' ? 10 : unit == 'M' ? 20 : 0);  // levels come in order
  }
  return bytes;
}

/// Second choice: glibc multiplies by the number of cores on some AMD processors.
std::int64_t from_sysconf() {
#ifdef _SC_LEVEL3_CACHE_SIZE
  return sysconf(_SC_LEVEL3_CACHE_SIZE);
#else
  return 0;
#endif
}

}  // namespace

std::int64_t last_level_cache_bytes() {
  static const std::int64_t bytes = [] {
    if (const std::int64_t size = from_sysfs(); size > 0) return size;
    if (const std::int64_t size = from_sysconf(); size > 0) return size;
    return kTypical;
  }();
  return bytes;
}

}  // namespace lambda_gelu::kernels
