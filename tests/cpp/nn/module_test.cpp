#include <lambda_gelu/nn/lambda_gelu.h>
#include <lambda_gelu/ops/functional.h>
#include <torch/optim/adam.h>
#include <torch/optim/adamw.h>
#include <torch/optim/rmsprop.h>
#include <torch/optim/sgd.h>

#include <cmath>
#include <limits>
#include <numbers>

#include "support.h"

namespace lambda_gelu {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// Everything that a refused call must leave as it was.
struct Snapshot {
  explicit Snapshot(LambdaGELU& site)
      : raw(site->raw_hardness.detach().clone()),
        override(site->hardness_override.clone()),
        temperature(site->temperature()),
        frozen(site->is_frozen()),
        substituted(site->is_substituted()) {}

  void expect_unchanged(LambdaGELU& site) const {
    expect_same(site->raw_hardness.detach(), raw);
    expect_same(site->hardness_override, override);
    EXPECT_EQ(site->temperature(), temperature);
    EXPECT_EQ(site->is_frozen(), frozen);
    EXPECT_EQ(site->is_substituted(), substituted);
  }

  at::Tensor raw, override;
  double temperature;
  bool frozen, substituted;
};

TEST(LambdaGELU, StartsAtOnePlusLnTwo) {
  for (double temperature : {0.1, 1.0}) {
    LambdaGELU site(LambdaGELUOptions().temperature(temperature));
    expect_same(site->raw_hardness.detach(), at::zeros({1}));
    expect_same(site->hardness().detach(), tensor_of({1 + std::numbers::ln2}));
    EXPECT_TRUE(site->raw_hardness.requires_grad());
    EXPECT_FALSE(site->is_frozen());
    EXPECT_FALSE(site->is_substituted());
  }
}

TEST(LambdaGELU, RegistersOneParameterAndOneBuffer) {
  LambdaGELU site(LambdaGELUOptions(4).init_hardness(2.0));
  ASSERT_EQ(site->named_parameters().keys(), std::vector<std::string>{"raw_hardness"});
  ASSERT_EQ(site->named_buffers().keys(), std::vector<std::string>{"hardness_override"});
  EXPECT_EQ(site->raw_hardness.sizes(), at::IntArrayRef({4}));
  EXPECT_EQ(site->hardness_override.sizes(), at::IntArrayRef({4}));
  EXPECT_TRUE(site->hardness_override.isnan().all().item<bool>());
  expect_close(site->hardness().detach(), tensor_of({2, 2, 2, 2}), 1e-7);
}

TEST(LambdaGELU, ForwardIsTheScaledGelu) {
  const auto x = at::linspace(-3, 3, 61, at::kDouble);
  for (double hardness : {1.0001, 1.7, 8.0, 50.0}) {
    LambdaGELU site(LambdaGELUOptions().init_hardness(hardness));
    site->to(at::kDouble);
    site->set_hardness(hardness);
    const auto y = site(x).detach();
    expect_close(y, reference(x, tensor_of({hardness}, at::kDouble)), 1e-12, 1e-15);
  }
}

TEST(LambdaGELU, OneHardnessPerChannelInAnyDimension) {
  const auto hardness = tensor_of({1.2, 3, 9}, at::kDouble);
  LambdaGELU site(LambdaGELUOptions(3).channel_dim(-1));
  site->to(at::kDouble);
  site->set_hardness(hardness);
  const auto x = at::randn({2, 4, 3}, at::kDouble);
  expect_close(site(x).detach(), reference(x, hardness), 1e-12, 1e-14);
  expect_value_error([&] { site(at::randn({2, 4, 5}, at::kDouble)); }, "hardness", "3");
}

// Thousands of values, because two ways to compute softplus differ in the last bit for one double in two hundred.
TEST(LambdaGELU, ShownHardnessIsTheOneTheForwardUses) {
  for (auto dtype : {at::kFloat, at::kDouble, at::kBFloat16}) {
    LambdaGELU site(LambdaGELUOptions(4096).channel_dim(0));
    site->to(dtype);
    {
      at::NoGradGuard no_grad;
      site->raw_hardness.uniform_(-1, 1);
    }
    const auto input = at::randn({4096, 16}).to(dtype);
    const auto shown = site->hardness().detach();
    EXPECT_EQ(shown.scalar_type(), dtype == at::kDouble ? at::kDouble : at::kFloat);
    const auto learned = site(input).detach();
    expect_same(learned, lambda_gelu(input, shown, 0));
    site->freeze_hardness();
    expect_same(site(input).detach(), learned);
  }
}

TEST(LambdaGELU, HardnessIsDifferentiable) {
  LambdaGELU site;
  site->hardness().sum().backward();
  expect_close(site->raw_hardness.grad(), tensor_of({5}), 1e-6);  // sigmoid(0) / 0.1
}

// The gradients of the identity f(x; lambda) = GELU(lambda x) / lambda, taken by ATen.
TEST(LambdaGELU, GradientsAreThoseOfTheScaledGelu) {
  const auto values = at::linspace(-3, 3, 60, at::kDouble).view({20, 3});
  const auto weights = at::linspace(0.5, 2, 60, at::kDouble).view({20, 3});
  for (bool frozen : {false, true}) {
    LambdaGELU site(LambdaGELUOptions(3));
    site->to(at::kDouble);
    site->set_hardness(tensor_of({1.1, 2, 6}));
    if (frozen) site->freeze_hardness();
    const auto x = values.clone().requires_grad_(), x_reference = values.clone().requires_grad_();
    const auto raw = site->raw_hardness.detach().clone().requires_grad_();
    (weights * site(x)).sum().backward();
    (weights * reference(x_reference, 1 + at::log1p(at::exp(raw / 0.1)))).sum().backward();
    expect_close(x.grad(), x_reference.grad(), 1e-11, 1e-14);
    expect_close(site->raw_hardness.grad(), frozen ? at::zeros({3}, at::kDouble) : raw.grad(), 1e-11);
  }
}

TEST(LambdaGELU, SetHardnessIsShownAgain) {
  LambdaGELU site(LambdaGELUOptions(3));
  site->to(at::kDouble);
  for (double excess : {1e-6, 0.1, 1.0, 1e3}) {
    site->set_hardness(1 + excess);
    expect_close(site->hardness().detach(), at::full({3}, 1 + excess, at::kDouble), 1e-15);
  }
  site->set_hardness(tensor_of({1.5, 2, 30}));
  expect_close(site->hardness().detach(), tensor_of({1.5, 2, 30}, at::kDouble), 1e-15);
}

TEST(LambdaGELU, RefusesAHardnessWithoutMeaning) {
  LambdaGELU site(LambdaGELUOptions(3));
  for (bool frozen : {false, true}) {
    if (frozen) site->freeze_hardness();
    const Snapshot before(site);
    for (double value : {0.0, -1.0, kInf, kNaN}) {
      expect_value_error([&] { site->set_hardness(value); }, "hardness must be finite and positive", "got");
    }
    expect_value_error([&] { site->set_hardness(tensor_of({2, 2, kNaN})); }, "hardness", "got 2, 2, nan");
    expect_value_error([&] { site->set_hardness(tensor_of({2, 3})); }, "1 or 3 elements", "got 2");
    expect_value_error([&] { site->set_hardness(at::empty({0})); }, "1 or 3 elements", "got 0");
    expect_refusal<c10::TypeError>([&] { site->set_hardness(at::ones({1}, at::kComplexFloat)); }, "real", "Complex");
    expect_refusal<c10::TypeError>([&] { site->set_hardness(at::Tensor()); }, "undefined");
    before.expect_unchanged(site);
  }
}

TEST(LambdaGELU, ALearnedHardnessOfOneOrLessIsRefused) {
  LambdaGELU site(LambdaGELUOptions(2));
  const Snapshot before(site);
  for (double value : {1.0, 0.5}) {
    expect_value_error([&] { site->set_hardness(value); }, "above 1", "freeze_hardness");
    expect_value_error([&] { site->set_hardness(tensor_of({2, value})); }, "above 1", "freeze_hardness");
  }
  before.expect_unchanged(site);
}

TEST(LambdaGELU, AHardnessBeyondTheRangeOfTheDtypeIsRefused) {
  LambdaGELU site(LambdaGELUOptions().temperature(10));
  expect_value_error([&] { site->set_hardness(1e38); }, "range of Float", "got 1e+38");
  site->freeze_hardness();
  const Snapshot before(site);
  for (double value : {1e300, 1e-300}) {
    expect_value_error([&] { site->set_hardness(value); }, "finite and positive in Float", "got");
  }
  before.expect_unchanged(site);
}

TEST(LambdaGELU, FreezingChangesNoOutput) {
  LambdaGELU site;
  const auto x = at::randn({1000});
  const auto learned = site(x).detach();
  site->freeze_hardness();
  EXPECT_TRUE(site->is_frozen());
  expect_same(site(x).detach(), learned);
  at::NoGradGuard no_grad;
  expect_same(site(x), learned);
}

TEST(LambdaGELU, AHardnessThatIsNotFiniteIsNotFrozen) {
  for (const double raw : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    LambdaGELU module(LambdaGELUOptions().num_parameters(2));
    {
      at::NoGradGuard no_grad;
      module->raw_hardness[1].fill_(raw);
    }
    const auto raw_before = module->raw_hardness.detach().clone();
    const auto override_before = module->hardness_override.clone();
    expect_value_error([&] { module->freeze_hardness(); }, "hardness must be finite to be frozen, got 1.69");
    EXPECT_FALSE(module->is_frozen());
    expect_same(module->raw_hardness.detach(), raw_before);
    expect_same(module->hardness_override, override_before);
  }
}

TEST(LambdaGELU, FrozenForwardUsesTheOverrideToTheLastBit) {
  LambdaGELU site;
  const auto x = at::randn({1000});
  site->freeze_hardness();
  for (double value : {0.25, 1.0, 7.978845608028654, 64.0}) {
    site->set_hardness(value);
    const auto expected = lambda_gelu(x, tensor_of({value}));
    expect_same(site->hardness(), tensor_of({value}));
    expect_same(site(x).detach(), expected);
    at::NoGradGuard no_grad;
    expect_same(site(x), expected);
  }
}

TEST(LambdaGELU, FrozenRawHardnessHasAGradientOfExactlyZero) {
  LambdaGELU site(LambdaGELUOptions(3));
  site->freeze_hardness();
  auto x = at::randn({8, 3});
  x[0][0] = kInf;  // even where the gradient of lambda is not finite
  x.requires_grad_();
  site(x).sum().backward();
  ASSERT_TRUE(site->raw_hardness.grad().defined());
  expect_same(site->raw_hardness.grad(), at::zeros({3}));
  EXPECT_TRUE(x.grad().defined());
}

template <typename Optimizer, typename Options>
void expect_frozen_hardness_stays(Options options) {
  torch::nn::Sequential model = make_mlp();
  auto& site = site_of(model, 1);
  Optimizer optimizer(model->parameters(), options);
  const auto x = at::randn({16, 3});
  const auto train = [&] {
    optimizer.zero_grad();
    model->forward(x).square().sum().backward();
    optimizer.step();
  };
  for (int i = 0; i < 3; ++i) train();  // momentum for s
  site.freeze_hardness();
  site.set_hardness(3.3);
  const auto weight = model->ptr(0)->as<torch::nn::LinearImpl>()->weight.detach().clone();
  for (int i = 0; i < 5; ++i) {
    train();
    expect_same(site.hardness(), tensor_of({3.3}));
    expect_same(site.raw_hardness.grad(), at::zeros({1}));
    expect_same(site.forward(x).detach(), lambda_gelu(x, tensor_of({3.3})));
  }
  EXPECT_FALSE(at::equal(model->ptr(0)->as<torch::nn::LinearImpl>()->weight, weight));
}

TEST(LambdaGELU, NoOptimizerMovesAFrozenHardness) {
  using namespace torch::optim;
  expect_frozen_hardness_stays<SGD>(SGDOptions(0.01).momentum(0.9).weight_decay(0.1));
  expect_frozen_hardness_stays<Adam>(AdamOptions(0.01).weight_decay(0.1));
  expect_frozen_hardness_stays<AdamW>(AdamWOptions(0.01).weight_decay(0.1));
  expect_frozen_hardness_stays<RMSprop>(RMSpropOptions(0.01).momentum(0.9).weight_decay(0.1));
}

TEST(LambdaGELU, UnfreezingWritesTheOverrideBackIntoS) {
  LambdaGELU site(LambdaGELUOptions(2));
  site->freeze_hardness();
  site->set_hardness(tensor_of({2.5, 9}));
  site->unfreeze_hardness();
  EXPECT_FALSE(site->is_frozen());
  EXPECT_TRUE(site->hardness_override.isnan().all().item<bool>());
  expect_close(site->hardness().detach(), tensor_of({2.5, 9}), 1e-7);
  site(at::randn({4, 2})).sum().backward();
  EXPECT_NE(site->raw_hardness.grad().abs().min().item<double>(), 0);
}

TEST(LambdaGELU, UnfreezingKeepsTheHardnessWhateverHappenedToS) {
  LambdaGELU site;
  site->freeze_hardness();
  site->set_hardness(4);
  {
    at::NoGradGuard no_grad;
    site->raw_hardness.sub_(0.7);  // as momentum and weight decay do
  }
  site->unfreeze_hardness();
  expect_close(site->hardness().detach(), tensor_of({4}), 1e-7);
}

TEST(LambdaGELU, UnfreezingAnUntouchedHardnessGivesSBackToTheLastBit) {
  LambdaGELU site(LambdaGELUOptions(256).channel_dim(0));
  at::NoGradGuard no_grad;
  site->raw_hardness.uniform_(-2, 2);
  const auto raw = site->raw_hardness.clone();
  site->freeze_hardness();
  site->unfreeze_hardness();
  expect_same(site->raw_hardness, raw);
}

TEST(LambdaGELU, UnfreezingAfterCastsGivesSBackToo) {
  LambdaGELU site(LambdaGELUOptions(256).channel_dim(0));
  site->to(at::kDouble);
  site->to(at::kBFloat16);
  at::NoGradGuard no_grad;
  site->raw_hardness.uniform_(-2, 2);
  const auto raw = site->raw_hardness.clone();
  site->freeze_hardness();
  site->unfreeze_hardness();
  expect_same(site->raw_hardness, raw);
}

TEST(LambdaGELU, UnfreezingAHardnessThatNoSExpressesIsRefused) {
  LambdaGELU site(LambdaGELUOptions(2));
  site->freeze_hardness();
  for (double value : {1.0, 0.5}) {
    site->set_hardness(tensor_of({2, value}));
    const Snapshot before(site);
    expect_value_error([&] { site->unfreeze_hardness(); }, "above 1", "got 2, ");
    before.expect_unchanged(site);
  }
}

TEST(LambdaGELU, FreezingAndUnfreezingTwiceChangesNothing) {
  LambdaGELU site;
  site->unfreeze_hardness();
  EXPECT_FALSE(site->is_frozen());
  site->freeze_hardness();
  site->set_hardness(4);
  site->freeze_hardness();
  expect_same(site->hardness(), tensor_of({4}));
}

TEST(LambdaGELU, CastingTo16BitsRoundsNeitherSNorTheHardness) {
  LambdaGELU site(LambdaGELUOptions().init_hardness(1.7));
  const auto raw = site->raw_hardness.detach().clone();
  const auto learned = site->hardness().detach();
  site->to(at::kBFloat16);
  expect_same(site->raw_hardness, raw);
  expect_same(site->hardness(), learned);
  site->freeze_hardness();
  site->set_hardness(7.978845608028654);
  for (auto dtype : {at::kBFloat16, at::kHalf}) {
    site->to(dtype);
    EXPECT_EQ(site->raw_hardness.scalar_type(), at::kFloat);
    expect_same(site->hardness(), tensor_of({7.978845608028654}));
  }
  EXPECT_EQ(site(at::randn({8}, at::kHalf)).scalar_type(), at::kHalf);
  site->to(at::kDouble);
  EXPECT_EQ(site->hardness_override.scalar_type(), at::kDouble);
  site->to(at::Device(at::kCPU), at::kBFloat16);
  EXPECT_EQ(site->hardness_override.scalar_type(), at::kDouble);
}

TEST(LambdaGELU, CloneIsAnotherModuleInTheSameState) {
  LambdaGELU site(LambdaGELUOptions(2).temperature(0.5).channel_dim(-1));
  site->freeze_hardness();
  site->set_hardness(tensor_of({3, 5}));
  site->set_substituted(true);
  LambdaGELU copy(std::dynamic_pointer_cast<LambdaGELUImpl>(site->clone()));
  EXPECT_EQ(copy->temperature(), 0.5);
  EXPECT_EQ(copy->channel_dim(), -1);
  EXPECT_TRUE(copy->is_frozen());
  EXPECT_TRUE(copy->is_substituted());
  expect_same(copy->hardness(), tensor_of({3, 5}));

  copy->set_hardness(8);
  copy->set_substituted(false);
  copy->unfreeze_hardness();
  EXPECT_TRUE(site->is_frozen());
  EXPECT_TRUE(site->is_substituted());
  expect_same(site->hardness(), tensor_of({3, 5}));
}

TEST(LambdaGELU, CloneInsideAModelIsIndependentToo) {
  torch::nn::Sequential model = make_mlp();
  site_of(model, 1).set_hardness(4);
  site_of(model, 3).freeze_hardness();
  torch::nn::Sequential copy(std::dynamic_pointer_cast<torch::nn::SequentialImpl>(model->clone()));
  const auto x = at::randn({8, 3});
  expect_same(copy->forward(x).detach(), model->forward(x).detach());
  EXPECT_TRUE(site_of(copy, 3).is_frozen());
  const auto before = model->forward(x).detach();
  site_of(copy, 1).set_hardness(2);
  site_of(copy, 3).set_hardness(50);
  expect_same(model->forward(x).detach(), before);
}

TEST(LambdaGELU, ResetParametersBringsTheInitialHardnessBack) {
  LambdaGELU site(LambdaGELUOptions().init_hardness(3.0));
  const auto initial = site->hardness().detach();
  site->freeze_hardness();
  site->set_hardness(9);
  site->set_substituted(true);
  site->reset_parameters();
  EXPECT_FALSE(site->is_frozen());
  EXPECT_FALSE(site->is_substituted());
  expect_same(site->hardness().detach(), initial);
}

TEST(LambdaGELU, PrettyPrint) {
  const auto text = [](const LambdaGELU& site) {
    std::ostringstream stream;
    stream << site;
    return stream.str();
  };
  LambdaGELU one;
  EXPECT_EQ(text(one), "lambda_gelu::LambdaGELU(num_parameters=1, hardness=1.693, temperature=0.1)");
  LambdaGELU two(LambdaGELUOptions(2).channel_dim(-1));
  two->freeze_hardness();
  two->set_hardness(tensor_of({2, 8}));
  EXPECT_EQ(text(two),
            "lambda_gelu::LambdaGELU(num_parameters=2, hardness=2..8, temperature=0.1, channel_dim=-1, frozen)");
  one->set_substituted(true);
  EXPECT_EQ(text(one),
            "lambda_gelu::LambdaGELU(num_parameters=1, hardness=1.693, temperature=0.1, substituted by ReLU)");
}

TEST(LambdaGELU, ConstructorRefusesWhatHasNoMeaning) {
  for (int64_t count : {0, -3}) {
    expect_value_error([&] { LambdaGELU{LambdaGELUOptions(count)}; }, "num_parameters", "at least 1", "got");
  }
  for (double temperature : {0.0, -0.1, kInf, kNaN}) {
    expect_value_error([&] { LambdaGELU{LambdaGELUOptions().temperature(temperature)}; }, "temperature",
                       "finite and positive", "got");
  }
  for (double hardness : {1.0, 0.0, -2.0, kInf, kNaN}) {
    expect_value_error([&] { LambdaGELU{LambdaGELUOptions().init_hardness(hardness)}; }, "hardness", "got");
  }
}

// --- checkpoints -------------------------------------------------------------------------------------------------

TEST(LambdaGELUCheckpoint, CarriesALearnedHardness) {
  LambdaGELU site(LambdaGELUOptions(3)), other(LambdaGELUOptions(3));
  site->set_hardness(tensor_of({1.2, 2, 7}));
  other->freeze_hardness();
  other->set_substituted(true);
  load_from(saved(site), other);
  EXPECT_FALSE(other->is_frozen());
  EXPECT_FALSE(other->is_substituted());
  expect_same(other->raw_hardness.detach(), site->raw_hardness.detach());
  EXPECT_TRUE(other->raw_hardness.requires_grad());
}

TEST(LambdaGELUCheckpoint, CarriesAFrozenHardnessAndTheSubstitution) {
  LambdaGELU site, other;
  site->freeze_hardness();
  site->set_hardness(7.978845608028654);
  site->set_substituted(true);
  load_from(saved(site), other);
  EXPECT_TRUE(other->is_frozen());
  EXPECT_TRUE(other->is_substituted());
  expect_same(other->hardness(), site->hardness());
  const auto x = at::randn({10});
  expect_same(other(x), at::relu(x));
}

TEST(LambdaGELUCheckpoint, OfAnotherTemperatureMeansTheSameHardness) {
  LambdaGELU site(LambdaGELUOptions(8).temperature(0.05).channel_dim(0)), other(LambdaGELUOptions(8).channel_dim(0));
  {
    at::NoGradGuard no_grad;
    site->raw_hardness.uniform_(-0.2, 0.2);
  }
  load_from(saved(site), other);
  EXPECT_EQ(other->temperature(), 0.05);
  expect_same(other->hardness().detach(), site->hardness().detach());
  const auto x = at::randn({8, 100});
  expect_same(other(x).detach(), site(x).detach());
}

TEST(LambdaGELUCheckpoint, OfAnotherDtypeMeansTheSameHardness) {
  LambdaGELU site, other;
  site->to(at::kDouble);
  site->set_hardness(1.2345678901234567);
  load_from(saved(site), other);
  expect_same(other->hardness().detach(), site->hardness().detach());
}

TEST(LambdaGELUCheckpoint, OfAnotherNumberOfHardnessesIsRefused) {
  LambdaGELU three(LambdaGELUOptions(3).temperature(0.7)), one;
  three->freeze_hardness();
  const Snapshot before(one);
  expect_value_error([&] { load_from(saved(three), one); }, "raw_hardness must have shape [1]", "has [3]");
  before.expect_unchanged(one);
}

// An archive as save() writes it, but for one entry.
std::string forged(const at::Tensor& override, double temperature) {
  torch::serialize::OutputArchive archive;
  archive.write("raw_hardness", at::zeros({2}));
  archive.write("hardness_override", override, /*is_buffer=*/true);
  archive.write("temperature", temperature);
  archive.write("substituted", false);
  std::ostringstream stream;
  archive.save_to(stream);
  return stream.str();
}

TEST(LambdaGELUCheckpoint, ThatIsDamagedIsRefused) {
  LambdaGELU site(LambdaGELUOptions(2));
  const Snapshot before(site);
  for (double temperature : {0.0, -1.0, kNaN}) {
    expect_value_error([&] { load_from(forged(tensor_of({2, 3}), temperature), site); }, "temperature", "got");
  }
  for (const auto& override : {tensor_of({2, kNaN}), tensor_of({2, 0}), tensor_of({-1, 3}), tensor_of({2, kInf})}) {
    expect_value_error([&] { load_from(forged(override, 0.1), site); }, "hardness_override", "the checkpoint has");
  }
  EXPECT_THROW(load_from(saved(torch::nn::Linear(2, 2)), site), c10::Error);
  before.expect_unchanged(site);
  load_from(forged(tensor_of({2, 3}), 0.2), site);  // the forgery itself is sound
  EXPECT_TRUE(site->is_frozen());
}

}  // namespace
}  // namespace lambda_gelu
