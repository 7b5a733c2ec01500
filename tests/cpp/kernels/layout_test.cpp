// Wherever lambda and the elements lie, the values are those of the one-lambda kernel on dense memory.
#include <gtest/gtest.h>
#include <kernels/gate.h>

#include <cmath>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "guarded_buffer.h"
#include "kernel_testing.h"

namespace lambda_gelu::kernels::testing {
namespace {

class Layout : public ::testing::TestWithParam<std::string> {};

std::vector<double> hardness_for(std::int64_t channels) {
  std::vector<double> hardness;
  for (std::int64_t c = 0; c < channels; ++c)
    hardness.push_back(1.0 + 0.43 * static_cast<double>(c % 7) + 1e-3 * static_cast<double>(c));
  return hardness;
}

// Indices of the elements of one channel.
std::vector<std::int64_t> elements_of(const Geometry& geometry, std::int64_t channel) {
  std::vector<std::int64_t> indices;
  for (std::int64_t o = 0; o < geometry.outer; ++o) {
    for (std::int64_t i = 0; i < geometry.inner; ++i)
      indices.push_back((o * geometry.channels + channel) * geometry.inner + i);
  }
  return indices;
}

Array take(const Array& a, const std::vector<std::int64_t>& indices) {
  Array r(a.dtype(), static_cast<std::int64_t>(indices.size()));
  const auto bytes = static_cast<std::size_t>(element_size(a.dtype()));
  for (std::size_t i = 0; i < indices.size(); ++i) {
    std::memcpy(static_cast<char*>(r.data()) + i * bytes,
                static_cast<const char*>(a.data()) + static_cast<std::size_t>(indices[i]) * bytes, bytes);
  }
  return r;
}

TEST_P(Layout, ChannelsEqualTheOneLambdaKernel) {
  const UseTarget target(GetParam());
  const Geometry geometries[] = {{3, 5, 1024}, {2, 3, 17001}, {4, 6, 513},                            // large planes
                                 {5, 7, 196},  {40, 6, 49},   {3, 4, 49},   {2, 300, 2}, {50, 9, 7},  // small planes
                                 {70, 3, 1},   {70, 5, 1},    {200, 64, 1}, {7, 770, 1}, {90, 77, 1},
                                 {3, 1100, 1}, {1, 40, 1},    {1300, 2, 1}};
  for (const DType dtype : kAllDTypes) {
    for (const Geometry& geometry : geometries) {
      SCOPED_TRACE(std::string(name_of(dtype)) + " " + std::to_string(geometry.outer) + " x " +
                   std::to_string(geometry.channels) + " x " + std::to_string(geometry.inner));
      const Array x = random_normal(dtype, geometry.size(), 1.2, 21);
      const Array g = random_normal(dtype, geometry.size(), 1.0, 22);
      const std::vector<double> hardness = hardness_for(geometry.channels);
      const Array y = forward(geometry, x, hardness);
      const Gradients gradients = backward(geometry, g, x, hardness);
      for (std::int64_t c = 0; c < geometry.channels; c += 1 + geometry.channels / 40) {
        const std::vector<std::int64_t> indices = elements_of(geometry, c);
        const Array channel_x = take(x, indices);
        const Array channel_g = take(g, indices);
        const double lambda = hardness[static_cast<std::size_t>(c)];
        EXPECT_TRUE(take(y, indices).same_bits(forward(channel_x, lambda))) << "channel " << c;
        EXPECT_TRUE(take(gradients.dx, indices).same_bits(backward(channel_g, channel_x, lambda).dx))
            << "channel " << c;
        long double expected = 0;
        long double magnitude = 0;
        for (std::int64_t i = 0; i < channel_x.size(); ++i) {
          const long double term = channel_g[i] * reference(channel_x[i], lambda).hardness_term;
          expected += term;
          magnitude += std::fabs(term);
        }
        // The 16-bit formula does not correct the three roundings of w^2, z^2 / 2 <= 83 of them in the exponential.
        const double unit = dtype == DType::kFloat64 ? 2e-15 : dtype == DType::kFloat32 ? 5e-7 : 1.5e-5;
        EXPECT_NEAR(gradients.dhardness[static_cast<std::size_t>(c)], static_cast<double>(expected),
                    unit * static_cast<double>(magnitude))
            << "channel " << c;
      }
    }
  }
}

// Row-major strides of `sizes` after the dimensions of memory were permuted.
struct View {
  std::vector<std::int64_t> sizes, strides;
  std::int64_t memory;  // elements
  Operand of(const Array& a) const { return {a.data(), static_cast<int>(sizes.size()), sizes.data(), strides.data()}; }
  // What a dense copy of the view holds.
  Array dense(const Array& a) const {
    std::vector<std::int64_t> indices(
        static_cast<std::size_t>(std::accumulate(sizes.begin(), sizes.end(), std::int64_t{1}, std::multiplies<>())));
    for (std::size_t i = 0; i < indices.size(); ++i) {
      auto rest = static_cast<std::int64_t>(i);
      for (std::size_t d = sizes.size(); d-- > 0;) {
        indices[i] += rest % sizes[d] * strides[d];
        rest /= sizes[d];
      }
    }
    return take(a, indices);
  }
};

TEST_P(Layout, StridedOperandsEqualDenseOnes) {
  const UseTarget target(GetParam());
  const struct {
    Geometry geometry;
    View view;
  } cases[] = {
      {{1, 1, 60 * 90}, {{60, 90}, {1, 60}, 60 * 90}},              // transposed
      {{1, 1, 40 * 70}, {{40, 70}, {140, 2}, 40 * 140}},            // sliced with step 2
      {{1, 1, 30000}, {{3, 100, 100}, {100, 300, 1}, 30000}},       // permuted
      {{1, 1, 7 * 50}, {{7, 50}, {0, 1}, 50}},                      // expanded rows
      {{1, 1, 7 * 50}, {{7, 50}, {1, 0}, 7}},                       // expanded columns
      {{1, 1, 2600}, {{2600}, {0}, 1}},                             // one element
      {{4, 6, 35}, {{4, 6, 35}, {210, 1, 6}, 840}},                 // channels last, small planes
      {{3, 2, 900}, {{3, 2, 900}, {1800, 1, 2}, 5400}},             // channels last, large planes
      {{200, 70, 1}, {{200, 70}, {1, 200}, 14000}},                 // columns, transposed
      {{131, 130, 1}, {{131, 130}, {260, 2}, 131 * 260}},           // columns, sliced
      {{50, 3, 1}, {{50, 3}, {0, 1}, 3}},                           // columns, expanded
      {{2, 3, 4}, {{2, 1, 3, 2, 1, 2}, {12, 77, 4, 2, 5, 1}, 24}},  // dense, but said with strides
  };
  for (const DType dtype : kAllDTypes) {
    int number = 0;
    for (const auto& [geometry, view] : cases) {
      SCOPED_TRACE(std::string(name_of(dtype)) + " case " + std::to_string(number++));
      const Array x = random_normal(dtype, view.memory, 1.2, 31);
      const Array g = random_normal(dtype, view.memory, 1.0, 32);
      const Array dense_x = view.dense(x);
      const Array dense_g = view.dense(g);
      const std::vector<double> hardness = hardness_for(geometry.channels);

      Array y(dtype, geometry.size());
      run_forward(dtype, geometry, view.of(x), y.data(), hardness);
      EXPECT_TRUE(y.same_bits(forward(geometry, dense_x, hardness)));

      const Gradients expected = backward(geometry, dense_g, dense_x, hardness);
      for (const bool x_strided : {false, true}) {
        for (const bool g_strided : {false, true}) {
          Gradients got{Array(dtype, geometry.size()), {}};
          got.dhardness = run_backward(dtype, geometry, g_strided ? view.of(g) : Operand{dense_g.data()},
                                       x_strided ? view.of(x) : Operand{dense_x.data()}, got.dx.data(), hardness);
          EXPECT_TRUE(got.dx.same_bits(expected.dx)) << x_strided << g_strided;
          EXPECT_EQ(got.dhardness, expected.dhardness) << x_strided << g_strided;
        }
      }
    }
  }
}

// 0..200 elements and sizes around the block and piece boundaries, at the end and at the start of readable memory:
// nothing outside is touched, nothing inside is left out, and the values are those of a longer run.
TEST_P(Layout, OddSizesStayInside) {
  const UseTarget target(GetParam());
  std::vector<std::int64_t> sizes(201);
  std::iota(sizes.begin(), sizes.end(), 0);
  for (const std::int64_t n : {kSumBlock, kSumPiece, 2 * kSumPiece}) {
    for (const std::int64_t d : {-33, -1, 0, 1, 17}) sizes.push_back(n + d);
  }
  constexpr double hardness = 1.5;
  for (const DType dtype : kAllDTypes) {
    const auto bytes = static_cast<std::size_t>(element_size(dtype));
    const std::int64_t longest = sizes.back() + 100;
    const Array x = random_normal(dtype, longest, 1.5, 41);
    const Array g = random_normal(dtype, longest, 1.0, 42);
    const Array y = forward(x, hardness);
    const Array dx = backward(g, x, hardness).dx;
    GuardedBuffer guarded_x(static_cast<std::size_t>(longest) * bytes);
    GuardedBuffer guarded_g(static_cast<std::size_t>(longest) * bytes);
    GuardedBuffer guarded_out(static_cast<std::size_t>(longest) * bytes);
    for (const std::int64_t n : sizes) {
      for (const bool at_end : {false, true}) {
        const std::size_t size = static_cast<std::size_t>(n) * bytes;
        char* input = at_end ? guarded_x.ending(size) : guarded_x.starting();
        char* grad = at_end ? guarded_g.ending(size) : guarded_g.starting();
        char* output = at_end ? guarded_out.ending(size) : guarded_out.starting();
        std::memcpy(input, x.data(), size);
        std::memcpy(grad, g.data(), size);
        run_forward(dtype, {1, 1, n}, {.data = input}, output, {hardness});
        ASSERT_EQ(std::memcmp(output, y.data(), size), 0) << name_of(dtype) << " y, " << n << " elements";
        run_backward(dtype, {1, 1, n}, {.data = grad}, {.data = input}, output, {hardness});
        ASSERT_EQ(std::memcmp(output, dx.data(), size), 0) << name_of(dtype) << " dx, " << n << " elements";
      }
    }
  }
}

TEST_P(Layout, OddColumnsStayInside) {
  const UseTarget target(GetParam());
  for (const DType dtype : kAllDTypes) {
    const auto bytes = static_cast<std::size_t>(element_size(dtype));
    for (const std::int64_t rows : {1, 2, 3, 65}) {
      for (const std::int64_t columns : {2, 3, 15, 31, 33, 63, 65, 129}) {
        const Geometry geometry{rows, columns, 1};
        const std::vector<double> hardness = hardness_for(columns);
        const Array x = random_normal(dtype, geometry.size(), 1.5, 51);
        const Array g = random_normal(dtype, geometry.size(), 1.0, 52);
        const Gradients expected = backward(geometry, g, x, hardness);
        const std::size_t size = static_cast<std::size_t>(geometry.size()) * bytes;
        GuardedBuffer guarded_x(size);
        GuardedBuffer guarded_g(size);
        GuardedBuffer guarded_out(size);
        std::memcpy(guarded_x.ending(size), x.data(), size);
        std::memcpy(guarded_g.ending(size), g.data(), size);
        run_backward(dtype, geometry, {.data = guarded_g.ending(size)}, {.data = guarded_x.ending(size)},
                     guarded_out.ending(size), hardness);
        EXPECT_EQ(std::memcmp(guarded_out.ending(size), expected.dx.data(), size), 0)
            << name_of(dtype) << " " << rows << " x " << columns;
        run_forward(dtype, geometry, {.data = guarded_x.ending(size)}, guarded_out.ending(size), hardness);
        EXPECT_EQ(std::memcmp(guarded_out.ending(size), forward(geometry, x, hardness).data(), size), 0)
            << name_of(dtype) << " " << rows << " x " << columns;
      }
    }
  }
}

TEST_P(Layout, ResultMayReplaceAnOperand) {
  const UseTarget target(GetParam());
  for (const DType dtype : kAllDTypes) {
    for (const Geometry& geometry :
         {Geometry{1, 1, 33333}, Geometry{3, 4, 700}, Geometry{40, 6, 49}, Geometry{100, 77, 1}}) {
      const std::vector<double> hardness = hardness_for(geometry.channels);
      const Array x = random_normal(dtype, geometry.size(), 1.2, 61);
      const Array g = random_normal(dtype, geometry.size(), 1.0, 62);
      const Gradients expected = backward(geometry, g, x, hardness);

      Array in_place = g;
      const std::vector<double> dhardness =
          run_backward(dtype, geometry, {.data = in_place.data()}, {.data = x.data()}, in_place.data(), hardness);
      EXPECT_TRUE(in_place.same_bits(expected.dx)) << name_of(dtype);
      EXPECT_EQ(dhardness, expected.dhardness) << name_of(dtype);

      Array y = x;
      run_forward(dtype, geometry, {.data = y.data()}, y.data(), hardness);
      EXPECT_TRUE(y.same_bits(forward(geometry, x, hardness))) << name_of(dtype);
    }
  }
}

// Larger than the last-level cache, so that non-temporal stores are used: aligned, not aligned, and in place.
TEST(LargeOutput, EqualsSmallOnes) {
  const std::int64_t size = last_level_cache_bytes() / 2 + 5 * kSumPiece;  // bfloat16: just beyond the cache
  constexpr double hardness = 1.3;
  const Array pattern_x = random_normal(DType::kBFloat16, kSumPiece, 1.2, 71);
  const Array pattern_g = random_normal(DType::kBFloat16, kSumPiece, 1.0, 72);
  const Array pattern_y = forward(pattern_x, hardness);
  const Gradients pattern = backward(pattern_g, pattern_x, hardness);
  constexpr std::size_t piece = kSumPiece * 2;
  const auto pieces = static_cast<std::size_t>(size / kSumPiece);
  std::vector<char> x(pieces * piece), g(pieces * piece), storage(pieces * piece + 256);
  for (std::size_t p = 0; p < pieces; ++p) {
    std::memcpy(x.data() + p * piece, pattern_x.data(), piece);
    std::memcpy(g.data() + p * piece, pattern_g.data(), piece);
  }
  const Geometry geometry{1, 1, static_cast<std::int64_t>(pieces) * kSumPiece};
  for (const std::size_t misalignment : {0, 6}) {
    char* out = storage.data() + (128 - reinterpret_cast<std::uintptr_t>(storage.data()) % 64) + misalignment;
    const Forward forward_kernel(DType::kBFloat16, geometry, {.data = x.data()}, out, &hardness);
    forward_kernel.run(0, forward_kernel.units());
    for (std::size_t p = 0; p < pieces; ++p) ASSERT_EQ(std::memcmp(out + p * piece, pattern_y.data(), piece), 0) << p;
    double dhardness = 0;
    std::memcpy(out, g.data(), g.size());
    Backward backward_kernel(DType::kBFloat16, geometry, {.data = out}, {.data = x.data()}, out, &hardness);
    backward_kernel.run(0, backward_kernel.units());
    backward_kernel.sum(&dhardness);
    for (std::size_t p = 0; p < pieces; ++p) ASSERT_EQ(std::memcmp(out + p * piece, pattern.dx.data(), piece), 0) << p;
    EXPECT_NEAR(dhardness, static_cast<double>(pieces) * pattern.dhardness[0], 1e-12 * std::fabs(dhardness));
  }
  // Columns of a width that is, and one that is not, a multiple of 64 bytes.
  for (const std::int64_t columns : {64, 4097}) {
    const Geometry by_columns{geometry.size() / columns, columns, 1};
    const std::vector<double> equal(static_cast<std::size_t>(columns), hardness);
    char* out = storage.data() + (128 - reinterpret_cast<std::uintptr_t>(storage.data()) % 64);
    const Forward kernel(DType::kBFloat16, by_columns, {.data = x.data()}, out, equal.data());
    kernel.run(0, kernel.units());
    for (std::size_t p = 0; p + 1 < pieces; ++p)
      ASSERT_EQ(std::memcmp(out + p * piece, pattern_y.data(), piece), 0) << p;
  }
}

TEST(Operand, WrongNumberOfElementsIsRefused) {
  const double hardness = 1;
  float x[6] = {};
  float y[6] = {};
  const std::int64_t sizes[] = {2, 2};
  const std::int64_t strides[] = {3, 1};
  EXPECT_THROW(Forward(DType::kFloat32, {1, 1, 6}, {x, 2, sizes, strides}, y, &hardness), std::invalid_argument);
  EXPECT_THROW(Forward(DType::kFloat32, {1, 0, 6}, {.data = x}, y, &hardness), std::invalid_argument);
}

INSTANTIATE_TEST_SUITE_P(Targets, Layout, ::testing::ValuesIn(all_targets()),
                         [](const auto& info) { return info.param; });

}  // namespace
}  // namespace lambda_gelu::kernels::testing
