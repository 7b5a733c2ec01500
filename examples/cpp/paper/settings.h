// What is trained and how: the systems and arms of examples/paper that exist in C++ too, with the same settings. No
// torch. tests/python/test_paper_cpp.py compares them with Python's.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "paper/record.h"

namespace paper {

/// As System in examples/paper/system.py, where the fields are explained.
struct System {
  std::string_view name, row;
  bool full_size;
  std::string_view metric_name;  ///< "accuracy" in percent, or "perplexity"
  int epochs, batch_size;
  std::string_view optimizer;  ///< "SGD", with momentum 0.9, or "AdamW"
  double lr, weight_decay;
  std::optional<int> steps_per_epoch;
  double warmup_epochs, final_rate;
  std::array<double, 2> betas;
  std::optional<double> clip;
  int score_batch;
  double temperature, lr_multiplier;

  bool higher_is_better() const { return metric_name == "accuracy"; }
  /// NaN never is.
  bool better(double metric, double than) const { return higher_is_better() ? metric > than : metric < than; }
  /// The part of the learning rate that a step of the run uses.
  double rate(std::int64_t step, std::int64_t steps_of_epoch) const;
};

/// The part of the run before lambda is hardened, and epsilon of the target sqrt(2 / pi) / epsilon that it then
/// reaches.
inline constexpr double kStart = 0.25, kGateGap = 0.1;

enum class Activation { kGELU, kReLU, kLambdaGELU };

/// As Arm in examples/paper/arm.py; those here have its defaults but for these.
struct Arm {
  std::string_view name;
  Activation activation;
  std::string_view init;  ///< lambda over depth
};

std::span<const System> systems();
std::span<const Arm> arms();

/// Throw std::invalid_argument that lists the names there are.
const System& system_of(std::string_view name);
const Arm& arm_of(std::string_view name);

/// What defines a run, as Run.head in examples/paper/training.py has it. examples: only so many of each part of the
/// data, to see whether it runs.
JsonObject settings_of(const System& system, const Arm& arm, std::optional<int> examples);

}  // namespace paper
