#include <lambda_gelu/nn/hardness_scheduler.h>
#include <torch/serialize/archive.h>

#include <algorithm>

#include "nn/value_error.h"
#include "ops/checks.h"

namespace lambda_gelu {
namespace {

void check_representable(const Site& site, const char* name, double hardness) {
  const auto dtype = site.module->hardness_override.scalar_type();
  TORCH_CHECK_VALUE(is_hardness_of(hardness, dtype), name, " of '", site.name, "' must be finite and positive in ",
                    dtype, ", got ", hardness);
}

std::string names_of(const std::vector<Site>& sites) {
  std::string names;
  for (const auto& site : sites) names += (names.empty() ? "'" : ", '") + site.name + "'";
  return names;
}

std::vector<std::vector<double>> resolve_targets(const std::vector<Site>& sites,
                                                 const HardnessSchedulerOptions& options) {
  const auto& by_name = options.site_targets();
  for (const auto& [name, target] : by_name) {
    TORCH_CHECK_VALUE(std::any_of(sites.begin(), sites.end(), [&](const Site& site) { return site.name == name; }),
                      "site_targets must name the sites ", names_of(sites), ", got '", name, "'");
  }
  std::vector<std::vector<double>> targets;
  for (const auto& site : sites) {
    const auto entry = by_name.find(site.name);
    TORCH_CHECK_VALUE(by_name.empty() || entry != by_name.end(), "site_targets must name every site, '", site.name,
                      "' is missing");
    targets.push_back(by_name.empty() ? std::vector<double>{options.target()} : entry->second.values);
    const auto count = static_cast<int64_t>(targets.back().size());
    TORCH_CHECK_VALUE(count == 1 || count == site.module->num_parameters(), "target of '", site.name,
                      "' must have 1 or ", site.module->num_parameters(), " values, got ", count);
    for (const double target : targets.back()) check_representable(site, "target", target);
  }
  return targets;
}

std::vector<double> to_vector(const at::Tensor& tensor) {
  const auto values = tensor.to(at::kCPU, at::kDouble).contiguous();
  return {values.const_data_ptr<double>(), values.const_data_ptr<double>() + values.numel()};
}

at::Tensor to_tensor(const std::vector<double>& values) {
  auto tensor = at::empty({static_cast<int64_t>(values.size())}, at::dtype(at::kDouble));
  std::copy(values.begin(), values.end(), tensor.mutable_data_ptr<double>());
  return tensor;
}

c10::List<std::string> names_list(const std::vector<Site>& sites) {
  c10::List<std::string> names;
  for (const auto& site : sites) names.push_back(site.name);
  return names;
}

c10::List<double> concatenated(const std::vector<std::vector<double>>& hardness) {
  c10::List<double> values;
  for (const auto& site : hardness) {
    for (const double value : site) values.push_back(value);
  }
  return values;
}

c10::IValue read(torch::serialize::InputArchive& archive, const std::string& key) {
  c10::IValue value;
  TORCH_CHECK_VALUE(archive.try_read(key, value), "the state of a HardnessScheduler must have '", key,
                    "', this archive has none");
  return value;
}

// Refuses the state of another plan: `expected` is this scheduler's value.
void expect(torch::serialize::InputArchive& archive, const std::string& key, const c10::IValue& expected) {
  const auto value = read(archive, key);
  TORCH_CHECK_VALUE(value.tagKind() == expected.tagKind() && value == expected, key, " must be ", expected,
                    " as in this scheduler, the state has ", value);
}

}  // namespace

HardnessScheduler::HardnessScheduler(torch::nn::Module& model, int64_t total_steps,
                                     const HardnessSchedulerOptions& options)
    : sites_(find_sites(model)),
      window_(with_value_errors([&] { return HardeningWindow(total_steps, options.start(), options.end()); })),
      options_(options),
      targets_(resolve_targets(sites_, options)) {
  with_value_errors([&] { return schedule_name(options.schedule()); });  // refuses what is no enumerator
  move_to(0, {});
}

void HardnessScheduler::step() {
  if (phase() == Phase::kLearn) {
    for (const auto& site : sites_) {
      TORCH_CHECK(!site.module->is_frozen(), "step ", step_, " is to learn the hardness, but it is frozen at '",
                  site.name, "'; unfreeze_hardness() first, or load the state of the run's own scheduler");
    }
  }
  move_to(step_ + 1, learned_);
}

std::vector<std::pair<std::string, at::Tensor>> HardnessScheduler::get_last_hardness() const {
  std::vector<std::pair<std::string, at::Tensor>> result;
  for (const auto& site : sites_) result.emplace_back(site.name, site.module->hardness().detach());
  return result;
}

void HardnessScheduler::save(torch::serialize::OutputArchive& archive) const {
  archive.write("total_steps", window_.total_steps);
  archive.write("start", options_.start());
  archive.write("end", options_.end());
  archive.write("schedule", std::string(schedule_name(options_.schedule())));
  archive.write("sites", names_list(sites_));
  archive.write("targets", concatenated(targets_));
  archive.write("step", step_);
  archive.write("learned_hardness", concatenated(learned_));
}

void HardnessScheduler::load(torch::serialize::InputArchive& archive) {
  expect(archive, "total_steps", window_.total_steps);
  expect(archive, "start", options_.start());
  expect(archive, "end", options_.end());
  expect(archive, "schedule", std::string(schedule_name(options_.schedule())));
  expect(archive, "sites", names_list(sites_));
  expect(archive, "targets", concatenated(targets_));
  const auto step = read(archive, "step").toInt();
  const auto values = read(archive, "learned_hardness").toDoubleVector();
  TORCH_CHECK_VALUE(step >= 0, "step must be at least 0, the state has ", step);

  Hardness learned;
  size_t used = 0;
  if (window_.phase(step) != Phase::kLearn) {
    for (const auto& site : sites_) {
      const auto count = static_cast<size_t>(site.module->num_parameters());
      const auto begin = std::min(used, values.size()), end = std::min(used + count, values.size());
      learned.emplace_back(values.begin() + begin, values.begin() + end);
      used += count;
    }
  }
  TORCH_CHECK_VALUE(used == values.size(), "learned_hardness must have ", used, " values at step ", step,
                    ", the state has ", values.size());
  move_to(step, std::move(learned));
}

void HardnessScheduler::move_to(int64_t step, Hardness learned) {
  if (window_.phase(step) != Phase::kLearn) {
    // Everything that can fail comes before the first change.
    if (learned.empty()) learned = learned_hardness();
    Hardness hardness = learned;
    for (size_t i = 0; i < sites_.size(); ++i) {
      for (size_t c = 0; c < hardness[i].size(); ++c) {
        double& value = hardness[i][c];
        const double target = targets_[i][targets_[i].size() == 1 ? 0 : c];
        check_representable(sites_[i], "hardness", value);
        value = std::max(value, scheduled_hardness(options_.schedule(), value, target, window_.progress(step)));
        check_representable(sites_[i], "hardness", value);
      }
    }
    for (size_t i = 0; i < sites_.size(); ++i) {
      sites_[i].module->freeze_hardness();
      sites_[i].module->set_hardness(to_tensor(hardness[i]));
    }
  }
  step_ = step;
  learned_ = std::move(learned);
}

HardnessScheduler::Hardness HardnessScheduler::learned_hardness() const {
  Hardness learned;
  for (const auto& site : sites_) learned.push_back(to_vector(site.module->hardness().detach()));
  return learned;
}

torch::serialize::OutputArchive& operator<<(torch::serialize::OutputArchive& archive,
                                            const HardnessScheduler& scheduler) {
  scheduler.save(archive);
  return archive;
}

torch::serialize::InputArchive& operator>>(torch::serialize::InputArchive& archive, HardnessScheduler& scheduler) {
  scheduler.load(archive);
  return archive;
}

}  // namespace lambda_gelu
