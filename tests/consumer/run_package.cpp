// run_package <package.pt2> <file> <columns>: reads x of float32 with so many columns, runs a package of AOTInductor on
// it and writes what comes out to standard output as raw numbers. It names no function of ours: where the package calls
// the operator, the library only has to be loaded.
#include <ATen/ops/from_blob.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <iterator>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  try {
    torch::inductor::AOTIModelPackageLoader loader(argv[1]);
    std::ifstream file(argv[2], std::ios::binary);
    std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
    const auto columns = static_cast<int64_t>(std::atoi(argv[3]));
    const auto rows = static_cast<int64_t>(bytes.size() / sizeof(float)) / columns;
    const auto y = loader.run({at::from_blob(bytes.data(), {rows, columns}, at::kFloat)}).at(0).contiguous();
    std::fwrite(y.const_data_ptr(), y.element_size(), static_cast<std::size_t>(y.numel()), stdout);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
