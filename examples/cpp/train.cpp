// Table II of the lambda-GELU paper (arXiv 2603.21991) in small. Three multilayer perceptrons that differ only in their
// activation are trained, each with several seeds:
//
//   GELU      swapped to ReLU after training, without any weight update
//   λ-GELU    λ learned, then raised to its target, then swapped
//   ReLU      trained as a ReLU network from the start: the honest baseline, to which nothing is done
//
// The figures are those of the last epoch. train --help lists the options.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Parallel.h>
#include <lambda_gelu/lambda_gelu.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/sgd.h>

#include <iostream>
#include <optional>

#include "data.h"
#include "options.h"
#include "report.h"

namespace {

constexpr int kHiddenLayers = 4, kClasses = 10;
constexpr double kLearningRate = 0.05, kMomentum = 0.9, kWeightDecay = 1e-4;
constexpr double kHardnessMultiplier = 1;  // with the default of 10 and SGD every lambda soon sits at 1

struct DataSet {
  std::string name;
  at::Tensor train_x, train_y, validation_x, validation_y;  // (N, pixels) float32 and (N,) int64
  int width, batch_size, epochs, seeds;
  bool small;  // a step is over before a second thread has woken up
};

at::Tensor pixels_of(const Images& images) {
  const auto count = static_cast<int64_t>(images.labels.size());
  return at::from_blob(const_cast<float*>(images.pixels.data()), {count, images.features}, at::kFloat).clone();
}

at::Tensor labels_of(const Images& images) {
  const auto count = static_cast<int64_t>(images.labels.size());
  return at::from_blob(const_cast<int64_t*>(images.labels.data()), {count}, at::kLong).clone();
}

DataSet load_digits(const std::string& csv) {
  const auto images = read_digits(csv);
  const auto x = pixels_of(images) / 8 - 1, y = labels_of(images);
  // Neighbours have the same writer, so both parts have the same writers.
  const auto is_validation = at::arange(y.size(0)).remainder(2) == 1;
  return {"handwritten digits (every second image for validation)",
          x.index({~is_validation}),
          y.index({~is_validation}),
          x.index({is_validation}),
          y.index({is_validation}),
          /*width=*/64,
          /*batch_size=*/64,
          /*epochs=*/60,
          /*seeds=*/5,
          /*small=*/true};
}

DataSet load_fashion_mnist(const std::string& folder) {
  const auto images = read_idx(folder);
  const auto x = (pixels_of(images) / 255 - 0.2860) / 0.3530,
             y = labels_of(images);  // mean and deviation of the pixels
  const int64_t validation = y.size(0) / 6;
  const int64_t train = y.size(0) - validation;
  return {"Fashion-MNIST (last sixth of the training images for validation)",
          x.narrow(0, 0, train),
          y.narrow(0, 0, train),
          x.narrow(0, train, validation),
          y.narrow(0, train, validation),
          /*width=*/256,
          /*batch_size=*/128,
          /*epochs=*/15,
          /*seeds=*/3,
          /*small=*/false};
}

enum class Activation { kGELU, kLambdaGELU, kReLU };

std::string name_of(Activation activation) {
  return activation == Activation::kGELU ? "GELU" : activation == Activation::kReLU ? "ReLU" : "λ-GELU";
}

class Network : public torch::nn::Module {
 public:
  Network(int64_t features, int64_t width, Activation activation) : activation_(activation) {
    for (int i = 0; i < kHiddenLayers; ++i) {
      hidden_.push_back(
          register_module("hidden" + std::to_string(i), torch::nn::Linear(i == 0 ? features : width, width)));
      if (activation == Activation::kLambdaGELU) {
        sites_.push_back(register_module("activation" + std::to_string(i), lambda_gelu::LambdaGELU()));
      }
    }
    output_ = register_module("output", torch::nn::Linear(width, kClasses));
  }

  at::Tensor forward(at::Tensor x) {
    for (int i = 0; i < kHiddenLayers; ++i) x = activate(i, hidden_[i]->forward(x));
    return output_->forward(x);
  }

  // From now on the network computes ReLU, with the weights that it has.
  std::optional<lambda_gelu::SubstitutionReport> swap_to_relu() {
    if (activation_ == Activation::kLambdaGELU) return lambda_gelu::to_relu_(*this);
    activation_ = Activation::kReLU;
    return std::nullopt;
  }

 private:
  at::Tensor activate(int layer, const at::Tensor& x) {
    if (activation_ == Activation::kGELU) return at::gelu(x);
    return activation_ == Activation::kReLU ? at::relu(x) : sites_[layer]->forward(x);
  }

  Activation activation_;
  std::vector<torch::nn::Linear> hidden_;
  std::vector<lambda_gelu::LambdaGELU> sites_;
  torch::nn::Linear output_{nullptr};
};

// On the validation images, in percent.
double accuracy(Network& network, const DataSet& data) {
  at::NoGradGuard no_grad;
  const auto correct = network.forward(data.validation_x).argmax(1) == data.validation_y;
  return 100 * correct.to(at::kDouble).mean().item<double>();
}

void train_epoch(Network& network, torch::optim::Optimizer& optimizer, const DataSet& data, at::Generator& order) {
  const auto permutation = at::randperm(data.train_y.size(0), order, at::kLong);
  for (const auto& batch : permutation.split(data.batch_size)) {
    optimizer.zero_grad();
    const auto prediction = network.forward(data.train_x.index_select(0, batch));
    at::cross_entropy_loss(prediction, data.train_y.index_select(0, batch)).backward();
    optimizer.step();
  }
}

struct Result {
  double before, after;
  std::optional<lambda_gelu::SubstitutionReport> report;
};

Result train(Activation activation, uint64_t seed, const DataSet& data, const Options& options, int epochs,
             ProgressBar& bar) {
  at::manual_seed(seed);
  auto order = at::make_generator<at::CPUGeneratorImpl>(seed);
  Network network(data.train_x.size(1), data.width, activation);

  const auto sgd = torch::optim::SGDOptions(kLearningRate).momentum(kMomentum).weight_decay(kWeightDecay);
  std::vector<torch::optim::OptimizerParamGroup> groups;
  std::optional<lambda_gelu::HardnessScheduler> scheduler;
  if (activation == Activation::kLambdaGELU) {
    lambda_gelu::init_hardness_(network, options.init);
    groups = lambda_gelu::make_param_groups(network, sgd,
                                            lambda_gelu::HardnessGroupOptions().lr_multiplier(kHardnessMultiplier));
    scheduler.emplace(network, epochs,
                      lambda_gelu::HardnessSchedulerOptions().target(options.target).schedule(options.schedule));
  } else {
    groups.emplace_back(network.parameters());
  }
  torch::optim::SGD optimizer(groups, sgd);

  for (int epoch = 0; epoch < epochs; ++epoch) {
    train_epoch(network, optimizer, data, order);
    if (scheduler) scheduler->step();
    bar.advance("seed " + std::to_string(seed) + ", " + name_of(activation));
  }
  Result result{accuracy(network, data), 0, std::nullopt};
  result.report = network.swap_to_relu();
  result.after = accuracy(network, data);
  return result;
}

void run(const Options& options) {
  const auto data = options.data_dir ? load_fashion_mnist(*options.data_dir) : load_digits(options.digits);
  if (data.small) at::set_num_threads(1);
  const int epochs = options.epochs.value_or(data.epochs), seeds = options.seeds.value_or(data.seeds);
  std::vector<Row> rows{
      {"GELU -> ReLU", {}, {}, true}, {"λ-GELU, hardened -> ReLU", {}, {}, true}, {"ReLU from scratch", {}, {}, false}};
  std::optional<lambda_gelu::SubstitutionReport> report;
  {
    ProgressBar bar(3 * seeds * epochs);
    for (int i = 0; i < seeds; ++i) {
      for (const auto activation : {Activation::kGELU, Activation::kLambdaGELU, Activation::kReLU}) {
        const auto result = train(activation, options.seed + static_cast<uint64_t>(i), data, options, epochs, bar);
        auto& row = rows[static_cast<size_t>(activation)];
        row.before.push_back(result.before);
        row.after.push_back(result.after);
        if (result.report) report = result.report;
      }
    }
  }
  std::cout << format_table(data.name + "\nValidation accuracy in %, mean ± standard deviation over " +
                                std::to_string(seeds) + (seeds == 1 ? " seed" : " seeds"),
                            rows)
            << "\nThe swap of the last λ-GELU network: " << *report;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const auto options = parse_options(argc, argv);
    if (options.help) {
      std::cout << usage();
    } else {
      run(options);
    }
    return 0;
  } catch (const c10::Error& error) {
    std::cerr << "train: " << error.what_without_backtrace() << "\n";
  } catch (const std::exception& error) {
    std::cerr << "train: " << error.what() << "\n";
  }
  return 2;
}
