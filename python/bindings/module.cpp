// The extension module lambda_gelu._C: the formulas of the math floor as Python functions. Loading it loads the
// library, whose operators then are torch.ops.lambda_gelu.*: tensors go through the dispatcher, never through here.
#include <lambda_gelu/math/hardness.h>
#include <lambda_gelu/math/relu_gap.h>
#include <lambda_gelu/math/schedule.h>
#include <lambda_gelu/ops/cpu_target.h>
#include <torch/csrc/utils/pybind.h>

#include <cstdint>
#include <stdexcept>
#include <string>
#include <variant>
#include <vector>

#include "histogram.h"

namespace {

using namespace py::literals;

void bind_hardness(py::module_& m) {
  m.def("hardness_from_raw", &lambda_gelu::hardness_from_raw, "raw_hardness"_a, "temperature"_a, R"doc(
hardness_from_raw(raw_hardness, temperature) -> float

The hardness lambda = 1 + softplus(s / tau) of a raw hardness s (arXiv 2603.21991), in double precision.

Raises ValueError unless raw_hardness is finite and temperature is finite and positive.)doc");
  m.def("raw_from_hardness", &lambda_gelu::raw_from_hardness, "hardness"_a, "temperature"_a, R"doc(
raw_from_hardness(hardness, temperature) -> float

The inverse of hardness_from_raw: s = tau ln(exp(lambda - 1) - 1).

Raises ValueError unless hardness is finite and above 1 and temperature is finite and positive.)doc");
  m.def("hardness_derivative", &lambda_gelu::hardness_derivative, "raw_hardness"_a, "temperature"_a, R"doc(
hardness_derivative(raw_hardness, temperature) -> float

d lambda / d s = sigmoid(s / tau) / tau.)doc");
}

void bind_relu_gap(py::module_& m) {
  m.def("gate_gap", &lambda_gelu::gate_gap, "hardness"_a, R"doc(
gate_gap(hardness) -> float

The L1 distance between the gate Phi(lambda x) and ReLU's step: sqrt(2 / pi) / lambda.

Raises ValueError unless hardness is finite and positive.)doc");
  m.def("target_from_gate_gap", &lambda_gelu::target_from_gate_gap, "epsilon"_a, R"doc(
target_from_gate_gap(epsilon) -> float

The hardness whose gate gap is epsilon: sqrt(2 / pi) / epsilon (0.1 gives 7.98, 0.01 gives 79.8).

Raises ValueError unless epsilon is finite and positive.)doc");
  m.def("expected_gap", &lambda_gelu::expected_gap, "hardness"_a, "mean"_a = 0.0, "std"_a = 1.0, R"doc(
expected_gap(hardness, mean=0.0, std=1.0) -> float

The mean error of the swap to ReLU, E[ReLU(x) - f(x)] >= 0, for x ~ N(mean, std^2).

Raises ValueError unless hardness and std are finite and positive and mean is finite.)doc");
  m.def("expected_sq_gap", &lambda_gelu::expected_sq_gap, "hardness"_a, "mean"_a = 0.0, "std"_a = 1.0, R"doc(
expected_sq_gap(hardness, mean=0.0, std=1.0) -> float

The mean squared error of the swap to ReLU, E[(ReLU(x) - f(x))^2], for x ~ N(mean, std^2).

Raises ValueError unless hardness and std are finite and positive and mean is finite.)doc");
  m.def("expected_sq_relu", &lambda_gelu::expected_sq_relu, "mean"_a = 0.0, "std"_a = 1.0, R"doc(
expected_sq_relu(mean=0.0, std=1.0) -> float

The signal's power behind ReLU, E[ReLU(x)^2], for x ~ N(mean, std^2).)doc");
  m.def("ser_db", &lambda_gelu::ser_db, "effective_hardness"_a, "mean"_a = 0.0, R"doc(
ser_db(effective_hardness, mean=0.0) -> float

Signal-to-error ratio of the swap to ReLU in dB, 10 log10(E[ReLU(x)^2] / E[(ReLU(x) - f(x))^2]), for normal
pre-activations of standard deviation sigma and mean mean * sigma. effective_hardness is kappa = lambda sigma.

Raises ValueError unless effective_hardness is finite and positive and mean is finite.)doc");
  m.def("target_from_ser", &lambda_gelu::target_from_ser, "decibels"_a, "mean"_a = 0.0, R"doc(
target_from_ser(decibels, mean=0.0) -> float

The effective hardness kappa = lambda sigma at which ser_db(kappa, mean) = decibels. Divide it by the standard deviation
of the pre-activations to get lambda.

Raises ValueError where no kappa reaches it.)doc");
}

std::vector<double> scheduled_hardness(const std::string& schedule, const std::vector<double>& start,
                                       const std::variant<double, std::vector<double>>& target, double progress,
                                       double start_progress) {
  const auto kind = lambda_gelu::schedule_from_name(schedule);
  const auto* targets = std::get_if<std::vector<double>>(&target);
  if (targets && targets->size() != start.size()) {
    throw std::invalid_argument("target must have " + std::to_string(start.size()) +
                                " values, one for each of start, got " + std::to_string(targets->size()));
  }
  std::vector<double> hardness;
  hardness.reserve(start.size());
  for (std::size_t i = 0; i < start.size(); ++i) {
    const double to = targets ? (*targets)[i] : std::get<double>(target);
    hardness.push_back(lambda_gelu::scheduled_hardness(kind, start[i], to, progress, start_progress));
  }
  return hardness;
}

void bind_schedule(py::module_& m) {
  m.def("scheduled_hardness", &scheduled_hardness, "schedule"_a, "start"_a, "target"_a, "progress"_a,
        "start_progress"_a = 0.0, R"doc(
scheduled_hardness(schedule, start, target, progress, start_progress=0.0) -> list[float]

The hardness of every channel at `progress` in [0, 1] on its way from start[c] to target (a number, or one for each
channel); exactly start[c] at start_progress and exactly the target at 1. A start_progress above 0 means a way that
stands at start[c] there, as after a change of the target, and goes on with what is left of the schedule. schedule:
"linear", "geometric", "harmonic" or "cosine".)doc");
  py::class_<lambda_gelu::HardeningWindow>(m, "HardeningWindow", R"doc(
HardeningWindow(total_steps, start, end)

Which steps of a run harden: from fraction `start` to fraction `end` of total_steps.

Raises ValueError unless total_steps >= 1 and 0 <= start < end <= 1, or where the window holds no step.)doc")
      .def(py::init<std::int64_t, double, double>(), "total_steps"_a, "start"_a, "end"_a)
      .def_readonly("total_steps", &lambda_gelu::HardeningWindow::total_steps)
      .def_readonly("first_step", &lambda_gelu::HardeningWindow::first_step, "the step from which on lambda is frozen")
      .def_readonly("last_step", &lambda_gelu::HardeningWindow::last_step,
                    "the step from which on lambda is at its target")
      .def(
          "phase",
          [](const lambda_gelu::HardeningWindow& window, std::int64_t step) {
            return std::string(lambda_gelu::phase_name(window.phase(step)));
          },
          "step"_a, "\"learn\", \"harden\" or \"done\"")
      .def("progress", &lambda_gelu::HardeningWindow::progress, "step"_a,
           "0 up to first_step, 1 from last_step on, linear in between");
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native part of lambda_gelu.";
  bind_hardness(m);
  bind_relu_gap(m);
  bind_schedule(m);
  bind_histogram(m);
  m.def("cpu_targets", &lambda_gelu::cpu_targets, "Instruction sets this machine can run, best first.");
  m.def("cpu_target", &lambda_gelu::cpu_target, "The instruction set in use.");
  m.def("set_cpu_target", &lambda_gelu::set_cpu_target, "name"_a, R"doc(
Forces one of cpu_targets() (tests, benchmarks); an empty name restores the best. Not while another thread computes.

Raises ValueError for any other name.)doc");
}
