// The same bits for every split of the work, every run and every instruction set of the CPU; for CUDA: cuda/.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <thread>
#include <vector>

#include "kernel_testing.h"

namespace lambda_gelu::kernels::testing {
namespace {

// One lambda, large and small planes, columns; with and without an end shorter than a vector.
constexpr Geometry kGeometries[] = {{1, 1, 50007}, {3, 4, 20001}, {9, 7, 700}, {41, 6, 49},
                                    {150, 33, 3},  {700, 64, 1},  {300, 77, 1}};

std::vector<double> hardness_for(std::int64_t channels) {
  std::vector<double> hardness;
  for (std::int64_t c = 0; c < channels; ++c) hardness.push_back(1.0 + 0.37 * static_cast<double>(c % 11));
  return hardness;
}

struct Problem {
  Geometry geometry;
  Array x, g;
  std::vector<double> hardness;

  Problem(DType dtype, const Geometry& shape)
      : geometry(shape),
        x(random_normal(dtype, shape.size(), 1.5, 1)),
        g(random_normal(dtype, shape.size(), 1.0, 2)),
        hardness(hardness_for(shape.channels)) {}
};

void expect_same(const Gradients& a, const Gradients& b) {
  EXPECT_TRUE(a.dx.same_bits(b.dx));
  EXPECT_EQ(a.dhardness, b.dhardness);
}

TEST(Determinism, GradientsAreTheSameOnEveryTarget) {
  for (const DType dtype : kAllDTypes) {
    for (const Geometry& geometry : kGeometries) {
      const Problem p(dtype, geometry);
      const Gradients best = backward(p.geometry, p.g, p.x, p.hardness);
      for (const std::string& name : supported_targets()) {
        SCOPED_TRACE(std::string(name_of(dtype)) + " " + name + " " + std::to_string(geometry.channels) + " channels");
        const UseTarget target(name);
        expect_same(best, backward(p.geometry, p.g, p.x, p.hardness));
      }
    }
  }
}

// Every bit pattern may come: subnormals, NaN with a payload, infinities.
TEST(Determinism, RandomBitsGiveTheSameDxOnEveryTarget) {
  for (const DType dtype : kAllDTypes) {
    Random random(3);
    Array x(dtype, 20000);
    auto* words = static_cast<std::uint16_t*>(x.data());
    for (std::int64_t i = 0; i < x.size() * element_size(dtype) / 2; ++i)
      words[i] = static_cast<std::uint16_t>(random.bits());
    const Array g = random_normal(dtype, x.size(), 1.0, 4);
    for (const double hardness : {1e-3, 1.0, 1.693, 80.0, 1e6}) {
      const Array best = backward(g, x, hardness).dx;
      for (const std::string& name : supported_targets()) {
        const UseTarget target(name);
        EXPECT_TRUE(backward(g, x, hardness).dx.same_bits(best)) << name_of(dtype) << " " << name << " " << hardness;
      }
    }
  }
}

TEST(Determinism, AnySplitOverThreadsGivesTheSameBits) {
  for (const DType dtype : kAllDTypes) {
    for (const Geometry& geometry : kGeometries) {
      const Problem p(dtype, geometry);
      const Array y = forward(p.geometry, p.x, p.hardness);
      const Gradients whole = backward(p.geometry, p.g, p.x, p.hardness);
      for (const std::int64_t threads : {2, 3, 4}) {
        SCOPED_TRACE(std::string(name_of(dtype)) + " " + std::to_string(threads) + " threads");
        Array split_y(dtype, p.x.size());
        Gradients split{Array(dtype, p.x.size()), std::vector<double>(p.hardness.size())};
        const Forward forward_kernel(dtype, geometry, {.data = p.x.data()}, split_y.data(), p.hardness.data());
        Backward backward_kernel(dtype, geometry, {.data = p.g.data()}, {.data = p.x.data()}, split.dx.data(),
                                 p.hardness.data());
        std::vector<std::thread> workers;
        for (std::int64_t t = 0; t < threads; ++t) {
          workers.emplace_back([&, t] {
            forward_kernel.run(forward_kernel.units() * t / threads, forward_kernel.units() * (t + 1) / threads);
            backward_kernel.run(backward_kernel.units() * t / threads, backward_kernel.units() * (t + 1) / threads);
          });
        }
        for (std::thread& worker : workers) worker.join();
        backward_kernel.sum(split.dhardness.data());
        EXPECT_TRUE(split_y.same_bits(y));
        expect_same(split, whole);
      }
    }
  }
}

TEST(Determinism, UnitsInAnyOrderAndTwiceGiveTheSameBits) {
  const Problem p(DType::kFloat32, {5, 3, 20001});
  const Gradients whole = backward(p.geometry, p.g, p.x, p.hardness);
  Gradients shuffled{Array(DType::kFloat32, p.x.size()), std::vector<double>(p.hardness.size())};
  Backward kernel(DType::kFloat32, p.geometry, {.data = p.g.data()}, {.data = p.x.data()}, shuffled.dx.data(),
                  p.hardness.data());
  std::vector<std::int64_t> order(static_cast<std::size_t>(kernel.units()));
  std::iota(order.begin(), order.end(), 0);
  std::reverse(order.begin(), order.end());
  for (int repeat = 0; repeat < 2; ++repeat) {
    for (const std::int64_t unit : order) kernel.run(unit, unit + 1);
    kernel.sum(shuffled.dhardness.data());
    expect_same(shuffled, whole);
  }
}

// Two threads have something to do from 2^16 elements on.
TEST(Determinism, SmallTensorsCanBeShared) {
  for (const Geometry& geometry : {Geometry{1, 1, 65536}, Geometry{4, 16, 1024}, Geometry{21, 64, 49},
                                   Geometry{1024, 64, 1}, Geometry{85, 768, 1}, Geometry{16, 4096, 1}}) {
    const Problem p(DType::kFloat32, geometry);
    Array y(DType::kFloat32, p.x.size());
    EXPECT_GE(Forward(DType::kFloat32, geometry, {.data = p.x.data()}, y.data(), p.hardness.data()).units(), 2)
        << geometry.outer << " " << geometry.channels << " " << geometry.inner;
  }
}

}  // namespace
}  // namespace lambda_gelu::kernels::testing
