#include "cuda_testing.h"

#include <sys/mman.h>

#include <cmath>
#include <cstring>
#include <system_error>

namespace lambda_gelu::kernels::cuda::testing {
namespace {

std::int64_t channel_of(const Geometry& geometry, std::int64_t element) {
  return element / geometry.inner % geometry.channels;
}

}  // namespace

std::string describe(DType dtype, const Geometry& geometry) {
  return std::string(name_of(dtype)) + " " + std::to_string(geometry.outer) + " x " +
         std::to_string(geometry.channels) + " x " + std::to_string(geometry.inner);
}

std::vector<double> some_hardness(std::int64_t channels) {
  std::vector<double> hardness;
  for (std::int64_t c = 0; c < channels; ++c) hardness.push_back(1.0 + 2.0 / static_cast<double>(1 + c % 31));
  return hardness;
}

HardnessArray::HardnessArray(DType dtype, const std::vector<double>& hardness, std::int64_t step, double tau)
    : values(dtype, (static_cast<std::int64_t>(hardness.size()) - 1) * step + 1), stride(step), temperature(tau) {
  for (std::int64_t i = 0; i < values.size(); ++i) values.set(i, std::nan(""));
  for (std::size_t c = 0; c < hardness.size(); ++c) values.set(static_cast<std::int64_t>(c) * step, hardness[c]);
}

Array forward(const Geometry& geometry, DType dtype, const Operand& input, const HardnessArray& hardness) {
  Array y(dtype, geometry.size());
  const Status status = cuda::forward(dtype, geometry, input, y.data(), hardness.argument(), nullptr);
  EXPECT_TRUE(status) << status.message;
  return y;
}

Backward backward(const Geometry& geometry, DType dtype, const Operand& grad_output, const Operand& input,
                  const HardnessArray& hardness) {
  Backward result{Array(dtype, geometry.size()), Array(hardness.values.dtype(), geometry.channels)};
  std::vector<double> workspace(static_cast<std::size_t>(backward_workspace(dtype, geometry)) / sizeof(double),
                                std::nan(""));
  const Status status = cuda::backward(dtype, geometry, grad_output, input, result.dx.data(), hardness.argument(),
                                       result.dhardness.data(), workspace.data(), nullptr);
  EXPECT_TRUE(status) << status.message;
  return result;
}

// --- Pattern --------------------------------------------------------------------------------------------------------
double Pattern::hardness(std::int64_t channel) {
  return 1.0 + 0.31 * static_cast<double>(channel % kHardnesses);
}

HardnessArray Pattern::hardness_array(std::int64_t channels) {
  std::vector<double> values;
  for (std::int64_t c = 0; c < channels; ++c) values.push_back(hardness(c));
  return HardnessArray(DType::kFloat64, values);
}

Pattern::Pattern(DType dtype)
    : dtype_(dtype), x_(random_normal(dtype, kLength, 1.2, 101)), g_(random_normal(dtype, kLength, 1.0, 102)) {
  // Nothing that a second time would not change, and no term that a sum would not show.
  for (std::int64_t i = 0; i < kLength; ++i) {
    if (std::fabs(x_[i]) < 0.1) x_.set(i, 0.7);
    if (std::fabs(g_[i]) < 0.1) g_.set(i, -0.6);
  }
  const Geometry all{1, 1, kLength};
  for (std::int64_t k = 0; k < kHardnesses; ++k) {
    const HardnessArray one(DType::kFloat64, {hardness(k)});
    y_.push_back(forward(all, x_, one));
    dx_.push_back(backward(all, g_, x_, one).dx);
    // A channel of one element has its term for a sum.
    const HardnessArray each(DType::kFloat64, {hardness(k)}, 0);
    terms_.push_back(backward({1, kLength, 1}, g_, x_, each).dhardness.values());
  }
}

void Pattern::fill(const Array& values, void* tensor, std::int64_t begin, std::int64_t end) const {
  const auto bytes = static_cast<std::size_t>(element_size(dtype_));
  auto* to = static_cast<std::byte*>(tensor);
  for (std::int64_t i = begin; i < end; ++i) {
    std::memcpy(to + static_cast<std::size_t>(i) * bytes,
                values.bytes().data() + static_cast<std::size_t>(i % kLength) * bytes, bytes);
  }
}

std::int64_t Pattern::wrong(const Geometry& geometry, const std::vector<Array>& expected, const void* tensor,
                            std::int64_t begin, std::int64_t end) const {
  const auto bytes = static_cast<std::size_t>(element_size(dtype_));
  const auto* found = static_cast<const std::byte*>(tensor);
  std::int64_t count = 0;
  for (std::int64_t i = begin; i < end; ++i) {
    const Array& values = expected[static_cast<std::size_t>(channel_of(geometry, i) % kHardnesses)];
    count += std::memcmp(found + static_cast<std::size_t>(i) * bytes,
                         values.bytes().data() + static_cast<std::size_t>(i % kLength) * bytes, bytes) != 0;
  }
  return count;
}

std::int64_t Pattern::wrong_x(const void* tensor, std::int64_t begin, std::int64_t end) const {
  return wrong({1, 1, 1}, {x_}, tensor, begin, end);
}

std::int64_t Pattern::wrong_y(const Geometry& geometry, const void* tensor, std::int64_t begin,
                              std::int64_t end) const {
  return wrong(geometry, y_, tensor, begin, end);
}

std::int64_t Pattern::wrong_dx(const Geometry& geometry, const void* tensor, std::int64_t begin,
                               std::int64_t end) const {
  return wrong(geometry, dx_, tensor, begin, end);
}

void Pattern::add_terms(const Geometry& geometry, std::int64_t begin, std::int64_t end, std::vector<Sum>& sums) const {
  for (std::int64_t i = begin; i < end; ++i) {
    const std::int64_t channel = channel_of(geometry, i);
    const double term = terms_[static_cast<std::size_t>(channel % kHardnesses)][static_cast<std::size_t>(i % kLength)];
    sums[static_cast<std::size_t>(channel)].value += term;
    sums[static_cast<std::size_t>(channel)].magnitude += std::fabs(term);
  }
}

// --- SparseMemory ---------------------------------------------------------------------------------------------------
SparseMemory::SparseMemory(std::int64_t bytes) : bytes_(static_cast<std::size_t>(bytes)) {
  void* memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap");
  data_ = static_cast<char*>(memory);
}

SparseMemory::~SparseMemory() {
  munmap(data_, bytes_);
}

}  // namespace lambda_gelu::kernels::cuda::testing
