#include <lambda_gelu/math/schedule.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>
#include <stdexcept>
#include <utility>

#include "checks.h"

namespace lambda_gelu {
namespace {

constexpr std::array<std::pair<Schedule, std::string_view>, 4> kScheduleNames{{
    {Schedule::kLinear, "linear"},
    {Schedule::kGeometric, "geometric"},
    {Schedule::kHarmonic, "harmonic"},
    {Schedule::kCosine, "cosine"},
}};

double cosine_weight(double progress) {
  const double sine = std::sin(progress * std::numbers::pi / 2);
  return sine * sine;
}

// On the way that stands at `from` at `start`. Three schedules are straight lines of something, so what is left of one
// is one again; the rest of a cosine wave goes on as steep as the wave is there.
double interpolate(Schedule schedule, double from, double to, double progress, double start) {
  const double rest = start == 0 ? progress : (progress - start) / (1 - start);
  switch (schedule) {
    case Schedule::kLinear:
      return std::lerp(from, to, rest);
    case Schedule::kGeometric:
      return std::exp(std::lerp(std::log(from), std::log(to), rest));
    case Schedule::kHarmonic:
      return from / std::lerp(1.0, from / to, rest);
    case Schedule::kCosine: {
      const double before = start == 0 ? 0 : cosine_weight(start);
      return std::lerp(from, to, (cosine_weight(progress) - before) / (1 - before));
    }
  }
  throw std::invalid_argument(fmt::format("schedule must be one of the four enumerators, got {}", int(schedule)));
}

// A fraction such as 0.07 of 100 steps is 7.000000000000001 in double and means 7.
std::int64_t ceil_of_fraction(double fraction, std::int64_t total_steps) {
  const double exact = fraction * static_cast<double>(total_steps);
  const double nearest = std::round(exact);
  const bool is_whole = std::abs(exact - nearest) <= 1e-12 * std::max(1.0, exact);
  return static_cast<std::int64_t>(is_whole ? nearest : std::ceil(exact));
}

void require_step(std::int64_t step) {
  if (step < 0) throw std::invalid_argument(fmt::format("step must be at least 0, got {}", step));
}

}  // namespace

Schedule schedule_from_name(std::string_view name) {
  for (const auto& [schedule, known] : kScheduleNames) {
    if (name == known) return schedule;
  }
  throw std::invalid_argument(
      fmt::format("schedule must be 'linear', 'geometric', 'harmonic' or 'cosine', got '{}'", name));
}

std::string_view schedule_name(Schedule schedule) {
  for (const auto& [known, name] : kScheduleNames) {
    if (schedule == known) return name;
  }
  throw std::invalid_argument(fmt::format("schedule must be one of the four enumerators, got {}", int(schedule)));
}

double scheduled_hardness(Schedule schedule, double from, double to, double progress, double start_progress) {
  checks::finite_positive("from", from);
  checks::finite_positive("to", to);
  if (!(progress >= 0 && progress <= 1)) {
    throw std::invalid_argument(fmt::format("progress must be in [0, 1], got {}", progress));
  }
  if (!(start_progress >= 0 && start_progress <= progress)) {
    throw std::invalid_argument(
        fmt::format("start_progress must be in [0, {}], the progress, got {}", progress, start_progress));
  }
  if (progress == 1) return to;
  if (progress == start_progress) return from;
  // Rounding must not carry a value beyond an end point: the frozen lambda has to rise monotonically to its target.
  return std::clamp(interpolate(schedule, from, to, progress, start_progress), std::min(from, to), std::max(from, to));
}

std::string_view phase_name(Phase phase) {
  switch (phase) {
    case Phase::kLearn:
      return "learn";
    case Phase::kHarden:
      return "harden";
    case Phase::kDone:
      return "done";
  }
  throw std::invalid_argument(fmt::format("phase must be one of the three enumerators, got {}", int(phase)));
}

HardeningWindow::HardeningWindow(std::int64_t total_steps, double start, double end) : total_steps(total_steps) {
  if (total_steps < 1) throw std::invalid_argument(fmt::format("total_steps must be at least 1, got {}", total_steps));
  if (!(start >= 0 && start < end && end <= 1)) {
    throw std::invalid_argument(
        fmt::format("start and end must satisfy 0 <= start < end <= 1, got {} and {}", start, end));
  }
  first_step = ceil_of_fraction(start, total_steps);
  last_step = std::min(ceil_of_fraction(end, total_steps), total_steps);
  if (first_step >= last_step) {
    throw std::invalid_argument(
        fmt::format("the window from {} to {} of total_steps = {} must hold at least one step, it holds none", start,
                    end, total_steps));
  }
}

Phase HardeningWindow::phase(std::int64_t step) const {
  require_step(step);
  if (step < first_step) return Phase::kLearn;
  return step < last_step ? Phase::kHarden : Phase::kDone;
}

double HardeningWindow::progress(std::int64_t step) const {
  require_step(step);
  if (step >= last_step) return 1;
  if (step <= first_step) return 0;
  return static_cast<double>(step - first_step) / static_cast<double>(last_step - first_step);
}

}  // namespace lambda_gelu
