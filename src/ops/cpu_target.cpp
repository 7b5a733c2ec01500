// The kernels are hidden inside the library; this is the door to their dispatch.
#include <lambda_gelu/ops/cpu_target.h>

#include "kernels/cpu/lambda_gelu.h"

namespace lambda_gelu {

std::vector<std::string> cpu_targets() {
  return kernels::supported_targets();
}

std::string cpu_target() {
  return kernels::active_target();
}

void set_cpu_target(const std::string& name) {
  kernels::set_target(name);
}

}  // namespace lambda_gelu
