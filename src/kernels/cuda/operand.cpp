#include <kernels/cuda/operand.h>

#include <stdexcept>
#include <string>
#include <vector>

namespace lambda_gelu::kernels::cuda {

Strides make_strides(const char* name, const Operand& operand, std::int64_t size) {
  std::vector<Dimension> dimensions = merged_dimensions(name, operand, size);
  if (dimensions.empty()) dimensions.push_back({size, 1});
  if (dimensions.size() > kMaxDimensions) {
    throw std::invalid_argument(std::string(name) + " has more than " + std::to_string(kMaxDimensions) +
                                " dimensions that are not one run of memory; make it contiguous");
  }
  Strides strides;
  for (const Dimension& dimension : dimensions) {
    strides.sizes[strides.ndim] = Divisor(dimension.size);
    strides.strides[strides.ndim] = dimension.stride;
    ++strides.ndim;
  }
  return strides;
}

}  // namespace lambda_gelu::kernels::cuda
