#include "report.h"

#include <fmt/format.h>

#include <cmath>
#include <numeric>

namespace {

double mean(const std::vector<double>& values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

// Of the sample; 0 for a single value.
double standard_deviation(const std::vector<double>& values) {
  if (values.size() < 2) return 0;
  double sum = 0;
  for (const double value : values) sum += (value - mean(values)) * (value - mean(values));
  return std::sqrt(sum / static_cast<double>(values.size() - 1));
}

std::string cell(const std::vector<double>& values) {
  return fmt::format("{:.2f} ± {:.2f}", mean(values), standard_deviation(values));
}

}  // namespace

ProgressBar::~ProgressBar() {
  draw();
  fmt::print(stderr, "\n");
}

void ProgressBar::advance(const std::string& description) {
  ++done_;
  description_ = description;
  const auto now = std::chrono::steady_clock::now();
  if (now - drawn_ < std::chrono::milliseconds(100)) return;
  drawn_ = now;
  draw();
}

void ProgressBar::draw() const {
  constexpr int kWidth = 40;
  const int filled = kWidth * done_ / total_;
  fmt::print(stderr, "\r{:<28} [{:#<{}}{:-<{}}] {}/{} {}", description_, "", filled, "", kWidth - filled, done_, total_,
             unit_);
  std::fflush(stderr);
}

std::string format_table(const std::string& title, const std::vector<Row>& rows) {
  std::string text = fmt::format("{}\n{:<24}{:>18}{:>18}{:>18}\n{:-<78}\n", title, "network", "before the swap",
                                 "after the swap", "cost in points", "");
  for (const auto& row : rows) {
    std::vector<double> cost;
    for (std::size_t i = 0; i < row.before.size(); ++i) cost.push_back(row.before[i] - row.after[i]);
    text += fmt::format("{:<24}{:>18}{:>18}{:>18}\n", row.network, cell(row.before),
                        row.swapped ? cell(row.after) : "-", row.swapped ? cell(cost) : "-");
  }
  return text;
}
