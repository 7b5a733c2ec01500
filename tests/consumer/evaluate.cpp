// evaluate <file> <raw_hardness> <temperature>: reads float32 numbers x, writes y, dx and ds of
// softplus_lambda_gelu for the gradient 1 to standard output, as raw float32. The Python tests compare the bits.
#include <ATen/Functions.h>
#include <lambda_gelu/ops/functional.h>

#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iterator>
#include <vector>

namespace {

void write(const at::Tensor& t) {
  std::fwrite(t.const_data_ptr<float>(), sizeof(float), static_cast<std::size_t>(t.numel()), stdout);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  std::ifstream file(argv[1], std::ios::binary);
  std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  const auto x = at::from_blob(bytes.data(), {static_cast<int64_t>(bytes.size() / sizeof(float))}, at::kFloat);
  const auto s = at::full({1}, std::atof(argv[2]), at::kFloat);
  const double temperature = std::atof(argv[3]);

  write(lambda_gelu::softplus_lambda_gelu(x, s, temperature));
  const auto [dx, ds] = lambda_gelu::lambda_gelu_backward(at::ones_like(x), x, s, 1, temperature);
  write(dx);
  write(ds);
}
