// Histograms and moments of the CPU kernel against a value-by-value count.
#include <gtest/gtest.h>
#include <kernels/cpu/observe.h>
#include <math/histogram_bins.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <thread>
#include <vector>

#include "guarded_buffer.h"
#include "kernel_testing.h"

namespace lambda_gelu::kernels::testing {
namespace {

using histogram::kBins;

// Pieces of one channel, planes and columns of several; with and without ends shorter than a vector.
constexpr Geometry kGeometries[] = {{1, 1, 16384}, {1, 1, 50007}, {1, 1, 5},   {3, 4, 20001}, {9, 7, 33},
                                    {41, 6, 2},    {70, 64, 1},   {300, 1, 1}, {150, 77, 1},  {65, 130, 1}};

struct Counted {
  std::vector<std::int64_t> counts;
  std::vector<double> moments;

  explicit Counted(std::int64_t channels)
      : counts(static_cast<std::size_t>(channels * kBins)), moments(static_cast<std::size_t>(channels * 4)) {}
  bool operator==(const Counted&) const = default;
};

Counted observe(const Geometry& geometry, const Array& x) {
  Counted result(geometry.channels);
  Observation kernel(x.dtype(), geometry, x.data(), result.counts.data(), result.moments.data());
  kernel.run(0, kernel.units());
  kernel.finish();
  return result;
}

// One value after the other, in long double.
struct Expected {
  std::vector<std::int64_t> counts;
  std::vector<long double> moments, magnitudes;
};
Expected count_one_by_one(const Geometry& geometry, const Array& x) {
  const auto channels = static_cast<std::size_t>(geometry.channels);
  Expected result{std::vector<std::int64_t>(channels * kBins), std::vector<long double>(channels * 4),
                  std::vector<long double>(channels * 4)};
  for (std::int64_t i = 0; i < geometry.size(); ++i) {
    const auto channel = static_cast<std::size_t>(i / geometry.inner % geometry.channels);
    const double value = x[i];
    const int bin = histogram::bin_of(value);
    if (bin == histogram::kNonfinite) {
      result.moments[channel * 4 + 3] += 1;
      continue;
    }
    ++result.counts[channel * kBins + static_cast<std::size_t>(bin)];
    const long double v = value, positive = value > 0 ? v : 0;
    const long double terms[] = {v, v * v, positive * positive};
    for (std::size_t m = 0; m < 3; ++m) {
      result.moments[channel * 4 + m] += terms[m];
      result.magnitudes[channel * 4 + m] += std::abs(terms[m]);
    }
  }
  return result;
}

// Normal numbers with everything special among them.
Array mixed(DType dtype, std::int64_t size) {
  Array x = random_normal(dtype, size, 1.5, 1);
  const double inf = std::numeric_limits<double>::infinity(), nan = std::numeric_limits<double>::quiet_NaN();
  const double special[] = {0.0, -0.0, nan, inf, -inf, 6e-8, -6e-8, 300.0, -6e4, 1.25, -1.25};
  std::int64_t i = 3;
  for (const double value : special) {
    if (i < size) x.set(i, value);
    i += 7;
  }
  return x;
}

TEST(Observation, CountsAndAddsWhatOneByOneDoesOnEveryTarget) {
  for (const DType dtype : kAllDTypes) {
    for (const Geometry& geometry : kGeometries) {
      const Array x = mixed(dtype, geometry.size());
      const Expected expected = count_one_by_one(geometry, x);
      for (const std::string& name : supported_targets()) {
        SCOPED_TRACE(std::string(name_of(dtype)) + " " + name + " " + std::to_string(geometry.channels) + " x " +
                     std::to_string(geometry.inner));
        const UseTarget target(name);
        const Counted result = observe(geometry, x);
        ASSERT_EQ(result.counts, expected.counts);
        for (std::size_t i = 0; i < result.moments.size(); ++i) {
          ASSERT_NEAR(result.moments[i], static_cast<double>(expected.moments[i]),
                      1e-12 * static_cast<double>(expected.magnitudes[i]))
              << i;
        }
      }
    }
  }
}

TEST(Observation, EveryNumberOf16BitsIsCountedRight) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    const Array x = Array::all_of(dtype);
    const Geometry one{1, 1, x.size()}, columns{x.size() / 64, 64, 1};
    for (const std::string& name : supported_targets()) {
      const UseTarget target(name);
      EXPECT_EQ(observe(one, x).counts, count_one_by_one(one, x).counts) << name_of(dtype) << " " << name;
      EXPECT_EQ(observe(columns, x).counts, count_one_by_one(columns, x).counts) << name_of(dtype) << " " << name;
    }
  }
}

TEST(Observation, RandomBitsAreCountedRight) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat64}) {
    Random random(3);
    Array x(dtype, 20000);
    auto* words = static_cast<std::uint16_t*>(x.data());
    for (std::int64_t i = 0; i < x.size() * element_size(dtype) / 2; ++i) {
      words[i] = static_cast<std::uint16_t>(random.bits());
    }
    const Geometry one{1, 1, x.size()};
    for (const std::string& name : supported_targets()) {
      const UseTarget target(name);
      EXPECT_EQ(observe(one, x).counts, count_one_by_one(one, x).counts) << name_of(dtype) << " " << name;
    }
  }
}

TEST(Observation, AddsToWhatIsThere) {
  for (const Geometry& geometry : {Geometry{1, 1, 1000}, Geometry{3, 4, 50}, Geometry{20, 10, 1}}) {
    const Array x = mixed(DType::kFloat32, geometry.size());
    const Counted once = observe(geometry, x);
    Counted twice = once;
    Observation kernel(DType::kFloat32, geometry, x.data(), twice.counts.data(), twice.moments.data());
    kernel.run(0, kernel.units());
    kernel.finish();
    for (std::size_t i = 0; i < once.counts.size(); ++i) ASSERT_EQ(twice.counts[i], 2 * once.counts[i]);
    for (std::size_t i = 0; i < once.moments.size(); ++i) ASSERT_EQ(twice.moments[i], 2 * once.moments[i]);
  }
}

TEST(Observation, SameBitsOnEveryTargetAndForAnySplitOverThreads) {
  for (const DType dtype : kAllDTypes) {
    for (const Geometry& geometry : kGeometries) {
      const Array x = mixed(dtype, geometry.size());
      const Counted whole = observe(geometry, x);
      for (const std::string& name : supported_targets()) {
        SCOPED_TRACE(std::string(name_of(dtype)) + " " + name + " " + std::to_string(geometry.channels));
        const UseTarget target(name);
        EXPECT_EQ(observe(geometry, x), whole);
      }
      for (const std::int64_t threads : {2, 3}) {
        Counted split(geometry.channels);
        Observation kernel(dtype, geometry, x.data(), split.counts.data(), split.moments.data());
        std::vector<std::thread> workers;
        for (std::int64_t t = 0; t < threads; ++t) {
          workers.emplace_back(
              [&, t] { kernel.run(kernel.units() * t / threads, kernel.units() * (t + 1) / threads); });
        }
        for (std::thread& worker : workers) worker.join();
        kernel.finish();
        EXPECT_EQ(split, whole) << name_of(dtype) << " " << threads << " threads";
      }
    }
  }
}

TEST(Observation, ReadsNothingOutsideTheInput) {
  for (const DType dtype : kAllDTypes) {
    for (const std::string& name : supported_targets()) {
      const UseTarget target(name);
      for (std::int64_t size = 1; size <= 70; ++size) {
        for (const Geometry& geometry : {Geometry{1, 1, size}, Geometry{1, size, 1}, Geometry{2, 2, size}}) {
          const Array x = mixed(dtype, geometry.size());
          const auto bytes = static_cast<std::size_t>(geometry.size() * element_size(dtype));
          GuardedBuffer guarded(bytes);
          for (char* place : {guarded.starting(), guarded.ending(bytes)}) {
            std::memcpy(place, x.data(), bytes);
            Counted result(geometry.channels);
            Observation kernel(dtype, geometry, place, result.counts.data(), result.moments.data());
            kernel.run(0, kernel.units());
            kernel.finish();
            ASSERT_EQ(std::accumulate(result.counts.begin(), result.counts.end(), std::int64_t{0}) +
                          static_cast<std::int64_t>([&] {
                            double sum = 0;
                            for (std::size_t i = 3; i < result.moments.size(); i += 4) sum += result.moments[i];
                            return sum;
                          }()),
                      geometry.size());
          }
        }
      }
    }
  }
}

TEST(Observation, RefusesAGeometryThatIsNone) {
  EXPECT_THROW(Observation(DType::kFloat32, {1, 0, 1}, nullptr, nullptr, nullptr), std::invalid_argument);
  EXPECT_THROW(Observation(DType::kFloat32, {-1, 1, 1}, nullptr, nullptr, nullptr), std::invalid_argument);
}

}  // namespace
}  // namespace lambda_gelu::kernels::testing
