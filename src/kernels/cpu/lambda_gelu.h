// CPU kernels of lambda-GELU on raw pointers: no torch, no threads of their own.
#pragma once

#include <kernels/cpu/gates.h>
#include <kernels/cpu/gather.h>
#include <kernels/cpu/plan.h>
#include <kernels/geometry.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace lambda_gelu::kernels {

struct KernelTable;
struct DTypeKernels;

/// y = x Phi(lambda x). The work is cut into units() pieces that depend on dtype and geometry only; run() may be
/// called for disjoint ranges from any number of threads. A unit of one lambda is 16,384 elements.
class Forward {
 public:
  /// hardness: geometry.channels values, each finite and > 0 or else taken as it is (NaN gives NaN). `input` may be
  /// `y`. The instruction set is the one in use now. Throws std::invalid_argument where an operand does not fit
  /// `geometry`.
  Forward(DType dtype, const Geometry& geometry, const Operand& input, void* y, const double* hardness);
  std::int64_t units() const { return plan_.units(); }
  void run(std::int64_t begin, std::int64_t end) const;

 private:
  void run_pieces(std::int64_t unit) const;
  void run_columns(std::int64_t unit) const;
  void span(std::int64_t first, std::int64_t size, const void* gate) const;

  const KernelTable* table_;
  const DTypeKernels* kernels_;
  DType dtype_;
  std::int64_t channels_;
  Plan plan_;
  Gates gates_;
  Source input_;
  void* y_;
  bool stream_;
};

/// dx = g (Phi(z) + z phi(z)) with z = lambda x, and per channel sum g x^2 phi(z).
/// `dx` may be the same memory as a dense `grad_output`, or as a dense `input`.
class Backward {
 public:
  Backward(DType dtype, const Geometry& geometry, const Operand& grad_output, const Operand& input, void* dx,
           const double* hardness);
  std::int64_t units() const { return plan_.units(); }
  void run(std::int64_t begin, std::int64_t end);
  /// After every unit has run: dhardness[c] = sum over channel c, geometry.channels values, summed in a fixed order.
  void sum(double* dhardness) const;

 private:
  void run_pieces(std::int64_t unit);
  void run_columns(std::int64_t unit);
  double span(std::int64_t first, std::int64_t size, const void* gate);

  // Few enough partial sums are kept in the object: a small tensor costs no allocation.
  static constexpr std::int64_t kOwnPartials = 8;

  const KernelTable* table_;
  const DTypeKernels* kernels_;
  DType dtype_;
  std::int64_t channels_;
  Plan plan_;
  Gates gates_;
  Source grad_output_;
  Source input_;
  void* dx_;
  bool stream_;
  double own_partials_[kOwnPartials];
  std::unique_ptr<double[]> more_partials_;
  double* partials() { return more_partials_ ? more_partials_.get() : own_partials_; }
  const double* partials() const { return more_partials_ ? more_partials_.get() : own_partials_; }
};

/// Bytes of the last-level cache: a larger output is written past the caches.
std::int64_t last_level_cache_bytes();

/// Instruction sets this machine can run, best first: of "avx512", "avx2", "scalar".
std::vector<std::string> supported_targets();
/// The one in use.
std::string active_target();
/// Forces one of supported_targets() (tests, benchmarks); an empty name restores the best. Throws
/// std::invalid_argument.
void set_target(const std::string& name);

}  // namespace lambda_gelu::kernels
