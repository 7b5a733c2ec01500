// The readers against files that are written here byte by byte.
#include "data.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <fstream>
#include <stdexcept>

namespace {

namespace fs = std::filesystem;

class Reader : public testing::Test {
 protected:
  void SetUp() override {
    folder = fs::path(testing::TempDir()) /
             ("it's data of " + std::string(testing::UnitTest::GetInstance()->current_test_info()->name()));
    fs::remove_all(folder);
    fs::create_directories(folder);
  }
  void TearDown() override { fs::remove_all(folder); }

  fs::path write(const std::string& name, const std::string& content) const {
    std::ofstream(folder / name, std::ios::binary) << content;
    return folder / name;
  }

  fs::path folder;
};

std::string big_endian(unsigned value) {
  return {static_cast<char>(value >> 24), static_cast<char>(value >> 16), static_cast<char>(value >> 8),
          static_cast<char>(value)};
}

// Two images of 2 x 3 pixels, 0 to 5 and 250 to 255.
std::string idx_images() {
  std::string bytes = big_endian(0x803) + big_endian(2) + big_endian(2) + big_endian(3);
  for (int value : {0, 1, 2, 3, 4, 5, 250, 251, 252, 253, 254, 255}) bytes += static_cast<char>(value);
  return bytes;
}

std::string idx_labels(const std::string& labels) {
  return big_endian(0x801) + big_endian(static_cast<unsigned>(labels.size())) + labels;
}

template <typename Call>
void expect_error(const Call& call, const std::string& words) {
  try {
    call();
    ADD_FAILURE() << "nothing was thrown";
  } catch (const std::runtime_error& error) {
    EXPECT_NE(std::string(error.what()).find(words), std::string::npos) << error.what();
  }
}

void expect_the_two_images(const Images& images) {
  EXPECT_EQ(images.features, 6);
  EXPECT_EQ(images.pixels, (std::vector<float>{0, 1, 2, 3, 4, 5, 250, 251, 252, 253, 254, 255}));
  EXPECT_EQ(images.labels, (std::vector<std::int64_t>{9, 3}));
}

TEST_F(Reader, ReadsPlainIdxFiles) {
  write("train-images-idx3-ubyte", idx_images());
  write("train-labels-idx1-ubyte", idx_labels("\x09\x03"));
  expect_the_two_images(read_idx(folder));
}

TEST_F(Reader, ReadsPackedIdxFilesInAFolderWithAnyName) {
  const auto images = write("train-images-idx3-ubyte", idx_images());
  const auto labels = write("train-labels-idx1-ubyte", idx_labels("\x09\x03"));
  ASSERT_EQ(std::system(("gzip \"" + images.string() + "\" \"" + labels.string() + "\"").c_str()), 0);
  ASSERT_FALSE(fs::exists(images));
  expect_the_two_images(read_idx(folder));
}

TEST_F(Reader, RefusesDamagedIdxFiles) {
  expect_error([&] { read_idx(folder); }, "found neither");
  write("train-images-idx3-ubyte", idx_images());
  write("train-labels-idx1-ubyte", "\0\0");
  expect_error([&] { read_idx(folder); }, "train-labels-idx1-ubyte: expected an IDX header of 8 bytes");
  write("train-labels-idx1-ubyte", idx_images());
  expect_error([&] { read_idx(folder); }, "expected the IDX magic number 0x801 (bytes in 1 dimensions), got 0x803");
  write("train-labels-idx1-ubyte", idx_labels("\x09\x03") + "x");
  expect_error([&] { read_idx(folder); }, "expected 2 elements behind the header, got 3");
  write("train-labels-idx1-ubyte", idx_labels("\x09"));
  expect_error([&] { read_idx(folder); }, "expected as many labels as images, got 1 and 2");
  write("train-labels-idx1-ubyte", idx_labels("\x09\x0a"));
  expect_error([&] { read_idx(folder); }, "expected labels from 0 to 9, got 10");
  write("train-labels-idx1-ubyte.gz", "this is not gzip");
  expect_error([&] { read_idx(folder); }, "gzip could not unpack");
}

TEST_F(Reader, ReadsTheTestImagesByTheirPart) {
  write("t10k-images-idx3-ubyte", idx_images());
  write("t10k-labels-idx1-ubyte", idx_labels("\x09\x03"));
  expect_the_two_images(read_idx(folder, "t10k"));
  EXPECT_THROW(read_idx(folder), MissingData);
}

TEST_F(Reader, ReadsATextPlainOrPacked) {
  const std::string words(" = Valkyria = \n\0\xff", 17);
  const auto text = write("train.txt", words);
  EXPECT_EQ(read_text(text, 17), words);
  ASSERT_EQ(std::system(("xz \"" + text.string() + "\"").c_str()), 0);
  ASSERT_FALSE(fs::exists(text));
  EXPECT_EQ(read_text(text, 17), words);
  expect_error([&] { read_text(text, 18); }, "train.txt: expected 18 bytes, got 17");
  write("train.txt.xz", "this is not xz");
  expect_error([&] { read_text(text, 17); }, "xz could not unpack");
}

TEST_F(Reader, NamesATextThatIsMissing) {
  EXPECT_THROW(read_text(folder / "valid.txt", 1), MissingData);
  expect_error([&] { read_text(folder / "valid.txt", 1); }, "valid.txt, found neither");
}

std::string csv_line(int first_pixel, int label) {
  std::string line = std::to_string(first_pixel);
  for (int i = 1; i < 64; ++i) line += "," + std::to_string(i % 17);
  return line + "," + std::to_string(label);
}

TEST_F(Reader, ReadsDigitsWithEitherLineEnd) {
  const auto images = read_digits(write("digits.csv", csv_line(16, 7) + "\r\n" + csv_line(5, 0) + "\n"));
  EXPECT_EQ(images.features, 64);
  ASSERT_EQ(images.pixels.size(), 128);
  EXPECT_EQ(images.pixels[0], 16);
  EXPECT_EQ(images.pixels[63], 63 % 17);
  EXPECT_EQ(images.pixels[64], 5);
  EXPECT_EQ(images.labels, (std::vector<std::int64_t>{7, 0}));
}

TEST_F(Reader, RefusesDamagedDigits) {
  const auto refuse = [&](const std::string& content, const std::string& words) {
    const auto path = write("digits.csv", content);
    expect_error([&] { read_digits(path); }, words);
  };
  expect_error([&] { read_digits(folder / "missing.csv"); }, "--export-digits");
  refuse("", "the file is empty");
  refuse("1,2,3\n", "line 1: expected 64 pixels and a label, got 3 numbers");
  refuse(csv_line(1, 2) + "\n" + csv_line(17, 2), "line 2: expected pixels from 0 to 16, got 17");
  refuse(csv_line(-1, 2), "expected pixels from 0 to 16, got -1");
  refuse(csv_line(1, 10), "expected a label from 0 to 9, got 10");
  refuse("1,x" + csv_line(1, 2), "expected whole numbers with commas between them");
  refuse("1.5," + csv_line(1, 2), "expected whole numbers with commas between them");
}

}  // namespace
