// Readers of the two data sets. No torch.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

/// Images of `features` pixels each, one after the other, and their labels.
struct Images {
  std::int64_t features = 0;
  std::vector<float> pixels;
  std::vector<std::int64_t> labels;
};

/// scikit-learn's handwritten digits as examples/python/digits.py --export-digits writes them: a line of 64 pixels from
/// 0 to 16 and the label per image. Throws std::runtime_error that says what is wrong with the file, and in which line.
Images read_digits(const std::filesystem::path& csv);

/// The training images of Fashion-MNIST (or MNIST) from a folder with train-images-idx3-ubyte.gz and
/// train-labels-idx1-ubyte.gz as published, or unpacked; pixels from 0 to 255. Needs gzip in PATH for packed ones.
/// Throws std::runtime_error that says what is wrong with which file.
Images read_idx(const std::filesystem::path& folder);
