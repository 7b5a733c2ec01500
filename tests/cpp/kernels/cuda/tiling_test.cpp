// Every element of every tensor is worked on once, and counts once in the sum of its channel: sizes around each
// boundary of each cut, and tensors of more than 2^32 elements, of which some blocks are run.
#include <kernels/cuda/launch.h>
#include <kernels/cuda/plan.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <set>

#include "cuda_testing.h"

namespace lambda_gelu::kernels::cuda::testing {
namespace {

class Tiling : public ::testing::TestWithParam<DType> {
 protected:
  // In place, so that what is done twice shows.
  void expect_each_once(const Geometry& geometry) {
    SCOPED_TRACE(describe(GetParam(), geometry));
    expect_each_once(geometry, true);
    expect_each_once(geometry, false);
  }

  // Everything that the kernels are given ends at memory that may not be touched; or it starts there, so that it is
  // aligned, and what lies behind it, which is all NaN, may not be changed and would show in the sums. A partial sum
  // that nobody wrote is NaN.
  void expect_each_once(const Geometry& geometry, bool at_end) {
    const Pattern& p = pattern_;
    const std::int64_t size = geometry.size();
    const auto bytes = static_cast<std::size_t>(size * element_size(GetParam()));
    const auto sums_bytes = static_cast<std::size_t>(geometry.channels) * sizeof(double);
    const auto workspace_bytes = static_cast<std::size_t>(backward_workspace(GetParam(), geometry));
    const HardnessArray hardness = Pattern::hardness_array(geometry.channels);
    constexpr std::size_t kBehind = 64;
    struct Memory {
      Memory(std::size_t size, bool end) : buffer(size + kBehind), bytes(size), at_end(end) {
        std::memset(data(), 0xff, at_end ? bytes : bytes + kBehind);
      }
      char* data() { return at_end ? buffer.ending(bytes) : buffer.starting(); }
      bool is_changed_behind() {
        return !at_end && std::any_of(data() + bytes, data() + bytes + kBehind, [](char c) { return c != '\xff'; });
      }
      GuardedBuffer buffer;
      std::size_t bytes;
      bool at_end;
    };
    Memory x_memory(bytes, at_end), g_memory(bytes, at_end), sums_memory(sums_bytes, at_end),
        lambda_memory(sums_bytes, at_end), workspace_memory(workspace_bytes, at_end);
    char* x = x_memory.data();
    char* g = g_memory.data();
    const auto* sums = reinterpret_cast<double*>(sums_memory.data());
    std::memcpy(lambda_memory.data(), hardness.values.data(), sums_bytes);
    p.fill_x(x, 0, size);
    p.fill_g(g, 0, size);
    const Hardness argument{lambda_memory.data(), DType::kFloat64};
    ASSERT_TRUE(cuda::backward(GetParam(), geometry, {g}, {x}, g, argument, sums_memory.data(), workspace_memory.data(),
                               nullptr));
    EXPECT_EQ(p.wrong_dx(geometry, g, 0, size), 0) << "dx";
    EXPECT_EQ(p.wrong_x(x, 0, size), 0) << "x";
    std::vector<Pattern::Sum> expected(static_cast<std::size_t>(geometry.channels));
    p.add_terms(geometry, 0, size, expected);
    for (std::size_t c = 0; c < expected.size(); ++c) {
      ASSERT_NEAR(sums[c], static_cast<double>(expected[c].value),
                  p.rounding() * static_cast<double>(expected[c].magnitude))
          << "channel " << c;
    }
    ASSERT_TRUE(cuda::forward(GetParam(), geometry, {x}, x, argument, nullptr));
    EXPECT_EQ(p.wrong_y(geometry, x, 0, size), 0) << "y";
    for (Memory* memory : {&x_memory, &g_memory, &sums_memory, &lambda_memory, &workspace_memory})
      EXPECT_FALSE(memory->is_changed_behind());
  }

  std::int64_t vector() const { return vector_elements(GetParam()); }

  const Pattern pattern_{GetParam()};
};

TEST_P(Tiling, OneLambda) {
  const SpanPlan plan = cuda::make_plan(GetParam(), {1, 1, 1}).span;
  std::set<std::int64_t> sizes;
  for (std::int64_t n = 1; n <= 2 * vector() + 1; ++n) sizes.insert(n);
  for (const std::int64_t boundary : {256 * vector(), plan.tile, 2 * plan.tile, 3 * plan.tile + 256 * vector(),
                                      kSecondStageThreads * std::int64_t{8}}) {
    for (const std::int64_t d :
         {-vector(), -vector() + 1, std::int64_t{-1}, std::int64_t{0}, std::int64_t{1}, vector()})
      sizes.insert(boundary + d);
  }
  for (const std::int64_t size : sizes) expect_each_once({1, 1, size});
  expect_each_once({7, 1, 1000});
}

TEST_P(Tiling, Planes) {
  const PlanePlan plan = cuda::make_plan(GetParam(), {1, 2, 64}).planes;
  std::set<std::int64_t> planes;
  for (const std::int64_t n : {64, 65, 66, 71, 127, 128, 196, 225, 1000, 1024}) planes.insert(n);
  for (const std::int64_t d : {-1, 0, 1, 5}) {
    planes.insert(plan.tile + d);
    planes.insert(2 * plan.tile + d);
  }
  for (const std::int64_t plane : planes) {
    expect_each_once({1, 2, plane});
    expect_each_once({3, 3, plane});
  }
  expect_each_once({40, 33, 70});
  expect_each_once({2, 70, 129});
}

// Longer planes than the 32-bit search for the plane of an element can tell apart.
TEST_P(Tiling, LongPlanes) {
  for (const std::int64_t plane : {kLongPlane - 1, kLongPlane, kLongPlane + 1, 2 * kLongPlane + 3})
    expect_each_once({1, 2, plane});
}

TEST_P(Tiling, Columns) {
  for (const std::int64_t inner : {1, 2, 7, 49, 63}) {
    for (const std::int64_t channels : {2, 3, 33}) {
      const std::int64_t row = channels * inner;
      const std::int64_t fold = std::lcm(row, vector()) / row;
      for (const std::int64_t outer : {std::int64_t{1}, std::max<std::int64_t>(fold - 1, 1), fold + 1, 3 * fold - 1}) {
        expect_each_once({outer, channels, inner});
      }
    }
  }
}

// Groups of columns: one, two, and three that are not full.
TEST_P(Tiling, WideColumns) {
  for (const std::int64_t vectors : {32, 33, 65}) {
    for (const std::int64_t rows : {1, 8, 9}) expect_each_once({rows, vectors * vector(), 1});
  }
  expect_each_once({5, 33 * vector() + 1, 1});
  expect_each_once({3, 200, 2});
}

// Chunks of rows: the lanes of a block and the rows of a lane.
TEST_P(Tiling, ManyRows) {
  for (const std::int64_t columns : {vector(), 2 * vector(), 5 * vector(), 32 * vector()}) {
    const ColumnPlan plan = cuda::make_plan(GetParam(), {1, columns, 1}).columns;
    for (const std::int64_t rows : {plan.lanes - 1, plan.lanes, plan.lanes + 1, 3 * plan.lanes - 1, 3 * plan.lanes})
      expect_each_once({std::max<std::int64_t>(rows, 1), columns, 1});
  }
}

// Rows that are no multiple of a vector are put together, but never more of them than there are.
TEST_P(Tiling, FewWideRowsNeedNoMoreThanOneSumPerElement) {
  for (const std::int64_t outer : {1, 2, 3}) {
    const Geometry geometry{outer, 1000001, 1};
    EXPECT_LE(backward_workspace(GetParam(), geometry), (geometry.size() + vector()) * std::int64_t{sizeof(double)});
  }
}

// --- Some blocks of large tensors -----------------------------------------------------------------------------------
struct Elements {
  std::int64_t begin, end;
};

// As plan.h describes the cuts.
std::vector<Elements> elements_of_block(const Plan& plan, std::int64_t size, int vector, std::int64_t block) {
  if (plan.cut != Cut::kColumns) {
    const std::int64_t tile = plan.cut == Cut::kSpan ? plan.span.tile : plan.planes.tile;
    return {{block * tile, std::min(size, (block + 1) * tile)}};
  }
  const ColumnPlan& c = plan.columns;
  const std::int64_t first = block % c.groups * c.group_vectors * vector;
  const std::int64_t last = std::min(c.width, first + std::int64_t{c.group_vectors} * vector);
  std::vector<Elements> rows;
  for (std::int64_t r = block / c.groups * c.chunk_rows(); r < (block / c.groups + 1) * c.chunk_rows(); ++r) {
    const Elements row{std::min(size, r * c.width + first), std::min(size, r * c.width + last)};
    if (row.begin < row.end) rows.push_back(row);
  }
  return rows;
}

class LargeTiling : public Tiling {
 protected:
  // Runs the first and the last blocks and those at the given elements.
  void expect_blocks_in_place(const Geometry& geometry, const std::vector<std::int64_t>& at) {
    SCOPED_TRACE(describe(GetParam(), geometry));
    const Plan plan = cuda::make_plan(GetParam(), geometry);
    const std::int64_t size = geometry.size();
    const auto first_element = [&](std::int64_t block) {
      const auto elements = elements_of_block(plan, size, static_cast<int>(vector()), block);
      return elements.empty() ? size : elements[0].begin;
    };
    std::set<std::int64_t> blocks = {0, 1, 2, 3, plan.blocks() - 2, plan.blocks() - 1};
    for (const std::int64_t element : at) {
      std::int64_t low = 0;
      for (std::int64_t step = std::int64_t{1} << 40; step > 0; step /= 2)
        if (low + step < plan.blocks() && first_element(low + step) <= element) low += step;
      for (const std::int64_t d : {-1, 0, 1}) blocks.insert(low + d);
    }
    std::vector<simt::BlockRange> ranges;
    std::vector<Elements> elements;
    for (const std::int64_t block : blocks) {
      if (block < 0 || block >= plan.blocks()) continue;
      ranges.push_back({block, block + 1});
      for (const Elements& e : elements_of_block(plan, size, static_cast<int>(vector()), block)) elements.push_back(e);
    }

    const Pattern& p = pattern_;
    const SparseMemory x(size * element_size(GetParam()));
    const SparseMemory g(size * element_size(GetParam()));
    const SparseMemory workspace(backward_workspace(GetParam(), geometry));
    std::vector<Pattern::Sum> expected(static_cast<std::size_t>(geometry.channels));
    for (const auto& [begin, end] : elements) {
      p.fill_x(x.data(), begin, end);
      p.fill_g(g.data(), begin, end);
      p.add_terms(geometry, begin, end, expected);
    }
    const HardnessArray hardness = Pattern::hardness_array(geometry.channels);
    std::vector<double> sums(expected.size());
    {
      const simt::UseBlocks some(ranges);  // of the first kernel; the second one adds what they left
      ASSERT_TRUE(cuda::backward(GetParam(), geometry, {g.data()}, {x.data()}, g.data(), hardness.argument(),
                                 sums.data(), workspace.data(), nullptr));
    }
    for (std::size_t c = 0; c < expected.size(); ++c)
      EXPECT_NEAR(sums[c], static_cast<double>(expected[c].value),
                  p.rounding() * static_cast<double>(expected[c].magnitude))
          << "channel " << c;
    const simt::UseBlocks some(ranges);
    ASSERT_TRUE(cuda::forward(GetParam(), geometry, {x.data()}, x.data(), hardness.argument(), nullptr));
    for (const auto& [begin, end] : elements) {
      EXPECT_EQ(p.wrong_dx(geometry, g.data(), begin, end), 0) << "dx from " << begin;
      EXPECT_EQ(p.wrong_y(geometry, x.data(), begin, end), 0) << "y from " << begin;
    }
  }
};

constexpr std::int64_t kTwo31 = std::int64_t{1} << 31;
constexpr std::int64_t kTwo32 = std::int64_t{1} << 32;

TEST_P(LargeTiling, OneLambda) {
  expect_blocks_in_place({1, 1, kTwo32 + 100005}, {kTwo31 - 1, kTwo31, kTwo32 - 1, kTwo32});
  // A tile of one, two, four ... iterations.
  const SpanPlan plan = cuda::make_plan(GetParam(), {1, 1, 1}).span;
  for (const std::int64_t tiles : {4096, 8192, 16384, 32768, 65536, 131072}) {
    for (const std::int64_t d : {-1, 0, 1}) expect_blocks_in_place({1, 1, tiles * plan.tile + d}, {});
  }
}

TEST_P(LargeTiling, Planes) {
  expect_blocks_in_place({2, 3, kTwo32 / 6 + 17}, {kTwo31 - 1, kTwo31, kTwo32 - 1, kTwo32 / 6 + 17});
  expect_blocks_in_place({2, 3, kTwo32 / 6 + 24}, {kTwo31 - 1, kTwo31, kTwo32 - 1, kTwo32 / 6 + 24});
  expect_blocks_in_place({kTwo32 / (64 * 129), 64, 129}, {kTwo31 - 1, kTwo31, kTwo31 + 1});
  // A tile of one, two, four iterations.
  const std::int64_t iteration = kBlockThreads * vector();
  for (const std::int64_t tiles : {4096, 8192, 16384}) {
    for (const std::int64_t d : {-1, 0, 1}) expect_blocks_in_place({tiles * iteration / 256 + d, 2, 128}, {});
  }
}

TEST_P(LargeTiling, Columns) {
  expect_blocks_in_place({kTwo32 / 1024 + 3, 64, 16}, {kTwo31 - 1, kTwo31, kTwo32 - 1, kTwo32});
  expect_blocks_in_place({kTwo32 / (85 * 49) + 1, 85, 49}, {kTwo31 - 1, kTwo31, kTwo32 - 4165});
  // One row of a lane, two, ... 64.
  const ColumnPlan plan = cuda::make_plan(GetParam(), {1, 4, vector()}).columns;
  for (const std::int64_t rows : {2, 4, 8, 64, 128}) {
    for (const std::int64_t d : {-1, 0, 1}) expect_blocks_in_place({2048 * rows * plan.lanes + d, 4, vector()}, {});
  }
}

// float16 is cut as bfloat16 is.
constexpr DType kCutDTypes[] = {DType::kFloat32, DType::kFloat64, DType::kBFloat16};
INSTANTIATE_TEST_SUITE_P(DTypes, Tiling, ::testing::ValuesIn(kCutDTypes),
                         [](const auto& info) { return name_of(info.param); });

INSTANTIATE_TEST_SUITE_P(DTypes, LargeTiling, ::testing::ValuesIn(kCutDTypes),
                         [](const auto& info) { return name_of(info.param); });

// --- Arithmetic -----------------------------------------------------------------------------------------------------
TEST(Index, PlaneOfAnElement) {
  for (std::int64_t plane = kSmallestPlane; plane <= kLongPlane + 1; ++plane) {
    const PlaneTiling tiling = plane_tiling(cuda::make_plan(DType::kBFloat16, {1, 2, plane}).planes);
    const std::uint32_t d = static_cast<std::uint32_t>(tiling.short_plane);
    // A tile has 8,192 elements, and less than a plane of others lies before it.
    for (std::uint32_t n = 0; n < 8192 + d; n += d) {
      EXPECT_EQ(multiply_high(n, tiling.reciprocal), n / d);
      EXPECT_EQ(multiply_high(n + d - 1, tiling.reciprocal), n / d);
    }
  }
}

TEST(Index, RunOfAColumn) {
  for (std::int64_t inner = 2; inner < kSmallestPlane; ++inner) {
    const ColumnTiling tiling = column_tiling(cuda::make_plan(DType::kBFloat16, {1, 2, inner}).columns);
    const auto d = static_cast<std::uint32_t>(inner);
    for (std::uint32_t n = 0; n < 512; ++n) EXPECT_EQ(multiply_high(n, tiling.reciprocal), n / d);
  }
}

TEST(Index, Quotients) {
  Random random(7);
  std::vector<std::int64_t> divisors = {1, 2, 3, 5, 7, 64, 65535, 65536, 65537, kTwo31 - 1, kTwo31, kTwo31 + 1, kTwo32};
  for (int i = 0; i < 2000; ++i)
    divisors.push_back(static_cast<std::int64_t>(random.bits() >> (2 + random.bits() % 60)) + 1);
  constexpr auto most = std::numeric_limits<std::int64_t>::max();
  for (const std::int64_t d : divisors) {
    const Divisor divisor(d);
    std::vector<std::int64_t> numbers = {0, 1, most, most - 1, d - 1, d, most / d * d, most / d * d - 1};
    for (int i = 0; i < 50; ++i) {
      const std::int64_t n = static_cast<std::int64_t>(random.bits() >> (1 + random.bits() % 60));
      numbers.insert(numbers.end(), {n, n / d * d, std::max<std::int64_t>(n / d * d - 1, 0)});
    }
    for (const std::int64_t n : numbers) ASSERT_EQ(divisor.quotient(n), n / d) << n << " / " << d;
  }
}

}  // namespace
}  // namespace lambda_gelu::kernels::cuda::testing
