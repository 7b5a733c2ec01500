#include <kernels/cpu/gather.h>

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>

namespace lambda_gelu::kernels {
namespace {

template <class Element>
void copy_run(const char* from, std::int64_t stride, std::int64_t size, char* to) {
  const auto* in = reinterpret_cast<const Element*>(from);
  auto* out = reinterpret_cast<Element*>(to);
  if (stride == 1) {
    std::memcpy(out, in, static_cast<std::size_t>(size) * sizeof(Element));
  } else if (stride == 0) {
    std::fill_n(out, size, *in);
  } else {
    for (std::int64_t i = 0; i < size; ++i) out[i] = in[i * stride];
  }
}

}  // namespace

Source::Source(const char* name, const Operand& operand, std::int64_t size, std::int64_t element_size)
    : data_(static_cast<const char*>(operand.data)), element_size_(element_size) {
  if (operand.ndim == 0) return;
  std::vector<Dimension> dimensions;
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
    throw std::invalid_argument(std::string(name) + " must have " + std::to_string(size) + " elements, got " +
                                std::to_string(elements));
  }
  const bool contiguous = dimensions.empty() || (dimensions.size() == 1 && dimensions[0].stride == 1);
  if (!contiguous) strided_ = std::make_unique<std::vector<Dimension>>(std::move(dimensions));
}

void Source::gather(std::int64_t first, std::int64_t size, void* to) const {
  const std::vector<Dimension>& dimensions = *strided_;
  const auto copy = element_size_ == 2   ? &copy_run<std::uint16_t>
                    : element_size_ == 4 ? &copy_run<std::uint32_t>
                                         : &copy_run<std::uint64_t>;
  const Dimension inner = dimensions.back();
  char* out = static_cast<char*>(to);
  while (size > 0) {
    std::int64_t rest = first / inner.size;
    const std::int64_t column = first % inner.size;
    std::int64_t offset = column * inner.stride;
    for (std::size_t d = dimensions.size() - 1; d-- > 0;) {
      offset += rest % dimensions[d].size * dimensions[d].stride;
      rest /= dimensions[d].size;
    }
    const std::int64_t run = std::min(inner.size - column, size);
    copy(data_ + offset * element_size_, inner.stride, run, out);
    out += run * element_size_;
    first += run;
    size -= run;
  }
}

}  // namespace lambda_gelu::kernels
