// What train shows: a progress bar and a table. No torch.
#pragma once

#include <chrono>
#include <string>
#include <utility>
#include <vector>

/// A line on stderr, redrawn at most ten times a second.
class ProgressBar {
 public:
  explicit ProgressBar(int total, std::string unit = "epochs") : total_(total), unit_(std::move(unit)) {}
  ~ProgressBar();
  void advance(const std::string& description);

 private:
  void draw() const;

  int total_, done_ = 0;
  std::string unit_;
  std::string description_;
  std::chrono::steady_clock::time_point drawn_{};
};

/// A network's validation accuracy in percent, one value per seed.
struct Row {
  std::string network;
  std::vector<double> before, after;
  bool swapped;  ///< false: trained as a ReLU network, nothing was done to it
};

/// Mean and standard deviation over the seeds, before and after the swap, and the mean cost of it.
std::string format_table(const std::string& title, const std::vector<Row>& rows);
