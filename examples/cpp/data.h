// Readers of the data sets. No torch.
#pragma once

#include <cstdint>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <vector>

/// A file is not where it was looked for; every other fault of a file is a plain std::runtime_error.
struct MissingData : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Images of `features` pixels each, one after the other, and their labels.
struct Images {
  std::int64_t features = 0;
  std::vector<float> pixels;
  std::vector<std::int64_t> labels;
};

/// scikit-learn's handwritten digits as examples/python/digits.py --export-digits writes them: a line of 64 pixels from
/// 0 to 16 and the label per image. Throws std::runtime_error that says what is wrong with the file, and in which line.
Images read_digits(const std::filesystem::path& csv);

/// The images of Fashion-MNIST (or MNIST) from a folder with <part>-images-idx3-ubyte.gz and
/// <part>-labels-idx1-ubyte.gz as published, or unpacked; pixels from 0 to 255. part: "train", or "t10k" for the test
/// images. Needs gzip in PATH for packed ones. Throws std::runtime_error that says what is wrong with which file.
Images read_idx(const std::filesystem::path& folder, const std::string& part = "train");

/// The bytes of a file, or of `path`.xz where that is there, which needs xz in PATH. Throws std::runtime_error that
/// says what is wrong with which file, also where it is not of `size` bytes.
std::string read_text(const std::filesystem::path& path, std::size_t size);
