#include <kernels/cpu/observe.h>
#include <kernels/cpu/simd/kernel_table.h>
#include <kernels/gate.h>
#include <math/histogram_bins.h>

#include <algorithm>
#include <stdexcept>

namespace lambda_gelu::kernels {
namespace {

using histogram::kBins;

/// A unit of one channel.
constexpr std::int64_t kPiece = 16384;
/// Values that an entry of a table may count before it overflows, with room for a piece.
constexpr std::int64_t kTableLimit = std::int64_t{1} << 31;
/// Of `moments`: the kernel's, and the number of values that are not finite.
constexpr std::int64_t kColumnsOfMoments = kObserveMoments + 1;

/// Tables that are counted into, and what they come to.
class Tables {
 public:
  std::uint32_t* data() { return tables_; }
  /// Before `size` more values are counted.
  void make_room(std::int64_t size) {
    if (counted_ + size > kTableLimit) empty();
    counted_ += size;
  }
  void add_to(std::int64_t* counts, std::int64_t& nonfinite) {
    empty();
    for (int bin = 0; bin < kBins; ++bin) counts[bin] += sums_[bin];
    nonfinite += sums_[histogram::kNonfinite];
  }

 private:
  void empty() {
    for (int bin = 0; bin <= kBins; ++bin) {
      for (int table = 0; table < kObserveTables; ++table) sums_[bin] += tables_[table * kObserveTable + bin];
    }
    std::fill(std::begin(tables_), std::end(tables_), 0u);
    counted_ = 0;
  }

  alignas(64) std::uint32_t tables_[kObserveTables * kObserveTable] = {};
  std::int64_t sums_[kBins + 1] = {};
  std::int64_t counted_ = 0;
};

/// The virtual lanes of every moment, added by a tree that is the same everywhere.
void add_lanes(double* lanes, double* to) {
  for (int m = 0; m < kObserveMoments; ++m) {
    double* lane = lanes + m * kSumLanes;
    for (int half = kSumLanes / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
    }
    to[m] += lane[0];
  }
}

}  // namespace

Observation::Observation(DType dtype, const Geometry& geometry, const void* data, std::int64_t* counts, double* moments)
    : kernels_(&active_kernels().dtypes[static_cast<std::size_t>(dtype)]),
      element_size_(element_size(dtype)),
      geometry_(geometry),
      data_(static_cast<const char*>(data)),
      counts_(counts),
      moments_(moments) {
  if (geometry.outer < 0 || geometry.channels < 1 || geometry.inner < 0) {
    throw std::invalid_argument("geometry must have outer >= 0, channels >= 1 and inner >= 0");
  }
  if (geometry.channels == 1) {
    cut_ = Cut::kPieces;
    units_ = (geometry.size() + kPiece - 1) / kPiece;
    partials_.resize(static_cast<std::size_t>(units_ * kObserveMoments));
  } else if (geometry.inner == 1) {
    cut_ = Cut::kColumns;
    units_ = (geometry.channels + kObserveColumns - 1) / kObserveColumns;
  } else {
    cut_ = Cut::kChannels;
    units_ = geometry.channels;
  }
}

void Observation::run(std::int64_t begin, std::int64_t end) {
  switch (cut_) {
    case Cut::kPieces:
      return run_pieces(begin, end);
    case Cut::kChannels:
      for (auto unit = begin; unit < end; ++unit) run_channel(unit);
      return;
    case Cut::kColumns:
      for (auto unit = begin; unit < end; ++unit) run_columns(unit);
      return;
  }
}

void Observation::finish() {
  for (std::size_t i = 0; i < partials_.size(); ++i) moments_[i % kObserveMoments] += partials_[i];
  if (cut_ == Cut::kPieces) moments_[kObserveMoments] += static_cast<double>(nonfinite_);
}

void Observation::run_pieces(std::int64_t begin, std::int64_t end) {
  Tables tables;
  for (auto unit = begin; unit < end; ++unit) {
    const std::int64_t first = unit * kPiece, size = std::min(kPiece, geometry_.size() - first);
    alignas(64) double lanes[kObserveMoments * kSumLanes] = {};
    tables.make_room(size);
    kernels_->observe_span(at(first), size, tables.data(), lanes);
    add_lanes(lanes, partials_.data() + unit * kObserveMoments);
  }
  const std::lock_guard lock(adding_);
  tables.add_to(counts_, nonfinite_);
}

void Observation::run_channel(std::int64_t channel) {
  Tables tables;
  alignas(64) double lanes[kObserveMoments * kSumLanes] = {};
  for (std::int64_t outer = 0; outer < geometry_.outer; ++outer) {
    const std::int64_t plane = (outer * geometry_.channels + channel) * geometry_.inner;
    for (std::int64_t first = 0; first < geometry_.inner; first += kPiece) {
      const std::int64_t size = std::min(kPiece, geometry_.inner - first);
      tables.make_room(size);
      kernels_->observe_span(at(plane + first), size, tables.data(), lanes);
    }
  }
  double* moments = moments_ + channel * kColumnsOfMoments;
  add_lanes(lanes, moments);
  std::int64_t nonfinite = 0;
  tables.add_to(counts_ + channel * kBins, nonfinite);
  moments[kObserveMoments] += static_cast<double>(nonfinite);
}

void Observation::run_columns(std::int64_t unit) {
  const std::int64_t first = unit * kObserveColumns;
  const std::int64_t columns = std::min(kObserveColumns, geometry_.channels - first);
  std::int64_t nonfinite[kObserveColumns] = {};
  double sums[kObserveColumns * kObserveMoments];
  kernels_->observe_columns(at(first), geometry_.channels, geometry_.outer, columns, counts_ + first * kBins, nonfinite,
                            sums);
  for (std::int64_t c = 0; c < columns; ++c) {
    double* moments = moments_ + (first + c) * kColumnsOfMoments;
    for (int m = 0; m < kObserveMoments; ++m) moments[m] += sums[c * kObserveMoments + m];
    moments[kObserveMoments] += static_cast<double>(nonfinite[c]);
  }
}

const void* Observation::at(std::int64_t element) const {
  return data_ + element * element_size_;
}

}  // namespace lambda_gelu::kernels
