// One run: a system, an arm and a seed, trained from beginning to end. No torch.
#pragma once

#include <cstdint>
#include <functional>
#include <iosfwd>
#include <stdexcept>
#include <string>

#include "paper/options.h"
#include "paper/record.h"

namespace paper {

/// The run was stopped; its record is complete up to the last epoch.
struct Interrupted : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// The loss stopped being finite, as the record's last line says too.
struct NonFiniteLoss : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Watcher {
  /// Called after every step with what is going on.
  std::function<void(const std::string&)> advance;
  /// Asked after every step; true interrupts the run.
  std::function<bool()> stop;
  /// Called once with the number of steps, when the data have been read.
  std::function<void(std::int64_t)> start;
};

/// Trains in one thread, writes the record's lines, and shows what the swap to ReLU did to every site on
/// `report`. Throws MissingData and std::runtime_error where data cannot be read, before the record is made.
void train(const Options& options, const Watcher& watcher, std::ostream& report);

}  // namespace paper
