// The experiments of the lambda-GELU paper (arXiv 2603.21991) that examples/paper runs in Python, two of them, in
// LibTorch. paper --help lists the options.
#include <c10/util/Exception.h>

#include <csignal>
#include <iostream>
#include <optional>
#include <sstream>
#include <string>

#include "data.h"
#include "paper/options.h"
#include "paper/training.h"
#include "report.h"

namespace {

volatile std::sig_atomic_t stop_requested = 0;

void request_stop(int) {
  stop_requested = 1;
}

constexpr int kInterrupted = 130;  // as a shell says it of Ctrl-C

int run(const paper::Options& options) {
  std::signal(SIGINT, request_stop);
  std::signal(SIGTERM, request_stop);
  std::optional<ProgressBar> bar;
  const paper::Watcher watcher{
      .advance = [&](const std::string& description) { bar->advance(description); },
      .stop = [] { return stop_requested != 0; },
      .start = [&](std::int64_t steps) { bar.emplace(static_cast<int>(steps), "steps"); },
  };
  std::ostringstream report;  // shown where the bar is no more
  std::string error;
  int status = 0;
  try {
    paper::train(options, watcher, report);
  } catch (const paper::Interrupted& interrupted) {
    error = interrupted.what();
    status = kInterrupted;
  } catch (const paper::NonFiniteLoss& loss) {
    error = loss.what();
    status = 1;
  }
  bar.reset();
  std::cout << report.str();
  if (!error.empty()) std::cerr << "paper: " << error << "; " << options.output.string() << " says how far it came\n";
  return status;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const auto options = paper::parse_options(argc, argv);
    if (options.help) {
      std::cout << paper::usage();
    } else if (options.show_settings) {
      std::cout << paper::settings_of(options.system, options.arm, options.examples).text() << "\n";
    } else {
      return run(options);
    }
    return 0;
  } catch (const MissingData& error) {
    std::cerr << "paper: " << error.what() << ": say --data-dir or set LAMBDA_GELU_DATA\n";
  } catch (const c10::Error& error) {
    std::cerr << "paper: " << error.what_without_backtrace() << "\n";
  } catch (const std::exception& error) {
    std::cerr << "paper: " << error.what() << "\n";
  }
  return 2;
}
