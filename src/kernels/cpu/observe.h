// The CPU kernel of observation: histograms and moments in one pass. No torch, no threads of its own.
#pragma once

#include <kernels/geometry.h>

#include <cstdint>
#include <mutex>
#include <vector>

namespace lambda_gelu::kernels {

struct DTypeKernels;

/// For every channel of `geometry` adds to counts[channel][256] (math/histogram_bins.h) and moments[channel][4]: sum,
/// sum of squares, sum of squares of ReLU, number of values that are not finite. The work is cut into units() pieces
/// that depend on the geometry only; run() may be called for disjoint ranges from any number of threads, finish() once
/// after that. The moments have the same bits for any split and any instruction set.
class Observation {
 public:
  /// `data` is dense in the order of `geometry`. The instruction set is the one in use now.
  Observation(DType dtype, const Geometry& geometry, const void* data, std::int64_t* counts, double* moments);

  std::int64_t units() const { return units_; }
  void run(std::int64_t begin, std::int64_t end);
  void finish();

 private:
  enum class Cut { kPieces, kChannels, kColumns };

  void run_pieces(std::int64_t begin, std::int64_t end);
  void run_channel(std::int64_t channel);
  void run_columns(std::int64_t unit);
  const void* at(std::int64_t element) const;

  const DTypeKernels* kernels_;
  std::int64_t element_size_;
  Geometry geometry_;
  const char* data_;
  std::int64_t* counts_;
  double* moments_;
  Cut cut_;
  std::int64_t units_;
  std::vector<double> partials_;  // of pieces
  std::int64_t nonfinite_ = 0;    // of pieces
  std::mutex adding_;             // pieces of one channel share its counts
};

}  // namespace lambda_gelu::kernels
