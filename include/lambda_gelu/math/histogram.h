#pragma once

#include <lambda_gelu/export.h>

#include <array>
#include <cstdint>
#include <span>
#include <vector>

/// What the swap to ReLU costs for pre-activations of any distribution. Its error e(x) = ReLU(x) - x Phi(lambda x)
/// depends on |x| only and e is smooth on the scale of a bin, so one histogram answers for every lambda (own
/// derivation; not in arXiv 2603.21991). Plain double, no torch.
namespace lambda_gelu {

/// Bins of |x| for each sign: four per octave for 2^-24 <= |x| < 2^8. Smaller ones are in the first, larger in the
/// last.
inline constexpr int kHistogramBinsPerSign = 128;
/// x > 0 first, then x <= 0 (both zeros in the first bin of these).
inline constexpr int kHistogramBins = 2 * kHistogramBinsPerSign;

/// The 129 edges of the bins of |x|: bin i holds edges[i] <= |x| < edges[i + 1], the first one also what is smaller and
/// the last one what is larger.
LAMBDA_GELU_API std::array<double, kHistogramBinsPerSign + 1> histogram_edges();

/// The bin of x in [0, kHistogramBins), or kHistogramBins for NaN and infinities.
LAMBDA_GELU_API int histogram_bin(double x);

/// One distribution of pre-activations x: how many fall into each bin, and their exact moments. Within a bin the
/// density of |x| is taken to be linear, with the slope that its neighbours show (in the last bin all of it at the
/// lower edge), which leaves the SER of normal, Laplace and mixed distributions within 0.02 dB for kappa in [0.5, 64].
///
/// Every question about a histogram that is empty or has seen NaN or infinity throws std::invalid_argument that says
/// so, and so do a hardness or other argument that is not finite and positive.
class LAMBDA_GELU_API Histogram {
 public:
  using Counts = std::array<std::int64_t, kHistogramBins>;

  Histogram() = default;
  /// sum, sq_sum, sq_sum_relu: over x, x^2 and ReLU(x)^2 of the finite values. nonfinite: how many NaN and infinities
  /// came, which are counted here only. Throws std::invalid_argument for a negative count or sum of squares.
  Histogram(const Counts& counts, double sum, double sq_sum, double sq_sum_relu, std::int64_t nonfinite = 0);

  /// Adds one value: a reference for the kernels, and enough for small samples.
  void add(double x);
  /// Adds what another histogram has seen.
  void merge(const Histogram& other);

  const Counts& counts() const { return counts_; }
  double sum() const { return sum_; }
  double sq_sum() const { return sq_sum_; }
  double sq_sum_relu() const { return sq_sum_relu_; }
  std::int64_t nonfinite() const { return nonfinite_; }
  /// Finite values seen.
  std::int64_t count() const { return count_; }

  double mean() const;
  double std() const;  ///< of the population: sqrt(E[x^2] - E[x]^2)
  /// The share of x <= 0: what ReLU makes zero.
  double zero_share() const;
  double expected_sq_relu() const;  ///< E[ReLU(x)^2]

  double expected_gap(double hardness) const;     ///< E[e(x)]
  double expected_sq_gap(double hardness) const;  ///< E[e(x)^2]
  /// 10 log10(E[ReLU(x)^2] / E[e(x)^2]): infinite where there is no error (every x is 0), minus infinity where there is
  /// one but no x is positive.
  double ser_db(double hardness) const;
  /// kappa = lambda std.
  double effective_hardness(double hardness) const;
  /// The share of x whose gate Phi(lambda x) is below `threshold`, in (0, 1); linear within a bin.
  double near_zero_share(double hardness, double threshold = 0.01) const;

  /// The lambda at which ser_db(lambda) = decibels. Throws where no lambda in [1e-6, 1e9] reaches it, as where no x is
  /// positive.
  double target_from_ser(double decibels) const;
  /// The lambda at which expected_gap(lambda) = gap > 0. Throws where no lambda in [1e-6, 1e9] has it.
  double target_from_gap(double gap) const;

 private:
  friend struct HistogramSums;
  void require_usable() const;

  Counts counts_{};
  double sum_ = 0, sq_sum_ = 0, sq_sum_relu_ = 0;
  std::int64_t nonfinite_ = 0;
  std::int64_t count_ = 0;
};

/// One site of several channels: everything its channels have seen, each channel with its own lambda. hardness: one
/// value, or one for every histogram. Throws as Histogram does, and for other numbers of values; channels that have
/// seen nothing are left out as long as one has.
LAMBDA_GELU_API double expected_gap(std::span<const Histogram> channels, std::span<const double> hardness);
LAMBDA_GELU_API double expected_sq_gap(std::span<const Histogram> channels, std::span<const double> hardness);
LAMBDA_GELU_API double ser_db(std::span<const Histogram> channels, std::span<const double> hardness);
LAMBDA_GELU_API double near_zero_share(std::span<const Histogram> channels, std::span<const double> hardness,
                                       double threshold = 0.01);
/// All channels as one distribution.
LAMBDA_GELU_API Histogram merged(std::span<const Histogram> channels);

}  // namespace lambda_gelu
