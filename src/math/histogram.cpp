#include <lambda_gelu/math/histogram.h>
#include <math/histogram_bins.h>
#include <math/increasing.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <stdexcept>
#include <utility>

#include "checks.h"

namespace lambda_gelu {

static_assert(kHistogramBinsPerSign == histogram::kBinsPerSign);

/// Sums over the values of one histogram or of several: what their averages are made of.
struct HistogramSums {
  double count = 0, sq_relu = 0, sq = 0, gap = 0, sq_gap = 0;

  void add(const Histogram& histogram, double hardness);
  double ser_db() const {
    if (sq == 0 || sq_gap == 0) return std::numeric_limits<double>::infinity();
    return 10 * std::log10(sq_relu / sq_gap);
  }
};

namespace {

// Nodes and weights of 4-point Gauss-Legendre quadrature on [0, 1]. The bins are so narrow that more nodes change no
// digit that counts.
constexpr std::array<std::pair<double, double>, 4> kGaussLegendre{{
    {0.0694318442029737124, 0.173927422568726929},
    {0.3300094782075718676, 0.326072577431273071},
    {0.6699905217924281324, 0.326072577431273071},
    {0.9305681557970262876, 0.173927422568726929},
}};

// Beyond it Phi(-z) is no number of double precision.
constexpr double kClosedGate = 38.5;

double lower_edge(int bin) {
  using namespace histogram;
  const int octave = bin >> kBinsPerOctaveBits, quarter = bin & ((1 << kBinsPerOctaveBits) - 1);
  return std::ldexp(1 + quarter / 4.0, kSmallestExponent + octave);
}

const std::array<double, kHistogramBinsPerSign + 1>& edges() {
  static const auto values = [] {
    std::array<double, kHistogramBinsPerSign + 1> result;
    for (int i = 0; i <= kHistogramBinsPerSign; ++i) result[i] = lower_edge(i);
    return result;
  }();
  return values;
}

/// Where the values of a bin are taken to lie.
struct Bin {
  double low, high;
};
Bin bin_at(int i) {
  if (i == 0) return {0, edges()[1]};
  if (i == kHistogramBinsPerSign - 1) return {edges()[i], edges()[i]};
  return {edges()[i], edges()[i + 1]};
}

/// How much denser bin i is at its upper end than in its middle, in parts of its mean density: the density is taken to
/// be linear there, with the slope that its neighbours show, as far as it stays between theirs (the limiter of van
/// Leer's MUSCL scheme, J. Comput. Phys. 32, 1979), so that it is never negative and a lone peak stays flat.
double tilt_of(const std::array<double, kHistogramBinsPerSign>& values, int i) {
  if (i == 0 || i >= kHistogramBinsPerSign - 2) return 0;
  const auto density = [&](int bin) { return values[bin] / (bin_at(bin).high - bin_at(bin).low); };
  const auto middle = [&](int bin) { return 0.5 * (bin_at(bin).high + bin_at(bin).low); };
  const double before = density(i) - density(i - 1), after = density(i + 1) - density(i);
  if (before * after <= 0) return 0;
  const double slope = (before + after) / (middle(i + 1) - middle(i - 1));
  const double rise = 0.5 * slope * (bin_at(i).high - bin_at(i).low);
  const double limit = std::min(std::abs(before), std::abs(after));
  return std::clamp(rise, -limit, limit) / density(i);
}

double gap_at(double hardness, double magnitude) {
  return magnitude * 0.5 * std::erfc(hardness * magnitude * (std::numbers::sqrt2 / 2));
}

/// x with Phi(x) = p for p in (0, 1): bisection, because nothing here is in a hurry.
double normal_quantile(double p) {
  double low = -kClosedGate, high = kClosedGate;
  for (int i = 0; i < 100; ++i) {
    const double middle = 0.5 * (low + high);
    (0.5 * std::erfc(-middle * (std::numbers::sqrt2 / 2)) < p ? low : high) = middle;
  }
  return 0.5 * (low + high);
}

/// The share of a bin's values with |x| < limit.
double share_below(const Bin& bin, double limit) {
  if (limit >= bin.high && limit > bin.low) return 1;
  if (limit <= bin.low) return 0;
  return (limit - bin.low) / (bin.high - bin.low);
}

void require_count_of_hardness(std::span<const Histogram> channels, std::span<const double> hardness) {
  if (channels.empty()) throw std::invalid_argument("channels must hold at least one histogram, got none");
  if (hardness.size() != 1 && hardness.size() != channels.size()) {
    throw std::invalid_argument(fmt::format("hardness must have 1 or {} values, one for each channel, got {}",
                                            channels.size(), hardness.size()));
  }
}

void require_threshold(double threshold) {
  if (!(threshold > 0 && threshold < 1)) {
    throw std::invalid_argument(fmt::format("threshold must be in (0, 1), got {}", threshold));
  }
}

// How many values have a gate below `threshold`.
double near_zeros(const Histogram::Counts& counts, double hardness, double threshold) {
  const double limit = normal_quantile(threshold) / hardness;  // gates are below it for x < limit
  double sum = 0;
  for (int i = 0; i < kHistogramBinsPerSign; ++i) {
    const Bin bin = bin_at(i);
    const double positive = static_cast<double>(counts[i]);
    const double negative = static_cast<double>(counts[kHistogramBinsPerSign + i]);
    if (limit > 0) {
      sum += negative + positive * share_below(bin, limit);
    } else {
      sum += negative * (1 - share_below(bin, -limit));
    }
  }
  return sum;
}

HistogramSums sums_of(std::span<const Histogram> channels, std::span<const double> hardness) {
  require_count_of_hardness(channels, hardness);
  for (const double value : hardness) checks::finite_positive("hardness", value);
  HistogramSums sums;
  for (std::size_t i = 0; i < channels.size(); ++i) {
    if (channels[i].nonfinite() > 0) channels[i].mean();  // refuses
    if (channels[i].count() > 0) sums.add(channels[i], hardness[hardness.size() == 1 ? 0 : i]);
  }
  if (sums.count == 0) channels[0].mean();  // refuses
  return sums;
}

}  // namespace

std::array<double, kHistogramBinsPerSign + 1> histogram_edges() {
  return edges();
}

int histogram_bin(double x) {
  return histogram::bin_of(x);
}

void HistogramSums::add(const Histogram& histogram, double hardness) {
  count += static_cast<double>(histogram.count_);
  sq_relu += histogram.sq_sum_relu_;
  sq += histogram.sq_sum_;
  // e depends on |x| only.
  std::array<double, kHistogramBinsPerSign> values;
  for (int i = 0; i < kHistogramBinsPerSign; ++i) {
    values[i] = static_cast<double>(histogram.counts_[i] + histogram.counts_[kHistogramBinsPerSign + i]);
  }
  // From the outside in: the smallest terms first, and none where the gates are closed and open for good.
  for (int i = kHistogramBinsPerSign - 1; i >= 0; --i) {
    const Bin bin = bin_at(i);
    if (values[i] == 0 || hardness * bin.low > kClosedGate) continue;
    const double tilt = tilt_of(values, i);
    double first = 0, second = 0;
    for (const auto& [node, weight] : kGaussLegendre) {
      const double e = gap_at(hardness, bin.low + node * (bin.high - bin.low));
      const double mass = weight * (1 + tilt * (2 * node - 1));
      first += mass * e;
      second += mass * e * e;
    }
    gap += values[i] * first;
    sq_gap += values[i] * second;
  }
}

Histogram::Histogram(const Counts& counts, double sum, double sq_sum, double sq_sum_relu, std::int64_t nonfinite)
    : counts_(counts), sum_(sum), sq_sum_(sq_sum), sq_sum_relu_(sq_sum_relu), nonfinite_(nonfinite) {
  for (int i = 0; i < kHistogramBins; ++i) {
    if (counts[i] < 0) {
      throw std::invalid_argument(fmt::format("counts must not be negative, got {} in bin {}", counts[i], i));
    }
    count_ += counts[i];
  }
  checks::finite("sum", sum);
  for (const auto& [name, value] : {std::pair{"sq_sum", sq_sum}, std::pair{"sq_sum_relu", sq_sum_relu}}) {
    if (!(std::isfinite(value) && value >= 0)) {
      throw std::invalid_argument(fmt::format("{} must be finite and not negative, got {}", name, value));
    }
  }
  if (nonfinite < 0) throw std::invalid_argument(fmt::format("nonfinite must not be negative, got {}", nonfinite));
}

void Histogram::add(double x) {
  const int bin = histogram::bin_of(x);
  if (bin == histogram::kNonfinite) {
    ++nonfinite_;
    return;
  }
  ++counts_[bin];
  ++count_;
  sum_ += x;
  sq_sum_ += x * x;
  if (x > 0) sq_sum_relu_ += x * x;
}

void Histogram::merge(const Histogram& other) {
  for (int i = 0; i < kHistogramBins; ++i) counts_[i] += other.counts_[i];
  sum_ += other.sum_;
  sq_sum_ += other.sq_sum_;
  sq_sum_relu_ += other.sq_sum_relu_;
  nonfinite_ += other.nonfinite_;
  count_ += other.count_;
}

void Histogram::require_usable() const {
  if (nonfinite_ > 0) {
    throw std::invalid_argument(
        fmt::format("the histogram must hold finite values only, it has seen {} NaN or infinite ones", nonfinite_));
  }
  if (count_ == 0) throw std::invalid_argument("the histogram must hold values, it is empty");
}

double Histogram::mean() const {
  require_usable();
  return sum_ / static_cast<double>(count_);
}

double Histogram::std() const {
  const double average = mean();
  return std::sqrt(std::max(0.0, sq_sum_ / static_cast<double>(count_) - average * average));
}

double Histogram::zero_share() const {
  require_usable();
  std::int64_t zeros = 0;
  for (int i = kHistogramBinsPerSign; i < kHistogramBins; ++i) zeros += counts_[i];
  return static_cast<double>(zeros) / static_cast<double>(count_);
}

double Histogram::expected_sq_relu() const {
  require_usable();
  return sq_sum_relu_ / static_cast<double>(count_);
}

double Histogram::expected_gap(double hardness) const {
  return lambda_gelu::expected_gap({this, 1}, {&hardness, 1});
}

double Histogram::expected_sq_gap(double hardness) const {
  return lambda_gelu::expected_sq_gap({this, 1}, {&hardness, 1});
}

double Histogram::ser_db(double hardness) const {
  return lambda_gelu::ser_db({this, 1}, {&hardness, 1});
}

double Histogram::effective_hardness(double hardness) const {
  checks::finite_positive("hardness", hardness);
  return hardness * std();
}

double Histogram::near_zero_share(double hardness, double threshold) const {
  return lambda_gelu::near_zero_share({this, 1}, {&hardness, 1}, threshold);
}

double Histogram::target_from_ser(double decibels) const {
  checks::finite("decibels", decibels);
  const double least = ser_db(kSmallestHardness), most = ser_db(kLargestHardness);
  if (sq_sum_relu_ == 0) {
    throw std::invalid_argument(fmt::format(
        "decibels = {} cannot be reached: the histogram has no positive value, so ReLU leaves no signal", decibels));
  }
  if (!(decibels >= least && decibels <= most)) {
    throw std::invalid_argument(
        fmt::format("decibels must be in [{:.4g}, {:.4g}] (what a hardness in [{}, {}] reaches here), got {}", least,
                    most, kSmallestHardness, kLargestHardness, decibels));
  }
  return solve_increasing([&](double hardness) { return ser_db(hardness); }, decibels, kSmallestHardness,
                          kLargestHardness);
}

double Histogram::target_from_gap(double gap) const {
  checks::finite_positive("gap", gap);
  const double least = expected_gap(kLargestHardness), most = expected_gap(kSmallestHardness);
  if (!(gap >= least && gap <= most)) {
    throw std::invalid_argument(
        fmt::format("gap must be in [{:.4g}, {:.4g}] (what a hardness in [{}, {}] leaves here), got {}", least, most,
                    kSmallestHardness, kLargestHardness, gap));
  }
  return solve_increasing([&](double hardness) { return -std::log(expected_gap(hardness)); }, -std::log(gap),
                          kSmallestHardness, kLargestHardness);
}

double expected_gap(std::span<const Histogram> channels, std::span<const double> hardness) {
  const auto sums = sums_of(channels, hardness);
  return sums.gap / sums.count;
}

double expected_sq_gap(std::span<const Histogram> channels, std::span<const double> hardness) {
  const auto sums = sums_of(channels, hardness);
  return sums.sq_gap / sums.count;
}

double ser_db(std::span<const Histogram> channels, std::span<const double> hardness) {
  return sums_of(channels, hardness).ser_db();
}

double near_zero_share(std::span<const Histogram> channels, std::span<const double> hardness, double threshold) {
  require_threshold(threshold);
  require_count_of_hardness(channels, hardness);
  for (const double value : hardness) checks::finite_positive("hardness", value);
  merged(channels).mean();  // refuses
  double zeros = 0, count = 0;
  for (std::size_t i = 0; i < channels.size(); ++i) {
    zeros += near_zeros(channels[i].counts(), hardness[hardness.size() == 1 ? 0 : i], threshold);
    count += static_cast<double>(channels[i].count());
  }
  return zeros / count;
}

Histogram merged(std::span<const Histogram> channels) {
  Histogram result;
  for (const auto& channel : channels) result.merge(channel);
  return result;
}

}  // namespace lambda_gelu
