// Trains a few steps with the installed library, hardens and swaps to ReLU; exits 0 if the loss fell and the swap
// left the predictions of the hardened network unchanged but for a little.
#include <lambda_gelu/lambda_gelu.h>
#include <torch/torch.h>

#include <cstdio>

int main() {
  torch::manual_seed(0);
  torch::nn::Sequential model(torch::nn::Linear(8, 32), lambda_gelu::LambdaGELU(), torch::nn::Linear(32, 1));
  const auto x = torch::randn({256, 8});
  const auto target = (x * x).sum(1, /*keepdim=*/true);

  const auto groups = lambda_gelu::make_param_groups(*model, torch::optim::AdamOptions(1e-2));
  torch::optim::Adam optimizer(groups);
  const int steps = 40;
  lambda_gelu::HardnessScheduler scheduler(*model, steps);
  double first = 0, last = 0;
  for (int step = 0; step < steps; ++step) {
    optimizer.zero_grad();
    const auto loss = torch::mse_loss(model->forward(x), target);
    loss.backward();
    optimizer.step();
    scheduler.step();
    last = loss.item<double>();
    if (step == 0) first = last;
  }

  torch::NoGradGuard no_grad;
  const auto hardened = model->forward(x);
  lambda_gelu::to_relu_(*model);
  const double change = (model->forward(x) - hardened).abs().max().item<double>();
  std::printf("loss %.3f -> %.3f, largest change of a prediction by the swap %.3g\n", first, last, change);
  return last < 0.5 * first && change < 0.5 && change > 0 ? 0 : 1;
}
