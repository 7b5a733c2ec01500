// evaluate <file> <dtype> <raw_hardness> <temperature>: reads x of float32, float64, bfloat16 or float16 in three
// columns, each with a raw hardness of its own, and writes y, dx and ds of softplus_lambda_gelu for the gradient 1 to
// standard output as raw numbers. The Python tests compare the bits.
#include <ATen/Functions.h>
#include <lambda_gelu/ops/functional.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

namespace {

constexpr int64_t kChannels = 3;

at::ScalarType dtype_of(const std::string& name) {
  if (name == "float64") return at::kDouble;
  if (name == "bfloat16") return at::kBFloat16;
  return name == "float16" ? at::kHalf : at::kFloat;
}

void write(const at::Tensor& t) {
  std::fwrite(t.const_data_ptr(), t.element_size(), static_cast<std::size_t>(t.numel()), stdout);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) return 2;
  std::ifstream file(argv[1], std::ios::binary);
  std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  const auto dtype = dtype_of(argv[2]);
  const auto count = static_cast<int64_t>(bytes.size() / c10::elementSize(dtype));
  const auto x = at::from_blob(bytes.data(), {count / kChannels, kChannels}, dtype);
  const auto s = at::arange(kChannels, at::kFloat).sub(0.5).mul(std::atof(argv[3]));
  const double temperature = std::atof(argv[4]);

  write(lambda_gelu::softplus_lambda_gelu(x, s, temperature));
  const auto [dx, ds] = lambda_gelu::lambda_gelu_backward(at::ones_like(x), x, s, 1, temperature);
  write(dx);
  write(ds);
}
