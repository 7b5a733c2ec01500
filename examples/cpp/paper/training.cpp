#include "paper/training.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <lambda_gelu/lambda_gelu.h>
#include <torch/nn/utils/clip_grad.h>
#include <torch/optim/adamw.h>
#include <torch/optim/sgd.h>
#include <torch/serialize/archive.h>
#include <torch/version.h>

#include <chrono>
#include <cmath>
#include <ctime>
#include <fstream>
#include <limits>
#include <map>
#include <ostream>
#include <sstream>
#include <thread>
#include <utility>

#include "paper/networks.h"
#include "paper/splits.h"

namespace paper {
namespace {

using Optimizer = std::unique_ptr<torch::optim::Optimizer>;

constexpr double kMomentum = 0.9;

class Stopwatch {
 public:
  /// Seconds since the last call, or since the beginning.
  double lap() {
    const auto now = std::chrono::steady_clock::now();
    return std::chrono::duration<double>(now - std::exchange(at_, now)).count();
  }

 private:
  std::chrono::steady_clock::time_point at_ = std::chrono::steady_clock::now();
};

// One seed for a seed and an epoch: not the same for neighbours. As in Python.
uint64_t mixed_seed(std::initializer_list<uint64_t> parts) {
  uint64_t mixed = 0;
  for (const uint64_t part : parts) {
    mixed = (mixed * 6364136223846793005U + part + 1442695040888963407U) & ((uint64_t{1} << 63U) - 1);
  }
  return mixed;
}

std::string processor() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("model name")) return line.substr(std::min(line.size(), line.find(':') + 2));
  }
  return "unknown";
}

JsonObject machine() {
  const std::time_t now = std::time(nullptr);
  char date[sizeof "2026-01-01"];
  std::strftime(date, sizeof date, "%Y-%m-%d", std::gmtime(&now));
  return JsonObject()
      .add("device", processor())
      .add("cores", static_cast<int>(std::thread::hardware_concurrency()))
      .add("threads", at::get_num_threads())
      .add("processes", 1)
      .add("language", "C++")
      .add("compiler", LG_COMPILER)
      .add("torch", TORCH_VERSION)
      .add("lambda_gelu", LG_VERSION)
      .add("instructions", lambda_gelu::cpu_target())
      .add("date", date);
}

struct Score {
  double loss, metric;

  JsonObject json() const { return JsonObject().add("loss", loss).add("metric", metric); }
};

at::Tensor cross_entropy(const at::Tensor& logits, const at::Tensor& targets, at::Reduction::Reduction reduction) {
  return at::cross_entropy_loss(logits.flatten(0, -2), targets.flatten(), /*weight=*/{}, reduction);
}

// Calls visit(part) for everything once, without gradients.
template <typename Visit>
void in_order(Network& network, const Split& split, int64_t size, const Visit& visit) {
  const at::NoGradGuard no_grad;
  network.eval();
  for (int64_t start = 0; start < split.size(); start += size) {
    const auto part = split.slice(start, std::min(size, split.size() - start));
    visit(part, network.forward(part.inputs()));
  }
  network.train();
}

Score score(const System& system, Network& network, const Split& split) {
  double loss = 0;
  int64_t correct = 0, count = 0;
  in_order(network, split, system.score_batch, [&](const Split& part, const at::Tensor& logits) {
    const auto targets = part.targets();
    loss += cross_entropy(logits, targets, at::Reduction::Sum).item<double>();
    correct += (logits.flatten(0, -2).argmax(-1) == targets.flatten()).sum().item<int64_t>();
    count += targets.numel();
  });
  const double mean = loss / static_cast<double>(count);
  if (!system.higher_is_better()) return {mean, std::exp(std::min(mean, 700.0))};
  return {mean, 100 * static_cast<double>(correct) / static_cast<double>(count)};
}

lambda_gelu::ActivationStatistics calibrate(const System& system, Network& network, const Split& split) {
  lambda_gelu::ObserveActivations observe(network);
  in_order(network, split, system.score_batch, [](const Split&, const at::Tensor&) {});
  return observe.statistics();
}

double hardness_of(const lambda_gelu::Site& site) {
  return site.module->hardness().mean().item<double>();
}

// What is known of a site, in the order of a record.
struct Facts {
  std::string name;
  double hardness, sigma, kappa, ser_db, zeros;
};

std::vector<Facts> facts(Network& network, const lambda_gelu::ActivationStatistics& statistics) {
  std::vector<Facts> found;
  for (const auto& site : lambda_gelu::find_sites(network)) {
    const auto whole = statistics.at(site.name).whole();
    const double hardness = hardness_of(site);
    found.push_back(
        {site.name, hardness, whole.std(), hardness * whole.std(), whole.ser_db(hardness), whole.zero_share()});
  }
  return found;
}

std::vector<double> column(const std::vector<Facts>& rows, double Facts::* member) {
  std::vector<double> values;
  for (const auto& row : rows) values.push_back(row.*member);
  return values;
}

class Run {
 public:
  Run(const Options& options, const Watcher& watcher)
      : system_(options.system),
        arm_(options.arm),
        options_(options),
        watcher_(watcher),
        splits_(load(system_, options.data_dir, options.examples)),
        steps_per_epoch_(std::min(std::max<int64_t>(1, splits_.train.size() / system_.batch_size),
                                  int64_t{system_.steps_per_epoch.value_or(std::numeric_limits<int>::max())})),
        record_(options.output) {
    if (arm_.activation == Activation::kGELU) make_twin();
    at::manual_seed(options.seed);
    network_ = make_network(system_, arm_.activation);
    if (arm_.activation == Activation::kLambdaGELU) {
      lambda_gelu::init_hardness_(*network_, arm_.init);
      scheduler_.emplace(
          *network_, system_.epochs * steps_per_epoch_,
          lambda_gelu::HardnessSchedulerOptions().start(kStart).target(lambda_gelu::target_from_gate_gap(kGateGap)));
    }
    optimizer_ = make_optimizer();
    for (const auto& group : optimizer_->param_groups()) initial_lr_.push_back(group.options().get_lr());
  }

  void train(std::ostream& report) {
    watcher_.start(system_.epochs * steps_per_epoch_);
    write_head();
    note(0, 0);
    for (int epoch = 1; epoch <= system_.epochs; ++epoch) {
      Stopwatch watch;
      train_epoch(epoch);
      note(epoch, watch.lap());
    }
    write_end(report);
  }

 private:
  struct Best {
    int epoch;
    double metric;
    std::string weights;
  };

  // A GELU network has no sites to look at: its twin with lambda = 1, the same function, has them.
  void make_twin() {
    twin_ = make_network(system_, Activation::kLambdaGELU);
    for (const auto& site : lambda_gelu::find_sites(*twin_)) {
      site.module->freeze_hardness();
      site.module->set_hardness(1.0);
    }
  }

  // The network with sites, if there is one.
  Network* with_sites() {
    if (arm_.activation == Activation::kLambdaGELU) return network_.get();
    if (twin_ == nullptr) return nullptr;
    const at::NoGradGuard no_grad;
    const auto weights = twin_->named_parameters();
    for (const auto& weight : network_->named_parameters()) weights[weight.key()].copy_(weight.value());
    return twin_.get();
  }

  template <typename Options>
  std::vector<torch::optim::OptimizerParamGroup> groups(const Options& options) {
    if (arm_.activation == Activation::kLambdaGELU) {
      return lambda_gelu::make_param_groups(*network_, options,
                                            lambda_gelu::HardnessGroupOptions().lr_multiplier(system_.lr_multiplier));
    }
    return {torch::optim::OptimizerParamGroup(network_->parameters(), std::make_unique<Options>(options))};
  }

  Optimizer make_optimizer() {
    if (system_.optimizer == "SGD") {
      const auto sgd = torch::optim::SGDOptions(system_.lr).momentum(kMomentum).weight_decay(system_.weight_decay);
      return std::make_unique<torch::optim::SGD>(groups(sgd), sgd);
    }
    const auto adamw = torch::optim::AdamWOptions(system_.lr)
                           .betas({system_.betas[0], system_.betas[1]})
                           .weight_decay(system_.weight_decay);
    return std::make_unique<torch::optim::AdamW>(groups(adamw), adamw);
  }

  void train_epoch(int epoch) {
    auto order = at::make_generator<at::CPUGeneratorImpl>(mixed_seed({options_.seed, static_cast<uint64_t>(epoch)}));
    const auto chosen = at::randperm(splits_.train.size(), order, at::kLong);
    loss_sum_ = 0;
    for (int64_t i = 0; i < steps_per_epoch_; ++i) {
      train_step(epoch, chosen.slice(0, i * system_.batch_size, (i + 1) * system_.batch_size));
      watcher_.advance("epoch " + std::to_string(epoch) + ", " + score_line_);
      if (watcher_.stop()) throw Interrupted("stopped after step " + std::to_string(step_));
    }
  }

  void train_step(int epoch, const at::Tensor& chosen) {
    const double rate = system_.rate(step_, steps_per_epoch_);
    auto& param_groups = optimizer_->param_groups();
    for (size_t i = 0; i < param_groups.size(); ++i) param_groups[i].options().set_lr(initial_lr_[i] * rate);
    const auto batch = splits_.train.select(chosen);
    optimizer_->zero_grad();
    const auto loss = cross_entropy(network_->forward(batch.inputs()), batch.targets(), at::Reduction::Mean);
    loss_sum_ += loss.item<float>();
    ++step_;
    if (!std::isfinite(loss_sum_)) end_without_loss(epoch);  // before it reaches a weight
    loss.backward();
    if (system_.clip) {
      std::vector<at::Tensor> weights;
      for (const auto& group : param_groups) {
        weights.insert(weights.end(), group.params().begin(), group.params().end());
      }
      torch::nn::utils::clip_grad_norm_(weights, *system_.clip);
    }
    optimizer_->step();
    if (scheduler_) scheduler_->step();
  }

  // --- the record ----------------------------------------------------------------------------------------------------

  void write_head() {
    std::vector<std::string> sites;
    if (Network* network = with_sites()) {
      for (const auto& site : lambda_gelu::find_sites(*network)) sites.push_back(site.name);
    }
    int64_t parameters = 0;
    for (const auto& parameter : network_->parameters()) parameters += parameter.numel();
    record_.write(JsonObject()
                      .add("kind", "run")
                      .add("format", 1)
                      .add("system", system_.name)
                      .add("arm", arm_.name)
                      .add("seed", static_cast<int64_t>(options_.seed))
                      .add("settings", settings_of(system_, arm_, options_.examples))
                      .add("sites", sites)
                      .add("parameters", parameters)
                      .add("steps_per_epoch", steps_per_epoch_)
                      .add("machine", machine()));
  }

  // Measures the network after an epoch, or before the first, and writes the line.
  void note(int epoch, double train_seconds) {
    Stopwatch watch;
    const auto now = score(system_, *network_, splits_.held_out);
    const double validation_seconds = watch.lap();
    std::optional<Score> as_relu;
    std::vector<Facts> sites;
    double as_relu_seconds = 0, statistics_seconds = 0;
    if (Network* network = with_sites()) {
      {
        const lambda_gelu::ReluSubstituted guard(*network);
        as_relu = score(system_, *network, splits_.held_out);
      }
      as_relu_seconds = watch.lap();
      sites = facts(*network, calibrate(system_, *network, splits_.calibration));
      statistics_seconds = watch.lap();
    }
    const auto hardness = column(sites, &Facts::hardness);
    if (hardness_.empty()) hardness_ = hardness;
    std::vector<double> drift;
    for (size_t i = 0; i < hardness.size(); ++i) drift.push_back(std::abs(hardness[i] - hardness_[i]));
    hardness_ = hardness;

    std::optional<JsonObject> train_loss;
    if (epoch > 0) {
      train_loss = JsonObject().add("loss", static_cast<double>(loss_sum_) / static_cast<double>(steps_per_epoch_));
      keep("best", epoch, now.metric);
      if (as_relu) keep("best_as_relu", epoch, as_relu->metric);
    }
    const auto seconds = JsonObject()
                             .add("train", train_seconds)
                             .add("validation", validation_seconds)
                             .add("as_relu", as_relu_seconds)
                             .add("statistics", statistics_seconds)
                             .add("log", watch.lap());
    seconds_ += train_seconds + validation_seconds + as_relu_seconds + statistics_seconds;
    std::optional<std::string> phase;
    if (scheduler_) phase = lambda_gelu::phase_name(scheduler_->phase());
    record_.write(JsonObject()
                      .add("kind", "epoch")
                      .add("epoch", epoch)
                      .add("step", step_)
                      .add("phase", phase)
                      .add("rate", optimizer_->param_groups()[0].options().get_lr())
                      .add("train", train_loss)
                      .add("validation", now.json())
                      .add("as_relu", as_relu ? std::optional(as_relu->json()) : std::nullopt)
                      .add("hardness", hardness)
                      .add("sigma", column(sites, &Facts::sigma))
                      .add("kappa", column(sites, &Facts::kappa))
                      .add("ser_db", column(sites, &Facts::ser_db))
                      .add("zeros", column(sites, &Facts::zeros))
                      .add("drift", drift)
                      .add("seconds", seconds));
    std::ostringstream line;
    line.precision(4);
    line << system_.metric_name << " " << now.metric;
    score_line_ = line.str();
  }

  void keep(const std::string& rule, int epoch, double metric) {
    const auto found = best_.find(rule);
    if (found == best_.end() ? !std::isnan(metric) : system_.better(metric, found->second.metric)) {
      best_[rule] = {epoch, metric, weights()};
    }
  }

  std::string weights() const {
    torch::serialize::OutputArchive archive;
    network_->save(archive);
    std::ostringstream stream;
    archive.save_to(stream);
    return stream.str();
  }

  void set_weights(const std::string& weights) {
    std::istringstream stream(weights);
    torch::serialize::InputArchive archive;
    archive.load_from(stream);
    network_->load(archive);
  }

  [[noreturn]] void end_without_loss(int epoch) {
    record_.write(JsonObject()
                      .add("kind", "end")
                      .add("status", "non-finite loss")
                      .add("where", JsonObject().add("epoch", epoch).add("step", step_))
                      .add("seconds", seconds_));
    throw NonFiniteLoss("the loss stopped being finite in epoch " + std::to_string(epoch) + ", step " +
                        std::to_string(step_));
  }

  // --- the swap ------------------------------------------------------------------------------------------------------

  void write_end(std::ostream& report) {
    Stopwatch watch;
    best_["last"] = {system_.epochs, std::numeric_limits<double>::quiet_NaN(), weights()};
    JsonObject end;
    end.add("kind", "end").add("status", "finished").add("where", std::nullopt);
    for (const char* rule : {"best", "best_as_relu", "last"}) {
      if (const auto kept = best_.find(rule); kept != best_.end()) end.add(rule, swapped(kept->second, rule, report));
    }
    record_.write(end.add("seconds", seconds_ + watch.lap()));
  }

  JsonObject swapped(const Best& best, const std::string& rule, std::ostream& report) {
    set_weights(best.weights);
    JsonObject line = scores(*network_).add("epoch", best.epoch);
    Network* network = with_sites();
    if (network == nullptr) return line.add("swapped", std::nullopt);
    const auto statistics = calibrate(system_, *network, splits_.calibration);
    std::vector<JsonObject> sites;
    for (const auto& site : facts(*network, statistics)) {
      sites.push_back(JsonObject()
                          .add("name", site.name)
                          .add("hardness", site.hardness)
                          .add("sigma", site.sigma)
                          .add("kappa", site.kappa)
                          .add("ser_db", site.ser_db)
                          .add("zeros", site.zeros));
    }
    line.add("sites", sites);
    if (rule == "last") {  // nothing needs its lambda any more
      const auto done = lambda_gelu::to_relu_(*network, statistics);
      const auto after = scores(*network);
      report << "The swap after the last epoch: " << done;
      return line.add("swapped", after);
    }
    const lambda_gelu::ReluSubstituted guard(*network);
    return line.add("swapped", scores(*network));
  }

  JsonObject scores(Network& network) const {
    return JsonObject()
        .add("validation", score(system_, network, splits_.held_out).json())
        .add("test", score(system_, network, splits_.test).json());
  }

  System system_;
  Arm arm_;
  Options options_;
  Watcher watcher_;
  Splits splits_;
  int64_t steps_per_epoch_;
  RecordFile record_;
  std::shared_ptr<Network> network_, twin_;
  std::optional<lambda_gelu::HardnessScheduler> scheduler_;
  Optimizer optimizer_;
  std::vector<double> initial_lr_;

  int64_t step_ = 0;
  float loss_sum_ = 0;
  double seconds_ = 0;
  std::vector<double> hardness_;
  std::string score_line_;
  std::map<std::string, Best> best_;
};

}  // namespace

void train(const Options& options, const Watcher& watcher, std::ostream& report) {
  at::set_num_threads(1);
  Run(options, watcher).train(report);
}

}  // namespace paper
