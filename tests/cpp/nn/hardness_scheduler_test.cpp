#include <lambda_gelu/nn/hardness_scheduler.h>
#include <lambda_gelu/nn/param_groups.h>
#include <lambda_gelu/nn/substitution.h>
#include <torch/optim/adam.h>
#include <torch/optim/sgd.h>

#include <functional>
#include <limits>

#include "support.h"

namespace lambda_gelu {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

using Options = HardnessSchedulerOptions;

TEST(HardnessScheduler, LearnsThenHardensThenIsDone) {
  auto model = make_mlp();
  HardnessScheduler scheduler(*model, 8, Options().start(0.25).end(0.75));
  const Phase expected[] = {Phase::kLearn,  Phase::kLearn, Phase::kHarden, Phase::kHarden, Phase::kHarden,
                            Phase::kHarden, Phase::kDone,  Phase::kDone,   Phase::kDone,   Phase::kDone};
  for (const auto phase : expected) {
    EXPECT_EQ(scheduler.phase(), phase);
    for (size_t index : {1, 3}) EXPECT_EQ(site_of(model, index).is_frozen(), phase != Phase::kLearn);
    scheduler.step();
  }
}

TEST(HardnessScheduler, RaisesLinearlyFromTheLearnedHardnessToTheTarget) {
  auto model = make_mlp();
  HardnessScheduler scheduler(*model, 8, Options().start(0.5).target(10));
  for (int i = 0; i < 3; ++i) scheduler.step();
  site_of(model, 1).set_hardness(2);  // what was learned in the meantime
  site_of(model, 3).set_hardness(6);
  for (const auto& [first, second] : {std::pair(2.0, 6.0), {4, 7}, {6, 8}, {8, 9}, {10, 10}, {10, 10}}) {
    scheduler.step();
    expect_close(site_of(model, 1).hardness(), tensor_of({first}), 1e-6);
    expect_close(site_of(model, 3).hardness(), tensor_of({second}), 1e-6);
  }
}

TEST(HardnessScheduler, StartsExactlyAtTheLearnedAndEndsExactlyAtTheTarget) {
  for (const auto schedule : {Schedule::kLinear, Schedule::kGeometric, Schedule::kHarmonic, Schedule::kCosine}) {
    LambdaGELU site(LambdaGELUOptions().init_hardness(1.7654321));
    const auto learned = site->hardness().detach();
    HardnessScheduler scheduler(*site, 10, Options().start(0.3).schedule(schedule));
    for (int i = 0; i < 3; ++i) scheduler.step();
    EXPECT_TRUE(site->is_frozen());
    expect_same(site->hardness(), learned);
    for (int i = 3; i < 10; ++i) {
      const auto before = site->hardness();
      scheduler.step();
      EXPECT_TRUE((site->hardness() > before).all().item<bool>());
    }
    expect_same(site->hardness(), tensor_of({7.978845608028654}));  // sqrt(2 / pi) / 0.1
  }
}

TEST(HardnessScheduler, EveryChannelStartsFromItsOwn) {
  LambdaGELU site(LambdaGELUOptions(3));
  site->to(at::kDouble);
  site->set_hardness(tensor_of({2, 4, 8}));
  const auto learned = site->hardness().detach();
  HardnessScheduler scheduler(*site, 2, Options().start(0).target(32).schedule(Schedule::kGeometric));
  expect_same(site->hardness(), learned);
  scheduler.step();
  expect_close(site->hardness(), tensor_of({8, 11.313708498984761, 16}, at::kDouble), 1e-14);
  scheduler.step();
  expect_same(site->hardness(), tensor_of({32, 32, 32}, at::kDouble));
}

TEST(HardnessScheduler, NeverLowersAHardness) {
  LambdaGELU site(LambdaGELUOptions(3));
  site->set_hardness(tensor_of({2, 5, 20}));
  const auto learned = site->hardness().detach();
  HardnessScheduler scheduler(*site, 4, Options().start(0.25).target(5));
  for (int i = 0; i < 4; ++i) {
    scheduler.step();
    expect_same(site->hardness().slice(0, 2), learned.slice(0, 2));
    EXPECT_TRUE((site->hardness() >= learned).all().item<bool>());
  }
  expect_close(site->hardness(), tensor_of({5, 5, 20}), 1e-6);
}

TEST(HardnessScheduler, TargetsByChannel) {
  auto model = make_mlp(LambdaGELUOptions(5));
  const SiteTargets targets = {{"1", {2, 3, 4, 1.2, 60}}, {"3", 30}};
  const auto options = Options().start(0).site_targets(targets);
  HardnessScheduler scheduler(*model, 2, options);
  scheduler.step();
  // Half-way from 1 + ln 2; a target below the learned lambda lowers nothing.
  const double learned = 1 + std::log(2.0);
  expect_close(site_of(model, 1).hardness(),
               tensor_of({(learned + 2) / 2, (learned + 3) / 2, (learned + 4) / 2, learned, (learned + 60) / 2}), 1e-6);
  const auto state = saved(scheduler), weights = saved(model);
  scheduler.step();
  expect_close(site_of(model, 1).hardness(), tensor_of({2, 3, 4, learned, 60}), 1e-6);
  expect_close(site_of(model, 3).hardness(), tensor_of({30, 30, 30, 30, 30}), 1e-6);

  auto resumed = make_mlp(LambdaGELUOptions(5));
  HardnessScheduler again(*resumed, 2, options);
  load_from(weights, resumed);
  load_from(state, again);
  again.step();
  expect_same(site_of(resumed, 1).hardness(), site_of(model, 1).hardness());
  HardnessScheduler other(*make_mlp(LambdaGELUOptions(5)), 2, Options().start(0).site_targets({{"1", 2}, {"3", 30}}));
  expect_value_error([&] { load_from(state, other); }, "targets");
  expect_value_error([&] { HardnessScheduler(*model, 2, Options().site_targets({{"1", {2, 3}}, {"3", 30}})); },
                     "target of '1'", "1 or 5 values", "got 2");
}

TEST(HardnessScheduler, TargetsBySite) {
  auto model = make_mlp();
  HardnessScheduler scheduler(*model, 2, Options().start(0.5).site_targets({{"1", 12}, {"3", 30}}));
  scheduler.step();
  scheduler.step();
  const auto last = scheduler.get_last_hardness();
  ASSERT_EQ(last.size(), 2);
  EXPECT_EQ(last[0].first, "1");
  EXPECT_EQ(last[1].first, "3");
  expect_same(last[0].second, tensor_of({12}));
  expect_same(last[1].second, tensor_of({30}));
}

TEST(HardnessScheduler, LearningAFrozenHardnessIsRefused) {
  auto model = torch::nn::Sequential(torch::nn::Linear(2, 2), LambdaGELU());
  HardnessScheduler first(*model, 2, HardnessSchedulerOptions().start(0.5));
  first.step();
  first.step();
  HardnessScheduler second(*model, 4, HardnessSchedulerOptions().start(0.5));
  const auto before = second.get_last_hardness().front().second.clone();
  expect_refusal<c10::Error>([&] { second.step(); }, "frozen at '1'", "unfreeze_hardness()");
  EXPECT_EQ(second.phase(), Phase::kLearn);
  expect_same(second.get_last_hardness().front().second, before);
}

TEST(HardnessScheduler, LastHardnessIsDetached) {
  auto model = make_mlp();
  HardnessScheduler scheduler(*model, 4);
  for (const auto& [name, hardness] : scheduler.get_last_hardness()) EXPECT_FALSE(hardness.requires_grad()) << name;
}

TEST(HardnessScheduler, RefusesAPlanWithoutChangingTheModel) {
  auto model = make_mlp();
  const auto before = saved(model);
  const auto refused = [&](int64_t steps, const Options& options, const auto&... words) {
    expect_value_error([&] { HardnessScheduler(*model, steps, options); }, words...);
  };
  refused(0, {}, "total_steps must be at least 1", "got 0");
  refused(-4, {}, "total_steps must be at least 1", "got -4");
  refused(10, Options().start(0.5).end(0.5), "0 <= start < end <= 1", "got 0.5 and 0.5");
  refused(10, Options().start(0.6).end(0.5), "0 <= start < end <= 1");
  refused(10, Options().start(-0.1), "0 <= start < end <= 1");
  refused(10, Options().end(1.5), "0 <= start < end <= 1");
  refused(10, Options().start(kNaN), "0 <= start < end <= 1");
  refused(3, Options().start(0.7).end(0.9), "at least one step");
  for (double target : {0.0, -1.0, kInf, kNaN, 1e300, 1e-300}) {
    refused(10, Options().start(0).target(target), "target of '1' must be finite and positive", "got");
    refused(10, Options().start(0).site_targets({{"1", 5}, {"3", target}}), "target of '3'", "got");
  }
  refused(10, Options().site_targets({{"1", 5}}), "site_targets", "'3' is missing");
  refused(10, Options().site_targets({{"1", 5}, {"3", 5}, {"7", 5}}), "site_targets", "'1', '3'", "got '7'");
  refused(10, Options().schedule(static_cast<Schedule>(17)), "schedule", "17");
  EXPECT_EQ(saved(model), before);

  torch::nn::Sequential without(torch::nn::Linear(2, 2));
  expect_value_error([&] { HardnessScheduler(*without, 10); }, "LambdaGELU", "has none");
  to_relu_(*model);
  expect_value_error([&] { HardnessScheduler(*model, 10); }, "LambdaGELU", "substituted already");
}

TEST(HardnessScheduler, ATargetThatACastHasPutOutOfRangeIsRefusedAtTheStepThatNeedsIt) {
  auto model = make_mlp();
  model->to(at::kDouble);
  HardnessScheduler scheduler(*model, 2, Options().start(0.5).site_targets({{"1", 5}, {"3", 1e100}}));
  model->to(at::kFloat);
  scheduler.step();
  const auto before = saved(model);
  expect_value_error([&] { scheduler.step(); }, "hardness of '3' must be finite and positive in Float", "got 1e+100");
  EXPECT_EQ(saved(model), before);
}

TEST(HardnessScheduler, AHardnessThatIsNotFiniteIsRefusedAtTheSwitch) {
  auto model = make_mlp();
  HardnessScheduler scheduler(*model, 2, Options().start(0.5));
  {
    at::NoGradGuard no_grad;
    site_of(model, 3).raw_hardness.fill_(kNaN);
  }
  const auto before = saved(model);
  expect_value_error([&] { scheduler.step(); }, "finite and positive", "nan");
  EXPECT_EQ(scheduler.phase(), Phase::kLearn);
  EXPECT_EQ(saved(model), before);
}

// --- save and resume ---------------------------------------------------------------------------------------------

constexpr int kSteps = 12;

struct TrainingRun {
  explicit TrainingRun(
      const std::function<std::unique_ptr<torch::optim::Optimizer>(torch::nn::Sequential&)>& make_optimizer)
      : optimizer(make_optimizer(model)), scheduler(*model, kSteps, Options().start(0.4).end(0.9)) {}

  void train(int from, int to) {
    for (int step = from; step < to; ++step) {
      const auto x = at::linspace(-2, 2, 48).view({16, 3}) * (1 + 0.1 * step);
      optimizer->zero_grad();
      (model->forward(x) - x.sum(1, true).sin()).square().mean().backward();
      optimizer->step();
      scheduler.step();
    }
  }

  torch::nn::Sequential model = make_mlp();
  std::unique_ptr<torch::optim::Optimizer> optimizer;
  HardnessScheduler scheduler;
};

std::unique_ptr<torch::optim::Optimizer> make_sgd(torch::nn::Sequential& model) {
  const auto options = torch::optim::SGDOptions(0.05).momentum(0.9).weight_decay(0.01);
  return std::make_unique<torch::optim::SGD>(make_param_groups(*model, options), options);
}

std::unique_ptr<torch::optim::Optimizer> make_adam(torch::nn::Sequential& model) {
  const auto options = torch::optim::AdamOptions(0.01).weight_decay(0.01);
  return std::make_unique<torch::optim::Adam>(make_param_groups(*model, options), options);
}

class Resume : public testing::TestWithParam<int> {};
INSTANTIATE_TEST_SUITE_P(AfterSteps, Resume, testing::Values(0, 3, 4, 5, 8, 11, 12));

TEST_P(Resume, EqualsAnUnbrokenRunToTheLastBit) {
  for (const auto& make_optimizer : {make_sgd, make_adam}) {
    for (bool scheduler_first : {false, true}) {
      TrainingRun unbroken(make_optimizer);
      unbroken.train(0, GetParam());
      const auto model = saved(unbroken.model);
      const auto optimizer = saved(*unbroken.optimizer);
      const auto scheduler = saved(unbroken.scheduler);
      unbroken.train(GetParam(), kSteps);

      TrainingRun resumed(make_optimizer);
      if (scheduler_first) load_from(scheduler, resumed.scheduler);
      load_from(model, resumed.model);
      load_from(optimizer, *resumed.optimizer);
      if (!scheduler_first) load_from(scheduler, resumed.scheduler);
      resumed.train(GetParam(), kSteps);

      EXPECT_EQ(resumed.scheduler.phase(), unbroken.scheduler.phase());
      const auto expected = unbroken.model->named_parameters();
      for (const auto& item : resumed.model->named_parameters()) {
        expect_same(item.value().detach(), expected[item.key()].detach());
      }
      for (size_t index : {1, 3}) {
        expect_same(site_of(resumed.model, index).hardness(), site_of(unbroken.model, index).hardness());
      }
    }
  }
}

TEST(HardnessScheduler, TheHardnessIsReallyTrainedInTheRunsCompared) {
  TrainingRun run(make_adam);
  const auto before = site_of(run.model, 1).hardness().detach();
  run.train(0, 4);
  EXPECT_GT((site_of(run.model, 1).hardness().detach() - before).abs().item<double>(), 1e-3);
}

TEST(HardnessScheduler, TheStateOfAnotherPlanIsRefusedWithoutChangingAnything) {
  const auto plan = Options().start(0.25).end(0.75).target(9);
  auto model = make_mlp();
  HardnessScheduler scheduler(*model, 8, plan);
  for (int i = 0; i < 3; ++i) scheduler.step();
  const auto model_before = saved(model);
  const auto scheduler_before = saved(scheduler);

  const auto refuse_state_of = [&](auto other_model, int64_t steps, const Options& options, const std::string& word) {
    HardnessScheduler other(*other_model, steps, options);
    for (int i = 0; i < 5; ++i) other.step();
    expect_value_error([&] { load_from(saved(other), scheduler); }, word, "the state has");
  };
  refuse_state_of(make_mlp(), 16, plan, "total_steps must be 8");
  refuse_state_of(make_mlp(), 8, Options(plan).start(0.5), "start");
  refuse_state_of(make_mlp(), 8, Options(plan).end(1), "end");
  refuse_state_of(make_mlp(), 8, Options(plan).schedule(Schedule::kCosine), "schedule must be linear");
  refuse_state_of(make_mlp(), 8, Options(plan).target(10), "targets");
  refuse_state_of(torch::nn::Sequential(LambdaGELU(), LambdaGELU()), 8, plan, "sites");
  refuse_state_of(torch::nn::Sequential(LambdaGELU()), 8, plan, "sites");
  refuse_state_of(make_mlp(LambdaGELUOptions(5)), 8, plan, "learned_hardness must have 2 values at step 5");
  expect_value_error([&] { load_from(saved(model), scheduler); }, "HardnessScheduler must have 'total_steps'");

  EXPECT_EQ(saved(model), model_before);
  EXPECT_EQ(saved(scheduler), scheduler_before);
  EXPECT_EQ(scheduler.phase(), Phase::kHarden);
}

TEST(HardnessScheduler, ADamagedStateIsRefused) {
  LambdaGELU site;
  HardnessScheduler scheduler(*site, 4, Options().start(0.5).end(1).target(9));
  const auto forged = [](int64_t step, const std::vector<double>& learned) {
    torch::serialize::OutputArchive archive;
    archive.write("total_steps", int64_t{4});
    archive.write("start", 0.5);
    archive.write("end", 1.0);
    archive.write("schedule", std::string("linear"));
    archive.write("sites", c10::List<std::string>({""}));
    archive.write("targets", c10::List<double>({9.0}));
    archive.write("step", step);
    archive.write("learned_hardness", c10::List<double>(learned));
    std::ostringstream stream;
    archive.save_to(stream);
    return stream.str();
  };
  expect_value_error([&] { load_from(forged(-1, {}), scheduler); }, "step must be at least 0", "the state has -1");
  expect_value_error([&] { load_from(forged(1, {2.0}), scheduler); }, "learned_hardness must have 0 values at step 1");
  expect_value_error([&] { load_from(forged(3, {}), scheduler); }, "learned_hardness must have 1 values at step 3");
  for (double value : {kNaN, kInf, 0.0, -2.0, 1e300}) {
    expect_value_error([&] { load_from(forged(3, {value}), scheduler); }, "hardness of '' must be finite and positive");
  }
  EXPECT_FALSE(site->is_frozen());
  load_from(forged(3, {5.0}), scheduler);  // the forgery itself is sound
  expect_same(site->hardness(), tensor_of({7}));
}

}  // namespace
}  // namespace lambda_gelu
