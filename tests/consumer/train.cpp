// train [<report.json>]: trains a few steps with the installed library, hardens to the targets that the statistics ask
// for, swaps to ReLU and writes the report; exits 0 if the loss fell and the swap left the predictions of the hardened
// network unchanged but for a little.
#include <lambda_gelu/lambda_gelu.h>
#include <torch/torch.h>

#include <cstdio>
#include <fstream>
#include <optional>

int main(int argc, char** argv) {
  torch::manual_seed(0);
  torch::nn::Sequential model(torch::nn::Linear(8, 32), lambda_gelu::LambdaGELU(), torch::nn::Linear(32, 1));
  const auto x = torch::randn({256, 8});
  const auto target = (x * x).sum(1, /*keepdim=*/true);

  const auto groups = lambda_gelu::make_param_groups(*model, torch::optim::AdamOptions(1e-2));
  torch::optim::Adam optimizer(groups);
  const int steps = 40;
  std::optional<lambda_gelu::HardnessScheduler> scheduler;
  double first = 0, last = 0;
  for (int step = 0; step < steps; ++step) {
    if (step == steps / 4) {
      lambda_gelu::ObserveActivations observe(*model);
      model->forward(x);
      const auto targets = lambda_gelu::suggest_targets(observe.statistics(), 30).targets;
      const auto options = lambda_gelu::HardnessSchedulerOptions().start(0).site_targets(targets);
      scheduler.emplace(*model, steps - step, options);
    }
    optimizer.zero_grad();
    const auto loss = torch::mse_loss(model->forward(x), target);
    loss.backward();
    optimizer.step();
    if (scheduler) scheduler->step();
    last = loss.item<double>();
    if (step == 0) first = last;
  }

  torch::NoGradGuard no_grad;
  lambda_gelu::ActivationStatistics statistics;
  at::Tensor hardened;
  {
    lambda_gelu::ObserveActivations observe(*model);
    hardened = model->forward(x);
    statistics = observe.statistics();
  }
  const auto report = lambda_gelu::to_relu_(*model, statistics);
  if (argc > 1) std::ofstream(argv[1]) << lambda_gelu::to_json(report);
  const double change = (model->forward(x) - hardened).abs().max().item<double>();
  std::printf("loss %.3f -> %.3f, largest change of a prediction by the swap %.3g\n", first, last, change);
  return last < 0.5 * first && change < 0.5 && change > 0 ? 0 : 1;
}
