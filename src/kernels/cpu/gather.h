// Reading an operand in the order of the output, whatever its strides.
#pragma once

#include <kernels/geometry.h>

#include <cstdint>
#include <memory>
#include <vector>

namespace lambda_gelu::kernels {

class Source {
 public:
  /// Throws std::invalid_argument where `operand` (called `name`) has not `size` elements.
  Source(const char* name, const Operand& operand, std::int64_t size, std::int64_t element_size);

  bool dense() const { return strided_ == nullptr; }
  /// Dense sources only: the element in memory.
  const void* at(std::int64_t first) const { return data_ + first * element_size_; }
  /// `size` elements from `first` on: where they lie, or gathered into `buffer`.
  const void* read(std::int64_t first, std::int64_t size, void* buffer) const {
    if (dense()) return at(first);
    gather(first, size, buffer);
    return buffer;
  }
  void gather(std::int64_t first, std::int64_t size, void* to) const;

 private:
  const char* data_;
  std::int64_t element_size_;
  std::unique_ptr<std::vector<Dimension>> strided_;  // outermost first, merged where memory allows
};

}  // namespace lambda_gelu::kernels
