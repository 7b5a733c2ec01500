// Our kernels beside ATen's gelu on the same warm memory, where neither allocates: 64M elements, 1 and 2 threads.
// Prints JSON: the median over pairs of ATen's time divided by ours, and the medians in nanoseconds per element.
#include <ATen/Functions.h>
#include <ATen/Parallel.h>
#include <kernels/cpu/lambda_gelu.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

namespace {

using lambda_gelu::kernels::Backward;
using lambda_gelu::kernels::DType;
using lambda_gelu::kernels::Forward;
using lambda_gelu::kernels::Geometry;
using lambda_gelu::kernels::Operand;

double seconds(const std::function<void()>& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + v.size() / 2, v.end());
  return v[v.size() / 2];
}

void report(const std::string& name, const char* dtype, int threads, int64_t n, int pairs,
            const std::function<void()>& ours, const std::function<void()>& aten, bool& first) {
  std::vector<double> our_times, aten_times, ratios;
  ours(), aten();
  for (int i = 0; i < pairs; ++i) {
    our_times.push_back(seconds(ours));
    aten_times.push_back(seconds(aten));
    ratios.push_back(aten_times.back() / our_times.back());
  }
  std::printf(
      "%s\n  {\"case\": \"%s\", \"against\": \"ATen\", \"dtype\": \"%s\", \"threads\": %d, \"elements\": %lld, "
      "\"ours_ns_per_element\": %.4f, \"other_ns_per_element\": %.4f, \"speedup\": %.3f}",
      first ? "" : ",", name.c_str(), dtype, threads, static_cast<long long>(n), median(our_times) * 1e9 / n,
      median(aten_times) * 1e9 / n, median(ratios));
  std::fflush(stdout);
  first = false;
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t n = argc > 1 ? std::atoll(argv[1]) : int64_t{1} << 26;
  const int pairs = argc > 2 ? std::atoi(argv[2]) : 11;
  const double hardness = 1.5;
  struct Type {
    const char* name;
    at::ScalarType aten;
    DType ours;
  };
  bool first = true;
  std::printf("[");
  for (const Type& type :
       {Type{"float32", at::kFloat, DType::kFloat32}, Type{"bfloat16", at::kBFloat16, DType::kBFloat16}}) {
    const auto x = at::randn({n}).to(type.aten), g = at::randn({n}).to(type.aten);
    auto out = at::zeros_like(x);
    const Geometry geometry{1, 1, n};
    const Operand input{x.const_data_ptr()}, gradient{g.const_data_ptr()};
    for (const int threads : {1, 2}) {
      at::set_num_threads(threads);
      report(
          "forward, warm memory", type.name, threads, n, pairs,
          [&] {
            const Forward kernel(type.ours, geometry, input, out.mutable_data_ptr(), &hardness);
            at::parallel_for(0, kernel.units(), 1, [&](int64_t b, int64_t e) { kernel.run(b, e); });
          },
          [&] { at::gelu_out(out, x); }, first);
      report(
          "backward, warm memory", type.name, threads, n, pairs,
          [&] {
            Backward kernel(type.ours, geometry, gradient, input, out.mutable_data_ptr(), &hardness);
            at::parallel_for(0, kernel.units(), 1, [&](int64_t b, int64_t e) { kernel.run(b, e); });
            double sum = 0;
            kernel.sum(&sum);
          },
          [&] { at::gelu_backward_out(out, g, x); }, first);
    }
  }
  std::printf("\n]\n");
}
