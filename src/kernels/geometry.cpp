#include <kernels/geometry.h>

#include <stdexcept>
#include <string>

namespace lambda_gelu::kernels {

std::vector<Dimension> merged_dimensions(const char* name, const Operand& operand, std::int64_t size) {
  std::vector<Dimension> dimensions;
  if (operand.ndim == 0) return dimensions;
  std::int64_t elements = 1;
  for (int i = 0; i < operand.ndim; ++i) {
    elements *= operand.sizes[i];
    if (operand.sizes[i] == 1) continue;
    const Dimension next{operand.sizes[i], operand.strides[i]};
    if (!dimensions.empty() && dimensions.back().stride == next.size * next.stride) {
      dimensions.back() = {dimensions.back().size * next.size, next.stride};
    } else {
      dimensions.push_back(next);
    }
  }
  if (elements != size) {
    throw std::invalid_argument(std::string(name) + " has " + std::to_string(elements) + " elements, expected " +
                                std::to_string(size));
  }
  return dimensions;
}

}  // namespace lambda_gelu::kernels
