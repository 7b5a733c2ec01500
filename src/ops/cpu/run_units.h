#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>

namespace lambda_gelu::cpu {

/// Runs all units of a kernel on the threads of ATen's intra-op pool.
template <class Kernel>
void run_units(Kernel& kernel, int64_t elements) {
  // ATen's own at::internal::GRAIN_SIZE: below it, waking a thread costs more than it saves.
  constexpr int64_t kElementsPerThread = 32768;
  const auto units = kernel.units();
  const auto grain = std::max<int64_t>(1, units * kElementsPerThread / elements);
  if (units <= grain) {
    kernel.run(0, units);
  } else {
    at::parallel_for(0, units, grain, [&](int64_t begin, int64_t end) { kernel.run(begin, end); });
  }
}

}  // namespace lambda_gelu::cpu
