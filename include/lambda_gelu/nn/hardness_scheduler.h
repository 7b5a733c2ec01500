#pragma once

#include <lambda_gelu/export.h>
#include <lambda_gelu/math/relu_gap.h>
#include <lambda_gelu/math/schedule.h>
#include <lambda_gelu/nn/sites.h>
#include <lambda_gelu/nn/targets.h>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace lambda_gelu {

struct LAMBDA_GELU_API HardnessSchedulerOptions {
  /// Which part of the run hardens, 0 <= start < end <= 1 (0.25: a second-hand reading of arXiv 2603.21991). With end <
  /// 1 the last steps train at the target.
  TORCH_ARG(double, start) = 0.25;
  TORCH_ARG(double, end) = 1.0;
  /// lambda to reach at every site, finite and positive: 7.98, a gate gap of 0.1 (which is ours).
  TORCH_ARG(double, target) = target_from_gate_gap(0.1);
  /// Where not empty, used instead of `target`: for every site by its name one value, or one for each of its lambda, as
  /// suggest_targets gives them.
  TORCH_ARG(SiteTargets, site_targets);
  /// kLinear is the paper's.
  TORCH_ARG(Schedule, schedule) = Schedule::kLinear;
};

/// Learns lambda first, then freezes it and raises it to a target (arXiv 2603.21991).
///
/// The steps are the caller's unit, epochs or batches; call step() after each. Before step ceil(start * total_steps)
/// lambda is learned. From then on every site is frozen and its lambda follows the schedule, from the lambda it has
/// learned, channel by channel, to the target that it reaches at step ceil(end * total_steps) and keeps. A learned
/// lambda that is at or above its target is kept: hardening never lowers lambda.
///
/// Throws c10::ValueError that names the argument, what was expected and what came; nothing has changed then.
class LAMBDA_GELU_API HardnessScheduler {
 public:
  /// total_steps >= 1. The model's sites are kept alive. To be made at step 0 of the run, or followed by load().
  HardnessScheduler(torch::nn::Module& model, int64_t total_steps, const HardnessSchedulerOptions& options = {});

  /// To be called after every step of the run. Beyond the end lambda stays at its target. Throws c10::Error where a
  /// step that was to learn lambda finds it frozen, as after loading a hardened model without its scheduler.
  void step();

  Phase phase() const { return window_.phase(step_); }

  /// The present lambda of every site: name and detached tensor of shape (num_parameters,).
  std::vector<std::pair<std::string, at::Tensor>> get_last_hardness() const;

  /// Writes plan, step and the lambda from which hardening started; also torch::save(scheduler, ...).
  void save(torch::serialize::OutputArchive& archive) const;
  /// Resumes a run; also torch::load(scheduler, ...). The model's own state is loaded with the model, before or after.
  /// A state in the learning phase touches no site: what the model has frozen stays so until unfreeze_hardness().
  /// The state of another plan (steps, window, schedule, targets) or of a model with other sites is refused.
  void load(torch::serialize::InputArchive& archive);

 private:
  using Hardness = std::vector<std::vector<double>>;  // by site and channel

  void move_to(int64_t step, Hardness learned);
  Hardness learned_hardness() const;

  std::vector<Site> sites_;
  HardeningWindow window_;
  HardnessSchedulerOptions options_;
  Hardness targets_;  // one value, or one for each channel
  int64_t step_ = 0;
  Hardness learned_;  // at the switch; empty before
};

LAMBDA_GELU_API torch::serialize::OutputArchive& operator<<(torch::serialize::OutputArchive& archive,
                                                            const HardnessScheduler& scheduler);
LAMBDA_GELU_API torch::serialize::InputArchive& operator>>(torch::serialize::InputArchive& archive,
                                                           HardnessScheduler& scheduler);

}  // namespace lambda_gelu
