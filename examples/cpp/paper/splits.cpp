#include "paper/splits.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

#include <string>

#include "data.h"

namespace paper {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kHeldOut = 5000;  // of Fashion-MNIST, which has no validation split
constexpr int64_t kCalibrationImages = 1000;
constexpr int64_t kContext = 64, kScoredBytes = 16'384, kTestBytes = 65'536, kCalibrationBytes = 4096;

// `count` examples at even distances, or all.
Split spread(const Split& split, int64_t count) {
  if (count >= split.size()) return split;
  return split.select((at::arange(count) * split.size()).div(count, "floor"));
}

Split images_of(const fs::path& folder, const std::string& part, int64_t count) {
  const auto images = read_idx(folder, part);
  const auto found = static_cast<int64_t>(images.labels.size());
  if (found != count) {
    throw std::runtime_error(folder.string() + ": expected " + std::to_string(count) + " images of the part '" + part +
                             "', got " + std::to_string(found));
  }
  const auto pixels = at::from_blob(const_cast<float*>(images.pixels.data()), {count, images.features}, at::kFloat);
  const auto labels = at::from_blob(const_cast<int64_t*>(images.labels.data()), {count}, at::kLong);
  return {(pixels / 255 - 0.286) / 0.353, labels.clone()};
}

// Windows that touch.
Split windows_of(const fs::path& file, size_t size) {
  const auto text = read_text(file, size);
  const auto bytes = at::from_blob(const_cast<char*>(text.data()), {static_cast<int64_t>(size)}, at::kByte).clone();
  const int64_t count = (bytes.size(0) - 1) / kContext;
  return {bytes.slice(0, 0, count * kContext).view({count, kContext}),
          bytes.slice(0, 1, count * kContext + 1).view({count, kContext})};
}

Splits load_fashion_mnist(const fs::path& folder) {
  const auto all = images_of(folder, "train", 60'000);
  const auto train = all.slice(0, all.size() - kHeldOut);
  return {train, all.slice(train.size(), kHeldOut), spread(train, kCalibrationImages),
          images_of(folder, "t10k", 10'000)};
}

Splits load_wikitext_2(const fs::path& folder) {
  const auto train = windows_of(folder / "train.txt", 10'797'148);
  return {train, spread(windows_of(folder / "valid.txt", 1'121'681), kScoredBytes / kContext),
          spread(train, kCalibrationBytes / kContext),
          spread(windows_of(folder / "test.txt", 1'256'449), kTestBytes / kContext)};
}

}  // namespace

Split Split::slice(int64_t start, int64_t count) const {
  return {x.slice(0, start, start + count), y.slice(0, start, start + count)};
}

Split Split::select(const at::Tensor& chosen) const {
  return {x.index_select(0, chosen), y.index_select(0, chosen)};
}

at::Tensor Split::inputs() const {
  return x.scalar_type() == at::kByte ? x.to(at::kLong) : x;
}

at::Tensor Split::targets() const {
  return y.to(at::kLong);
}

Splits load(const System& system, const fs::path& folder, std::optional<int> examples) {
  auto splits = system.name == "fashion-mnist" ? load_fashion_mnist(folder / "fashion-mnist")
                                               : load_wikitext_2(folder / "wikitext-2");
  if (examples) {
    for (Split* split : {&splits.train, &splits.held_out, &splits.calibration, &splits.test}) {
      *split = split->slice(0, *examples);
    }
  }
  return splits;
}

}  // namespace paper
