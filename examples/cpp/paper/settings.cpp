#include "paper/settings.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <stdexcept>
#include <vector>

namespace paper {
namespace {

constexpr System kSystems[] = {
    {
        .name = "fashion-mnist",
        .row = "FMNIST",
        .full_size = true,
        .metric_name = "accuracy",
        .epochs = 50,
        .batch_size = 256,
        .optimizer = "SGD",
        .lr = 0.05,
        .weight_decay = 5e-4,
        .steps_per_epoch = std::nullopt,
        .warmup_epochs = 0,
        .final_rate = 0.1,
        .betas = {0.9, 0.999},
        .clip = std::nullopt,
        .score_batch = 512,
        .temperature = 0.1,
        .lr_multiplier = 0.1,
    },
    {
        .name = "gpt4x128-bytes",
        .row = "WikiText-2",
        .full_size = false,
        .metric_name = "perplexity",
        .epochs = 10,
        .batch_size = 16,
        .optimizer = "AdamW",
        .lr = 2e-3,
        .weight_decay = 0.1,
        .steps_per_epoch = 160,
        .warmup_epochs = 0.5,
        .final_rate = 0.1,
        .betas = {0.9, 0.95},
        .clip = 1,
        .score_batch = 64,
        .temperature = 0.1,
        .lr_multiplier = 10,
    },
};

constexpr Arm kArms[] = {
    {"gelu", Activation::kGELU, "uniform"},
    {"relu", Activation::kReLU, "uniform"},
    {"uniform", Activation::kLambdaGELU, "uniform"},
    {"increasing", Activation::kLambdaGELU, "increasing"},
    {"decreasing", Activation::kLambdaGELU, "decreasing"},
};

std::string_view name_of(Activation activation) {
  return activation == Activation::kGELU ? "GELU" : activation == Activation::kReLU ? "ReLU" : "λ-GELU";
}

template <typename Item>
const Item& find(std::span<const Item> items, std::string_view option, std::string_view name) {
  const auto found = std::ranges::find(items, name, &Item::name);
  if (found != items.end()) return *found;
  std::vector<std::string_view> names;
  for (const auto& item : items) names.push_back(item.name);
  throw std::invalid_argument(fmt::format("{} expects one of {}; got '{}'", option, fmt::join(names, ", "), name));
}

JsonObject settings_of(const Arm& arm) {
  return JsonObject()
      .add("name", arm.name)
      .add("activation", name_of(arm.activation))
      .add("init", arm.init)
      .add("per", "layer")
      .add("temperature", std::nullopt)
      .add("lr_multiplier", std::nullopt)
      .add("start", kStart)
      .add("hardens", true)
      .add("schedule", "linear")
      .add("gate_gap", kGateGap)
      .add("tolerance_db", std::nullopt)
      .add("allowed_loss", std::nullopt)
      .add("recovery", 0.0);
}

}  // namespace

std::span<const System> systems() {
  return kSystems;
}
std::span<const Arm> arms() {
  return kArms;
}
const System& system_of(std::string_view name) {
  return find(systems(), "--system", name);
}
const Arm& arm_of(std::string_view name) {
  return find(arms(), "--arm", name);
}

double System::rate(std::int64_t step, std::int64_t steps_of_epoch) const {
  const double warmup = std::nearbyint(warmup_epochs * static_cast<double>(steps_of_epoch));
  const auto at = static_cast<double>(step);
  if (at < warmup) return (at + 1) / warmup;
  const double rest = std::max(1.0, epochs * static_cast<double>(steps_of_epoch) - warmup);
  const double progress = std::min(1.0, (at - warmup) / rest);
  return final_rate + (1 - final_rate) * (1 + std::cos(std::numbers::pi * progress)) / 2;
}

JsonObject settings_of(const System& system, const Arm& arm, std::optional<int> examples) {
  return JsonObject()
      .add("name", system.name)
      .add("row", system.row)
      .add("full_size", system.full_size)
      .add("metric_name", system.metric_name)
      .add("epochs", system.epochs)
      .add("batch_size", system.batch_size)
      .add("optimizer", system.optimizer)
      .add("lr", system.lr)
      .add("weight_decay", system.weight_decay)
      .add("steps_per_epoch", system.steps_per_epoch)
      .add("warmup_epochs", system.warmup_epochs)
      .add("final_rate", system.final_rate)
      .add("betas", std::vector<double>(system.betas.begin(), system.betas.end()))
      .add("clip", system.clip)
      .add("score_batch", system.score_batch)
      .add("temperature", system.temperature)
      .add("lr_multiplier", system.lr_multiplier)
      .add("arm", settings_of(arm))
      .add("examples", examples);
}

}  // namespace paper
