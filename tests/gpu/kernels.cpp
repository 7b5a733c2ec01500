// The CUDA kernels on a GPU without torch: every dtype, way of cutting a tensor, alignment and kind of operand, each
// buffer an allocation of its own that ends with its last element. Made to be run under compute-sanitizer, where torch
// would take minutes to start and its allocator would hide what lies beyond a tensor.
//
// Values are compared with the long double reference of the host tests, to a few units in the last place of the result:
// what is accurate to the last one is settled elsewhere.
#include <kernel_testing.h>
#include <kernels/cuda/lambda_gelu.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#if defined(LAMBDA_GELU_ON_HOST)  // a rehearsal: the emulated kernels, host memory
namespace {
void* allocate(std::size_t bytes) {
  return std::malloc(std::max<std::size_t>(bytes, 1));
}
void release(void* p) {
  std::free(p);
}
void upload(void* to, const void* from, std::size_t bytes) {
  std::memcpy(to, from, bytes);
}
void download(void* to, const void* from, std::size_t bytes) {
  std::memcpy(to, from, bytes);
}
}  // namespace
#else
#include <cuda_runtime.h>
namespace {
void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "kernels: %s\n", cudaGetErrorString(error));
  std::exit(1);
}
void* allocate(std::size_t bytes) {
  void* p = nullptr;
  check(cudaMalloc(&p, std::max<std::size_t>(bytes, 1)));
  return p;
}
void release(void* p) {
  check(cudaFree(p));
}
void upload(void* to, const void* from, std::size_t bytes) {
  check(cudaMemcpy(to, from, bytes, cudaMemcpyHostToDevice));
}
// Waits for the kernels, whose errors appear here.
void download(void* to, const void* from, std::size_t bytes) {
  check(cudaMemcpy(to, from, bytes, cudaMemcpyDeviceToHost));
}
}  // namespace
#endif

namespace {

using namespace lambda_gelu::kernels;
using testing::Array;

class DeviceBuffer {
 public:
  /// `count` elements, the first `offset` elements behind the start of an aligned allocation.
  DeviceBuffer(DType dtype, std::int64_t count, std::int64_t offset = 0)
      : bytes_(static_cast<std::size_t>(count * element_size(dtype))),
        base_(allocate(bytes_ + static_cast<std::size_t>(offset * element_size(dtype)))),
        data_(static_cast<std::byte*>(base_) + offset * element_size(dtype)) {}
  DeviceBuffer(const Array& values, std::int64_t offset = 0) : DeviceBuffer(values.dtype(), values.size(), offset) {
    upload(data_, values.data(), bytes_);
  }
  ~DeviceBuffer() { release(base_); }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  void* data() const { return data_; }
  Array read(DType dtype) const {
    Array values(dtype, static_cast<std::int64_t>(bytes_) / element_size(dtype));
    download(values.data(), data_, bytes_);
    return values;
  }

 private:
  std::size_t bytes_;
  void* base_;
  std::byte* data_;
};

struct Case {
  const char* name;
  Geometry geometry;
};
// Around the sizes at which a tensor is cut differently: vectors, warps, tiles, several tiles, planes and columns.
const Case kCases[] = {
    {"1 element", {1, 1, 1}},
    {"7", {1, 1, 7}},
    {"a few warps", {1, 1, 1'025}},
    {"a tile and a bit", {1, 1, 16'387}},
    {"many tiles", {1, 1, 300'001}},
    {"last dimension", {37, 64, 1}},
    {"last dimension, odd", {150, 77, 1}},
    {"last dimension, narrow", {1'000, 3, 1}},
    {"last dimension, many rows", {3'000, 40, 1}},
    {"planes", {3, 5, 1'024}},
    {"planes, large", {2, 2, 40'000}},
    {"planes, odd", {3, 5, 1'021}},
    {"planes of 49", {9, 33, 49}},
    {"planes of 3", {50, 64, 3}},
    {"first dimension", {1, 7, 3'001}},
};

enum class Layout { kDense, kMisaligned, kStrided };
const char* name_of(Layout layout) {
  return layout == Layout::kDense ? "dense" : layout == Layout::kMisaligned ? "misaligned" : "strided";
}

// Every element twice: the operand is every second one of it.
Array doubled(const Array& values) {
  Array result(values.dtype(), 2 * values.size());
  for (std::int64_t i = 0; i < result.size(); ++i) result.set(i, values[i / 2]);
  return result;
}

int failures = 0;
void expect(bool good, const std::string& where, const char* what, double actual, double expected) {
  if (good) return;
  if (++failures <= 20) std::printf("FAILED %s: %s is %.9g, expected %.9g\n", where.c_str(), what, actual, expected);
}

void expect_success(const cuda::Status& status, const std::string& where) {
  if (status) return;
  std::printf("FAILED %s: %s\n", where.c_str(), status.message.c_str());
  std::exit(1);
}

double tolerance_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return 1e-14;
    case DType::kFloat32:
      return 4e-6;
    case DType::kFloat16:
      return 1.1e-3;
    default:
      return 8.5e-3;
  }
}

void run(const Case& test, DType dtype, Layout layout, double temperature) {
  const std::string where = std::string(test.name) + ", " + testing::name_of(dtype) + ", " + name_of(layout) +
                            (temperature > 0 ? ", softplus" : "");
  const Geometry& geometry = test.geometry;
  const std::int64_t size = geometry.size();
  const Array x = testing::random_normal(dtype, size, 1.5, 1);
  const Array g = testing::random_normal(dtype, size, 1.0, 2);
  Array parameter(DType::kFloat32, geometry.channels);
  std::vector<double> lambda(static_cast<std::size_t>(geometry.channels));
  for (std::int64_t c = 0; c < geometry.channels; ++c) {
    parameter.set(c, temperature > 0 ? 0.01 * static_cast<double>(c % 50) : 1.0 + 0.03 * static_cast<double>(c % 50));
    const double value = parameter[c];
    lambda[static_cast<std::size_t>(c)] =
        temperature > 0 ? static_cast<float>(1 + std::log1p(std::exp(value / temperature))) : value;
  }

  const std::int64_t offset = layout == Layout::kMisaligned ? 1 : 0;
  const bool strided = layout == Layout::kStrided;
  const DeviceBuffer x_device(strided ? doubled(x) : x, offset);
  const DeviceBuffer g_device(strided ? doubled(g) : g, offset);
  const std::int64_t sizes[] = {size}, strides[] = {2};
  const auto operand = [&](const DeviceBuffer& buffer) {
    return strided ? Operand{buffer.data(), 1, sizes, strides} : Operand{buffer.data()};
  };
  const DeviceBuffer y_device(Array::from(dtype, std::vector<double>(static_cast<std::size_t>(size), NAN)), offset);
  const DeviceBuffer dx_device(Array::from(dtype, std::vector<double>(static_cast<std::size_t>(size), NAN)), offset);
  const DeviceBuffer parameter_device(parameter);
  const DeviceBuffer gradient_device(DType::kFloat32, geometry.channels);
  const DeviceBuffer workspace(DType::kFloat64, cuda::backward_workspace(dtype, geometry) / 8);
  const cuda::Hardness hardness{parameter_device.data(), DType::kFloat32, 1, temperature};

  expect_success(cuda::forward(dtype, geometry, operand(x_device), y_device.data(), hardness, nullptr), where);
  expect_success(cuda::backward(dtype, geometry, operand(g_device), operand(x_device), dx_device.data(), hardness,
                                gradient_device.data(), workspace.data(), nullptr),
                 where);
  const Array y = y_device.read(dtype), dx = dx_device.read(dtype), gradient = gradient_device.read(DType::kFloat32);

  const double tolerance = tolerance_of(dtype);
  std::vector<double> sums(lambda.size()), magnitudes(lambda.size());
  for (std::int64_t i = 0; i < size; ++i) {
    const auto channel = static_cast<std::size_t>(i / geometry.inner % geometry.channels);
    const auto exact = testing::reference(x[i], lambda[channel]);
    const double expected_y = static_cast<double>(exact.y);
    const double expected_dx = g[i] * static_cast<double>(exact.derivative);
    expect(std::fabs(y[i] - expected_y) <= tolerance * (std::fabs(expected_y) + 1e-3), where, "y", y[i], expected_y);
    expect(std::fabs(dx[i] - expected_dx) <= tolerance * (std::fabs(expected_dx) + 0.1), where, "dx", dx[i],
           expected_dx);
    const double term = g[i] * static_cast<double>(exact.hardness_term);
    sums[channel] += term;
    magnitudes[channel] += std::fabs(term);
  }
  for (std::int64_t c = 0; c < geometry.channels; ++c) {
    const auto channel = static_cast<std::size_t>(c);
    const double chain = temperature > 0 ? 1 / ((1 + std::exp(-parameter[c] / temperature)) * temperature) : 1;
    const double expected = sums[channel] * chain;
    const double bound = 2e-6 * magnitudes[channel] * chain;
    expect(std::fabs(gradient[c] - expected) <= bound, where, "the gradient of a hardness", gradient[c], expected);
  }
}

}  // namespace

int main(int argc, char** argv) {
  const std::int64_t largest = argc > 1 ? std::atoll(argv[1]) : 1'000'000;  // of the cases to run, in elements
  int cases = 0;
  for (const Case& test : kCases) {
    if (test.geometry.size() > largest) continue;
    for (const DType dtype : testing::kAllDTypes) {
      for (const Layout layout : {Layout::kDense, Layout::kMisaligned, Layout::kStrided}) {
        for (const double temperature : {0.0, 0.5}) {
          run(test, dtype, layout, temperature);
          ++cases;
        }
      }
    }
  }
  std::printf("%d cases, %d wrong values\n", cases, failures);
  return failures == 0 ? 0 : 1;
}
