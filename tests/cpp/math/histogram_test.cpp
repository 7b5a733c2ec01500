#include <gtest/gtest.h>
#include <lambda_gelu/math/histogram.h>
#include <math/histogram_bins.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "../expect_refusal.h"
#include "distributions.h"

namespace lambda_gelu {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();
constexpr double kKappas[] = {0.5, 1, 1.7, 3, 6, 13, 30, 64};

Histogram of(const std::vector<double>& values) {
  Histogram histogram;
  for (const double value : values) histogram.add(value);
  return histogram;
}

std::vector<double> normal_sample(int size, double mean, double std, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal(mean, std);
  std::vector<double> values(size);
  for (double& value : values) value = normal(random);
  return values;
}

double gap_of(double x, double hardness) {
  return std::max(x, 0.0) - x * 0.5 * std::erfc(-hardness * x / std::sqrt(2.0));
}

TEST(HistogramBins, AreFourPerOctaveFromTwoToTheMinus24ToTwoToThe8) {
  const auto edges = histogram_edges();
  EXPECT_EQ(edges.front(), std::exp2(-24));
  EXPECT_EQ(edges.back(), 256);
  for (int i = 0; i + 4 <= kHistogramBinsPerSign; ++i) EXPECT_EQ(edges[i + 4], 2 * edges[i]);
  EXPECT_EQ(edges[1] / edges[0], 1.25);
  EXPECT_EQ(edges[2] / edges[0], 1.5);
  EXPECT_EQ(edges[3] / edges[0], 1.75);
}

TEST(HistogramBins, HoldWhatLiesBetweenTheirEdges) {
  const auto edges = histogram_edges();
  const auto expected = [&](double x) {
    const auto next = std::upper_bound(edges.begin(), edges.end(), std::abs(x)) - edges.begin();
    const auto bin = std::clamp<std::ptrdiff_t>(next - 1, 0, kHistogramBinsPerSign - 1);
    return static_cast<int>(bin) + (x > 0 ? 0 : kHistogramBinsPerSign);
  };
  std::mt19937 random(1);
  std::uniform_real_distribution<double> exponent(-40, 20);
  for (int i = 0; i < 20000; ++i) {
    const auto x = static_cast<float>(std::exp2(exponent(random)) * (i % 2 ? 1 : -1));
    ASSERT_EQ(histogram_bin(x), expected(x)) << x;
    ASSERT_EQ(histogram::bin_of(x), expected(x)) << x;
  }
  for (const double edge : edges) {
    for (const double x : {edge, std::nextafter(edge, 0.0), std::nextafter(edge, 1e9)}) {
      ASSERT_EQ(histogram_bin(x), expected(x)) << x;
      ASSERT_EQ(histogram_bin(-x), expected(-x)) << -x;
    }
  }
}

TEST(HistogramBins, BothZerosAreNotPositiveAndTheSmallestPositiveNumberIs) {
  EXPECT_EQ(histogram_bin(0.0), kHistogramBinsPerSign);
  EXPECT_EQ(histogram_bin(-0.0), kHistogramBinsPerSign);
  EXPECT_EQ(histogram_bin(std::numeric_limits<double>::denorm_min()), 0);
  EXPECT_EQ(histogram::bin_of(-0.0f), kHistogramBinsPerSign);
  EXPECT_EQ(histogram::bin_of(std::numeric_limits<float>::denorm_min()), 0);
}

TEST(HistogramBins, NaNAndInfinitiesAreInNone) {
  for (const double x : {kNaN, -kNaN, kInf, -kInf}) {
    EXPECT_EQ(histogram_bin(x), kHistogramBins);
    EXPECT_EQ(histogram::bin_of(static_cast<float>(x)), kHistogramBins);
  }
  const auto histogram = of({1, kNaN, -kInf, -2});
  EXPECT_EQ(histogram.count(), 2);
  EXPECT_EQ(histogram.nonfinite(), 2);
  EXPECT_EQ(histogram.sum(), -1);
}

TEST(Histogram, SerIsWithin0Point02DecibelsOfQuadratureForAnyDistribution) {
  for (const auto& distribution : reference::distributions()) {
    const auto histogram = reference::histogram(distribution);
    for (const double kappa : kKappas) {
      const double hardness = kappa / static_cast<double>(distribution.std);
      EXPECT_NEAR(histogram.ser_db(hardness), reference::ser_db(distribution, hardness), 0.02)
          << distribution.name << " std " << static_cast<double>(distribution.std) << " kappa " << kappa;
    }
  }
}

TEST(Histogram, ExpectationsOfTheGapAreWithin0Point3PercentOfQuadrature) {
  for (const auto& distribution : reference::distributions()) {
    const auto histogram = reference::histogram(distribution);
    for (const double kappa : kKappas) {
      SCOPED_TRACE(testing::Message() << distribution.name << " kappa " << kappa);
      const double hardness = kappa / static_cast<double>(distribution.std);
      EXPECT_NEAR(histogram.expected_gap(hardness) / reference::gap(distribution, 1, hardness), 1, 3e-3);
      EXPECT_NEAR(histogram.expected_sq_gap(hardness) / reference::gap(distribution, 2, hardness), 1, 3e-3);
    }
  }
}

TEST(Histogram, AnswersForASampleAsTheSampleItselfDoes) {
  const auto sample = normal_sample(200000, -0.4, 0.8, 5);
  const auto histogram = of(sample);
  const auto average = [&](auto&& f) {
    double sum = 0;
    for (const double x : sample) sum += f(x);
    return sum / static_cast<double>(sample.size());
  };
  const double mean = average([](double x) { return x; });
  EXPECT_NEAR(histogram.mean(), mean, 1e-12);
  EXPECT_NEAR(histogram.std(), std::sqrt(average([&](double x) { return (x - mean) * (x - mean); })), 1e-12);
  EXPECT_DOUBLE_EQ(histogram.zero_share(), average([](double x) { return x <= 0; }));
  EXPECT_NEAR(histogram.expected_sq_relu(), average([](double x) { return x > 0 ? x * x : 0; }), 1e-12);
  EXPECT_NEAR(histogram.effective_hardness(3), 3 * histogram.std(), 1e-12);
  for (const double hardness : {0.7, 2.0, 9.0}) {
    EXPECT_NEAR(histogram.expected_gap(hardness) / average([&](double x) { return gap_of(x, hardness); }), 1, 5e-3);
    for (const double threshold : {0.01, 0.3, 0.8}) {
      const double share =
          average([&](double x) { return 0.5 * std::erfc(-hardness * x / std::sqrt(2.0)) < threshold; });
      EXPECT_NEAR(histogram.near_zero_share(hardness, threshold), share, 4e-3) << hardness << " " << threshold;
    }
  }
}

TEST(Histogram, SharesOfNearZeroGatesAreExactWhereTheLimitIsAnEdge) {
  // Phi(-1) = 0.1587: with lambda = 1 the gates of x < -1 are below it.
  const double threshold = 0.5 * std::erfc(std::sqrt(0.5));
  EXPECT_NEAR(of({-3, -1.1, -0.9, 0.5}).near_zero_share(1, threshold), 0.5, 1e-9);
  EXPECT_NEAR(of({-3, -1.1, -0.9, 0.5}).near_zero_share(1, 1 - threshold), 1, 1e-9);
  EXPECT_NEAR(of({-3, 0.5, 1.1, 2}).near_zero_share(1, 1 - threshold), 0.5, 1e-9);
}

TEST(Histogram, TargetsHaveWhatTheyWereAskedFor) {
  for (const auto& distribution : reference::distributions()) {
    SCOPED_TRACE(distribution.name);
    const auto histogram = reference::histogram(distribution);
    for (const double decibels : {20.0, 30.0, 40.0}) {
      EXPECT_NEAR(histogram.ser_db(histogram.target_from_ser(decibels)), decibels, 1e-9);
    }
    for (const double share : {1e-4, 1e-2, 0.05}) {
      const double gap = share * static_cast<double>(distribution.std);
      if (gap > histogram.expected_gap(1e-6)) continue;  // more than ReLU and half of x are apart
      EXPECT_NEAR(histogram.expected_gap(histogram.target_from_gap(gap)) / gap, 1, 1e-9);
    }
  }
}

TEST(Histogram, TargetOfANormalDistributionIsThatOfTheClosedForm) {
  const auto histogram = reference::histogram(reference::normal(0, 1));
  EXPECT_NEAR(histogram.target_from_ser(30), 3.6, 0.05);  // of the closed forms: 1.6, 3.6 and 7.9
  EXPECT_NEAR(histogram.target_from_ser(20), 1.6, 0.05);
  EXPECT_NEAR(histogram.target_from_ser(40), 7.9, 0.05);
}

TEST(Histogram, SerRisesWithTheHardness) {
  const auto histogram = reference::histogram(reference::mixture(1));
  double last = -kInf;
  for (double hardness = 1e-3; hardness < 1e4; hardness *= 1.3) {
    EXPECT_GT(histogram.ser_db(hardness), last);
    last = histogram.ser_db(hardness);
  }
}

TEST(Histogram, WithoutErrorOrWithoutSignalHasAnInfiniteSer) {
  EXPECT_EQ(of({0, 0, -0.0}).ser_db(2), kInf);
  EXPECT_EQ(of({-1, -0.5}).ser_db(2), -kInf);
  expect_refusal([] { of({-1, -0.5}).target_from_ser(30); }, "decibels", "30", "no positive value");
}

TEST(Histogram, MergesAsIfItHadSeenBoth) {
  const auto a = normal_sample(1000, 0, 1, 1), b = normal_sample(500, 1, 2, 2);
  auto both = a;
  both.insert(both.end(), b.begin(), b.end());
  auto merged = of(a);
  merged.merge(of(b));
  const auto expected = of(both);
  EXPECT_EQ(merged.counts(), expected.counts());
  EXPECT_EQ(merged.count(), expected.count());
  EXPECT_NEAR(merged.sum(), expected.sum(), 1e-10);
  EXPECT_NEAR(merged.ser_db(3), expected.ser_db(3), 1e-10);
  merged.merge(of({kNaN}));
  EXPECT_EQ(merged.nonfinite(), 1);
}

TEST(PooledHistograms, AreTheSumsOverTheChannelsEachWithItsOwnHardness) {
  const std::vector<std::vector<double>> samples = {normal_sample(3000, 0, 1, 1), normal_sample(1000, -1, 0.3, 2), {}};
  const std::vector<double> hardness = {2, 7, 1};
  std::vector<Histogram> channels;
  double gap = 0, sq_gap = 0, sq_relu = 0, near = 0, count = 0;
  for (std::size_t c = 0; c < samples.size(); ++c) {
    channels.push_back(of(samples[c]));
    for (const double x : samples[c]) {
      const double e = gap_of(x, hardness[c]);
      gap += e;
      sq_gap += e * e;
      sq_relu += x > 0 ? x * x : 0;
      near += 0.5 * std::erfc(-hardness[c] * x / std::sqrt(2.0)) < 0.01;
      ++count;
    }
  }
  EXPECT_NEAR(expected_gap(channels, hardness) / (gap / count), 1, 5e-3);
  EXPECT_NEAR(expected_sq_gap(channels, hardness) / (sq_gap / count), 1, 5e-3);
  EXPECT_NEAR(ser_db(channels, hardness), 10 * std::log10(sq_relu / sq_gap), 0.02);
  EXPECT_NEAR(near_zero_share(channels, hardness), near / count, 5e-3);
  EXPECT_EQ(merged(channels).count(), 4000);
  // One hardness for all of them is the merged histogram, but for the slopes within its bins.
  EXPECT_NEAR(ser_db(channels, std::vector<double>{3}), merged(channels).ser_db(3), 0.01);
}

TEST(Histogram, RefusesWhatHasNoMeaning) {
  const Histogram empty;
  expect_refusal([&] { empty.mean(); }, "histogram", "empty");
  expect_refusal([&] { empty.ser_db(2); }, "histogram", "empty");
  expect_refusal([&] { empty.zero_share(); }, "histogram", "empty");
  expect_refusal([&] { empty.near_zero_share(2); }, "histogram", "empty");
  expect_refusal([&] { empty.target_from_ser(30); }, "histogram", "empty");
  const auto broken = of({1, kNaN, 2, kInf});
  expect_refusal([&] { broken.std(); }, "finite", "2 NaN or infinite");
  expect_refusal([&] { broken.expected_gap(2); }, "finite", "2 NaN or infinite");
  expect_refusal([&] { broken.near_zero_share(2); }, "finite", "2 NaN or infinite");
  const auto histogram = of({1, -2});
  for (const double value : {0.0, -1.0, kInf, kNaN}) {
    expect_refusal([&] { histogram.expected_gap(value); }, "hardness", "finite and positive", "got");
    expect_refusal([&] { histogram.expected_sq_gap(value); }, "hardness", "finite and positive", "got");
    expect_refusal([&] { histogram.ser_db(value); }, "hardness", "finite and positive", "got");
    expect_refusal([&] { histogram.effective_hardness(value); }, "hardness", "finite and positive", "got");
    expect_refusal([&] { histogram.near_zero_share(value); }, "hardness", "finite and positive", "got");
    expect_refusal([&] { histogram.target_from_gap(value); }, "gap", "finite and positive", "got");
  }
  for (const double value : {0.0, 1.0, -0.1, kNaN}) {
    expect_refusal([&] { histogram.near_zero_share(2, value); }, "threshold", "(0, 1)", "got");
  }
  expect_refusal([&] { histogram.target_from_ser(kNaN); }, "decibels", "finite", "got");
  expect_refusal([&] { histogram.target_from_ser(-20); }, "decibels", "got -20");
  const auto normal = reference::histogram(reference::normal(0, 1));
  expect_refusal([&] { normal.target_from_ser(1000); }, "decibels", "got 1000");
  expect_refusal([&] { histogram.target_from_gap(2); }, "gap", "got 2");
}

TEST(Histogram, RefusesWhatNoSampleHas) {
  Histogram::Counts counts{};
  counts[7] = -1;
  expect_refusal([&] { Histogram(counts, 0, 0, 0); }, "counts", "got -1", "bin 7");
  counts[7] = 1;
  expect_refusal([&] { Histogram(counts, kNaN, 1, 1); }, "sum", "finite", "got");
  expect_refusal([&] { Histogram(counts, 0, -1, 1); }, "sq_sum", "not negative", "got -1");
  expect_refusal([&] { Histogram(counts, 0, 1, kInf); }, "sq_sum_relu", "finite", "got inf");
  expect_refusal([&] { Histogram(counts, 0, 1, 1, -2); }, "nonfinite", "got -2");
}

TEST(PooledHistograms, RefuseOtherNumbersOfChannels) {
  const std::vector<Histogram> channels = {of({1, 2}), of({-1, 3})};
  expect_refusal([&] { ser_db(channels, std::vector<double>{1, 2, 3}); }, "hardness", "1 or 2", "got 3");
  expect_refusal([&] { ser_db({}, std::vector<double>{1}); }, "channels", "at least one", "none");
  expect_refusal([&] { ser_db(channels, std::vector<double>{1, -2}); }, "hardness", "finite and positive", "got -2");
  expect_refusal([&] { ser_db(std::vector<Histogram>(2), std::vector<double>{1}); }, "empty");
  const std::vector<Histogram> broken = {of({1, 2}), of({kNaN})};
  expect_refusal([&] { expected_gap(broken, std::vector<double>{1}); }, "finite", "1 NaN");
}

}  // namespace
}  // namespace lambda_gelu
