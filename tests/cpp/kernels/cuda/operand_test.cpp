// Where operands and results lie in memory changes no bit of dx, y and dlambda.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "../../expect_refusal.h"
#include "cuda_testing.h"

namespace lambda_gelu::kernels::cuda::testing {
namespace {

// Each cut, with ends that are no vector: one tile and several, planes of whole vectors and not, columns and small
// planes in one chunk and several.
constexpr Geometry kGeometries[] = {{1, 1, 1003}, {1, 1, 20011}, {2, 3, 1032}, {3, 5, 403},
                                    {41, 6, 49},  {70, 40, 1},   {130, 33, 1}};

Array forward_into(const Geometry& geometry, const Array& x, const HardnessArray& hardness, std::int64_t x_offset,
                   std::int64_t y_offset) {
  constexpr std::int64_t kGuard = 16;
  const auto bytes = static_cast<std::size_t>(element_size(x.dtype()));
  const std::size_t size = x.bytes().size();
  // Memory of a vector's alignment, moved by elements; what lies around the result must stay.
  std::vector<std::byte> input(size + 64), output(size + 64, std::byte{0x5a});
  const auto moved = [&](std::vector<std::byte>& memory, std::int64_t offset) {
    const auto address = reinterpret_cast<std::uintptr_t>(memory.data()) + kGuard;
    return memory.data() + kGuard + (16 - address % 16) % 16 + static_cast<std::size_t>(offset) * bytes;
  };
  std::memcpy(moved(input, x_offset), x.data(), size);
  std::byte* y = moved(output, y_offset);
  const Status status = cuda::forward(x.dtype(), geometry, {moved(input, x_offset)}, y, hardness.argument(), nullptr);
  EXPECT_TRUE(status) << status.message;
  EXPECT_TRUE(std::all_of(output.data(), y, [](std::byte b) { return b == std::byte{0x5a}; }));
  EXPECT_TRUE(std::all_of(y + size, output.data() + output.size(), [](std::byte b) { return b == std::byte{0x5a}; }));
  Array result(x.dtype(), x.size());
  std::memcpy(result.data(), y, size);
  return result;
}

Backward backward_into(const Geometry& geometry, const Array& g, const Array& x, const HardnessArray& hardness,
                       std::int64_t g_offset, std::int64_t x_offset, std::int64_t dx_offset) {
  const auto bytes = static_cast<std::size_t>(element_size(x.dtype()));
  const std::size_t size = x.bytes().size();
  std::vector<std::byte> gradient(size + 64), input(size + 64), output(size + 64, std::byte{0x5a});
  const auto moved = [&](std::vector<std::byte>& memory, std::int64_t offset) {
    const auto address = reinterpret_cast<std::uintptr_t>(memory.data()) + 16;
    return memory.data() + 16 + (16 - address % 16) % 16 + static_cast<std::size_t>(offset) * bytes;
  };
  std::memcpy(moved(gradient, g_offset), g.data(), size);
  std::memcpy(moved(input, x_offset), x.data(), size);
  std::byte* dx = moved(output, dx_offset);
  Backward result{Array(x.dtype(), x.size()), Array(hardness.values.dtype(), geometry.channels)};
  std::vector<double> workspace(static_cast<std::size_t>(backward_workspace(x.dtype(), geometry)) / sizeof(double));
  const Status status = cuda::backward(x.dtype(), geometry, {moved(gradient, g_offset)}, {moved(input, x_offset)}, dx,
                                       hardness.argument(), result.dhardness.data(), workspace.data(), nullptr);
  EXPECT_TRUE(status) << status.message;
  EXPECT_TRUE(std::all_of(output.data(), dx, [](std::byte b) { return b == std::byte{0x5a}; }));
  EXPECT_TRUE(std::all_of(dx + size, output.data() + output.size(), [](std::byte b) { return b == std::byte{0x5a}; }));
  std::memcpy(result.dx.data(), dx, size);
  return result;
}

class OperandPlace : public ::testing::TestWithParam<DType> {};

TEST_P(OperandPlace, AnyAddress) {
  const DType dtype = GetParam();
  const std::int64_t vector = 16 / element_size(dtype);
  for (const Geometry& geometry : kGeometries) {
    SCOPED_TRACE(describe(dtype, geometry));
    const Array x = random_normal(dtype, geometry.size(), 1.3, 1);
    const Array g = random_normal(dtype, geometry.size(), 1.0, 2);
    const HardnessArray hardness(DType::kFloat32, some_hardness(geometry.channels));
    const Array y = forward_into(geometry, x, hardness, 0, 0);
    const Backward expected = backward_into(geometry, g, x, hardness, 0, 0, 0);
    for (std::int64_t offset = 0; offset < vector; ++offset) {
      EXPECT_TRUE(forward_into(geometry, x, hardness, offset, 0).same_bits(y)) << "input at " << offset;
      EXPECT_TRUE(forward_into(geometry, x, hardness, 0, offset).same_bits(y)) << "y at " << offset;
      EXPECT_TRUE(forward_into(geometry, x, hardness, offset, offset).same_bits(y)) << "both at " << offset;
      for (const int which : {1, 2, 4, 7}) {
        const auto at = [&](int bit) { return (which & bit) != 0 ? offset : 0; };
        EXPECT_TRUE(same_bits(backward_into(geometry, g, x, hardness, at(1), at(2), at(4)), expected))
            << "offset " << offset << " of operands " << which;
      }
    }
  }
}

TEST_P(OperandPlace, ResultMayReplaceAnyDenseOperand) {
  const DType dtype = GetParam();
  for (const Geometry& geometry : kGeometries) {
    SCOPED_TRACE(describe(dtype, geometry));
    const Array x = random_normal(dtype, geometry.size(), 1.3, 3);
    const Array g = random_normal(dtype, geometry.size(), 1.0, 4);
    const HardnessArray hardness(DType::kFloat32, some_hardness(geometry.channels));
    const Backward expected = backward(geometry, g, x, hardness);
    std::vector<double> workspace(static_cast<std::size_t>(backward_workspace(dtype, geometry)) / sizeof(double));
    Array dhardness(DType::kFloat32, geometry.channels);
    for (const bool over_g : {true, false}) {
      Array own_g = g;
      Array own_x = x;
      Array& dx = over_g ? own_g : own_x;
      ASSERT_TRUE(cuda::backward(dtype, geometry, {own_g.data()}, {own_x.data()}, dx.data(), hardness.argument(),
                                 dhardness.data(), workspace.data(), nullptr));
      EXPECT_TRUE(same_bits({dx, dhardness}, expected)) << (over_g ? "over grad_output" : "over input");
    }
    Array y = x;
    ASSERT_TRUE(cuda::forward(dtype, geometry, {y.data()}, y.data(), hardness.argument(), nullptr));
    EXPECT_TRUE(y.same_bits(forward(geometry, x, hardness)));
  }
}

// A view of `memory` elements: dimensions in any order, with steps, flipped, expanded.
struct View {
  std::vector<std::int64_t> sizes, strides;
  std::int64_t first = 0;
  std::int64_t memory = 1;

  View(const Geometry& geometry, Random& random) {
    const auto below = [&](std::uint64_t n) { return static_cast<std::int64_t>(random.bits() % n); };
    // Factors of outer, channels and inner, and dimensions of size 1.
    for (std::int64_t rest : {geometry.outer, geometry.channels, geometry.inner}) {
      for (const std::int64_t factor : {2, 3, 5}) {
        if (rest % factor == 0 && below(2) == 0) {
          sizes.push_back(factor);
          rest /= factor;
        }
      }
      sizes.push_back(rest);
      if (below(4) == 0) sizes.push_back(1);
    }
    std::vector<std::size_t> order(sizes.size());
    std::iota(order.begin(), order.end(), std::size_t{0});
    for (std::size_t n = order.size(); n > 1; --n)
      std::swap(order[n - 1], order[static_cast<std::size_t>(below(below(3) == 0 ? n : 1))]);
    strides.resize(sizes.size());
    for (std::size_t n = order.size(); n-- > 0;) {
      const std::size_t d = order[n];
      const std::int64_t kind = below(8);
      if (kind == 0) continue;  // expanded
      const std::int64_t step = kind == 1 ? memory * 2 : memory;
      strides[d] = kind == 2 ? -step : step;
      if (kind == 2) first += (sizes[d] - 1) * step;
      memory = (sizes[d] - 1) * step + memory;
    }
  }

  Operand of(const Array& a) const {
    const auto* data = static_cast<const std::byte*>(a.data()) + first * element_size(a.dtype());
    return {data, static_cast<int>(sizes.size()), sizes.data(), strides.data()};
  }
  Array dense(const Array& a) const {
    std::int64_t size = 1;
    for (const std::int64_t n : sizes) size *= n;
    const auto bytes = static_cast<std::size_t>(element_size(a.dtype()));
    Array result(a.dtype(), size);
    for (std::int64_t i = 0; i < size; ++i) {
      std::int64_t rest = i;
      std::int64_t at = first;
      for (std::size_t d = sizes.size(); d-- > 0; rest /= sizes[d]) at += rest % sizes[d] * strides[d];
      std::memcpy(static_cast<std::byte*>(result.data()) + static_cast<std::size_t>(i) * bytes,
                  a.bytes().data() + static_cast<std::size_t>(at) * bytes, bytes);
    }
    return result;
  }
};

TEST_P(OperandPlace, AnyStrides) {
  const DType dtype = GetParam();
  Random random(11);
  constexpr Geometry geometries[] = {{1, 1, 2 * 900 + 6}, {1, 1, 60 * 90}, {4, 6, 90}, {3, 10, 67},
                                     {6, 15, 12},         {90, 30, 1},     {31, 10, 2}};
  for (int repeat = 0; repeat < 6; ++repeat) {
    for (const Geometry& geometry : geometries) {
      SCOPED_TRACE(describe(dtype, geometry) + ", repeat " + std::to_string(repeat));
      const View x_view(geometry, random);
      const View g_view(geometry, random);
      // Exactly the memory that the views span.
      const Array x = random_normal(dtype, x_view.memory, 1.3, 5);
      const Array g = random_normal(dtype, g_view.memory, 1.0, 6);
      const Array dense_x = x_view.dense(x);
      const Array dense_g = g_view.dense(g);
      const HardnessArray hardness(DType::kFloat32, some_hardness(geometry.channels));
      EXPECT_TRUE(forward(geometry, dtype, x_view.of(x), hardness).same_bits(forward(geometry, dense_x, hardness)));
      const Backward expected = backward(geometry, dense_g, dense_x, hardness);
      EXPECT_TRUE(same_bits(backward(geometry, dtype, g_view.of(g), x_view.of(x), hardness), expected));
      EXPECT_TRUE(same_bits(backward(geometry, dtype, g_view.of(g), {dense_x.data()}, hardness), expected));
      EXPECT_TRUE(same_bits(backward(geometry, dtype, {dense_g.data()}, x_view.of(x), hardness), expected));
    }
  }
}

// Strides that lead further than 2^31 and 2^32 elements.
TEST_P(OperandPlace, FarStrides) {
  const DType dtype = GetParam();
  const Geometry geometry{1, 1, 6 * 500};
  const Array x = random_normal(dtype, geometry.size(), 1.3, 7);
  const HardnessArray hardness(DType::kFloat32, {1.4});
  const std::int64_t far = (std::int64_t{1} << 30) + 3;
  const std::int64_t row = 500 * element_size(dtype);
  const SparseMemory memory(6 * far * element_size(dtype));
  for (std::int64_t r = 0; r < 6; ++r) {
    std::memcpy(memory.data() + r * far * element_size(dtype), x.bytes().data() + r * row,
                static_cast<std::size_t>(row));
  }
  const std::int64_t sizes[] = {6, 500};
  const std::int64_t strides[] = {far, 1};
  EXPECT_TRUE(
      forward(geometry, dtype, {memory.data(), 2, sizes, strides}, hardness).same_bits(forward(geometry, x, hardness)));
}

// Infinities and NaN anywhere show in their own results and in their channel's sum, and nowhere else.
TEST_P(OperandPlace, WhatIsNotFiniteStaysWhereItIs) {
  const DType dtype = GetParam();
  constexpr double kInf = std::numeric_limits<double>::infinity();
  const double not_finite = std::nan("");
  for (const Geometry& geometry : kGeometries) {
    SCOPED_TRACE(describe(dtype, geometry));
    const Array x = random_normal(dtype, geometry.size(), 1.3, 8);
    const Array g = random_normal(dtype, geometry.size(), 1.0, 9);
    const HardnessArray hardness(DType::kFloat64, some_hardness(geometry.channels));
    const Array y = forward(geometry, x, hardness);
    const Backward expected = backward(geometry, g, x, hardness);
    const std::int64_t n = geometry.size();
    for (const std::int64_t at : {std::int64_t{0}, std::int64_t{1}, n / 3, n / 2 + 1, n - 2, n - 1}) {
      const std::int64_t channel = at / geometry.inner % geometry.channels;
      for (const double value : {not_finite, kInf, -kInf}) {
        for (const bool in_x : {true, false}) {
          Array other_x = x;
          Array other_g = g;
          (in_x ? other_x : other_g).set(at, value);
          const Array other_y = forward(geometry, other_x, hardness);
          const Backward other = backward(geometry, other_g, other_x, hardness);
          for (std::int64_t i = 0; i < n; ++i) {
            if (i == at) continue;
            ASSERT_EQ(other_y[i], y[i]) << i;
            ASSERT_EQ(other.dx[i], expected.dx[i]) << i;
          }
          for (std::int64_t c = 0; c < geometry.channels; ++c) {
            if (c != channel) {
              ASSERT_EQ(other.dhardness[c], expected.dhardness[c]) << "channel " << c;
            }
          }
          const bool finite_sum = in_x && std::isinf(value);
          EXPECT_EQ(std::isfinite(other.dhardness[channel]), finite_sum) << value << " at " << at;
          EXPECT_EQ(std::isnan(other.dx[at]), std::isnan(value)) << value << " at " << at;
          if (in_x) {
            EXPECT_EQ(std::isnan(other_y[at]), std::isnan(value)) << value << " at " << at;
          }
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(DTypes, OperandPlace, ::testing::ValuesIn(kAllDTypes),
                         [](const auto& info) { return name_of(info.param); });

TEST(OperandRefusal, WrongNumberOfElements) {
  const HardnessArray hardness(DType::kFloat32, {1.0});
  float x[6] = {};
  float y[6] = {};
  float gradient = 0;
  const std::int64_t sizes[] = {2, 2};
  const std::int64_t strides[] = {3, 1};
  const Operand four{x, 2, sizes, strides};
  const simt::Recording recording;
  expect_refusal([&] { cuda::forward(DType::kFloat32, {1, 1, 6}, four, y, hardness.argument(), nullptr); }, "input",
                 "4 elements", "expected 6");
  const auto call = [&](const Operand& g, const Operand& input) {
    cuda::backward(DType::kFloat32, {1, 1, 6}, g, input, y, hardness.argument(), &gradient, nullptr, nullptr);
  };
  expect_refusal([&] { call({x}, four); }, "input", "4 elements", "expected 6");
  expect_refusal([&] { call(four, {x}); }, "grad_output", "4 elements", "expected 6");
  EXPECT_TRUE(recording.launches().empty());
}

TEST(OperandRefusal, TooManyDimensions) {
  // 17 dimensions of which no two are one run; with the last two merged there are 16.
  std::vector<std::int64_t> sizes(17, 2);
  std::vector<std::int64_t> strides;
  for (int d = 0; d < 17; ++d) strides.push_back(std::int64_t{1} << d);
  const Geometry geometry{1, 1, std::int64_t{1} << 17};
  const Array x = random_normal(DType::kBFloat16, geometry.size(), 1.0, 10);
  const HardnessArray hardness(DType::kFloat32, {1.0});
  Array y(DType::kBFloat16, geometry.size());
  expect_refusal(
      [&] {
        cuda::forward(DType::kBFloat16, geometry, {x.data(), 17, sizes.data(), strides.data()}, y.data(),
                      hardness.argument(), nullptr);
      },
      "input", "16 dimensions");
  strides[15] = 2;
  strides[16] = 1;
  for (int d = 0; d < 15; ++d) strides[static_cast<std::size_t>(d)] = std::int64_t{4} << d;
  EXPECT_TRUE(cuda::forward(DType::kBFloat16, geometry, {x.data(), 17, sizes.data(), strides.data()}, y.data(),
                            hardness.argument(), nullptr));
  Array dense(DType::kBFloat16, geometry.size());
  for (std::int64_t i = 0; i < geometry.size(); ++i) {
    std::int64_t at = i & 3;
    for (int d = 0; d < 15; ++d) at += (i >> (16 - d) & 1) * strides[static_cast<std::size_t>(d)];
    dense.set(i, x[at]);
  }
  EXPECT_TRUE(y.same_bits(forward(geometry, dense, hardness)));
}

}  // namespace
}  // namespace lambda_gelu::kernels::cuda::testing
