#include <kernels/cuda/operand.h>

#include <stdexcept>
#include <string>

namespace lambda_gelu::kernels::cuda {

Strides make_strides(const char* name, const Operand& operand, std::int64_t size) {
  Strides merged;
  merged.ndim = 1;
  merged.sizes[0] = Divisor(size);
  merged.strides[0] = 1;
  if (operand.ndim == 0) return merged;

  std::int64_t elements = 1;
  merged.ndim = 0;
  for (int i = 0; i < operand.ndim; ++i) {
    elements *= operand.sizes[i];
    if (operand.sizes[i] == 1) continue;
    const int last = merged.ndim - 1;
    if (last >= 0 && merged.strides[last] == operand.sizes[i] * operand.strides[i]) {
      merged.sizes[last] = Divisor(merged.sizes[last].divisor * operand.sizes[i]);
      merged.strides[last] = operand.strides[i];
      continue;
    }
    if (merged.ndim == kMaxDimensions) {
      throw std::invalid_argument(std::string(name) + " has more than " + std::to_string(kMaxDimensions) +
                                  " dimensions that are not one run of memory; make it contiguous");
    }
    merged.sizes[merged.ndim] = Divisor(operand.sizes[i]);
    merged.strides[merged.ndim] = operand.strides[i];
    ++merged.ndim;
  }
  if (elements != size) {
    throw std::invalid_argument(std::string(name) + " has " + std::to_string(elements) + " elements, expected " +
                                std::to_string(size));
  }
  if (merged.ndim == 0) {  // one element
    merged.ndim = 1;
    merged.sizes[0] = Divisor(1);
    merged.strides[0] = 1;
  }
  return merged;
}

}  // namespace lambda_gelu::kernels::cuda
