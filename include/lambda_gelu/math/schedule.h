#pragma once

#include <lambda_gelu/export.h>

#include <cstdint>
#include <string>
#include <string_view>

/// How the hardness rises from its learned value to its target. Plain double, no torch.
namespace lambda_gelu {

enum class Schedule {
  kLinear,     ///< linear in lambda (the paper's)
  kGeometric,  ///< linear in log(lambda)
  kHarmonic,   ///< linear in 1 / lambda
  kCosine,     ///< half a cosine wave in lambda: slow at both ends
};

/// "linear", "geometric", "harmonic", "cosine". Throws std::invalid_argument that lists the names for any other.
LAMBDA_GELU_API Schedule schedule_from_name(std::string_view name);
LAMBDA_GELU_API std::string_view schedule_name(Schedule schedule);

/// The hardness at `progress` in [0, 1] on the way from `from` to `to`; exactly `from` at 0 and exactly `to` at 1.
/// `to` may be below `from`. With `start_progress`: on a way that stands at `from` there, as after a change of the
/// target; exactly `from` at start_progress, and what is left of the schedule after it. Throws std::invalid_argument
/// for a progress outside [0, 1], a start_progress outside [0, progress] or a hardness that is not finite and positive.
LAMBDA_GELU_API double scheduled_hardness(Schedule schedule, double from, double to, double progress,
                                          double start_progress = 0.0);

enum class Phase {
  kLearn,   ///< lambda is a trained parameter
  kHarden,  ///< lambda is frozen and follows the schedule
  kDone,    ///< lambda is frozen at its target
};
LAMBDA_GELU_API std::string_view phase_name(Phase phase);  ///< "learn", "harden", "done"

/// Which part of a run of `total_steps` steps hardens: from fraction `start` to fraction `end` of it. A product such as
/// 0.07 * 100 that misses a whole number by rounding only counts as that number.
struct LAMBDA_GELU_API HardeningWindow {
  /// Throws std::invalid_argument unless total_steps >= 1 and 0 <= start < end <= 1, or where the window holds no step.
  HardeningWindow(std::int64_t total_steps, double start, double end);

  std::int64_t total_steps;
  std::int64_t first_step;  ///< ceil(start * total_steps): the step from which on lambda is frozen
  std::int64_t last_step;   ///< ceil(end * total_steps): the step from which on lambda is at its target

  /// Steps count from 0; both throw std::invalid_argument for a negative one.
  Phase phase(std::int64_t step) const;
  /// 0 up to first_step, 1 from last_step on, linear in between.
  double progress(std::int64_t step) const;
};

}  // namespace lambda_gelu
