#include <kernels/cpu/gather.h>

#include <algorithm>
#include <cstring>

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
  std::vector<Dimension> dimensions = merged_dimensions(name, operand, size);
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
