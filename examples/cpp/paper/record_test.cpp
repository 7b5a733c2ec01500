// The records of paper against JSON as RFC 8259 has it, and the settings' own rules. Against Python's reader:
// tests/python/test_paper_cpp.py.
#include "paper/record.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <iterator>
#include <limits>
#include <stdexcept>

#include "paper/settings.h"

namespace {

namespace fs = std::filesystem;

std::string content_of(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(Json, HasEveryKindOfValue) {
  const auto object = JsonObject()
                          .add("text", "a \"quoted\" \\ λ\n")
                          .add("numbers", std::vector<double>{0.1, 50, 1e-12, -2.5})
                          .add("count", std::int64_t{1} << 40)
                          .add("yes", true)
                          .add("nothing", std::optional<int>())
                          .add("some", std::optional<int>(3))
                          .add("inside", JsonObject().add("empty", std::vector<double>{}));
  EXPECT_EQ(object.text(),
            R"({"text":"a \"quoted\" \\ λ\u000a","numbers":[0.1,50,1e-12,-2.5],"count":1099511627776,"yes":true,)"
            R"("nothing":null,"some":3,"inside":{"empty":[]}})");
}

TEST(Json, HasNoWordForWhatIsNotFinite) {
  const double infinity = std::numeric_limits<double>::infinity();
  EXPECT_EQ(to_json(std::vector<double>{infinity, -infinity, std::nan("")}), "[null,null,null]");
}

class Record : public testing::Test {
 protected:
  void SetUp() override { fs::remove_all(folder); }
  void TearDown() override { fs::remove_all(folder); }

  fs::path folder = fs::path(testing::TempDir()) / "records of paper";
};

TEST_F(Record, IsOnDiskLineByLine) {
  const auto path = folder / "system" / "arm-0.jsonl";
  RecordFile record(path);
  record.write(JsonObject().add("kind", "run"));
  EXPECT_EQ(content_of(path), "{\"kind\":\"run\"}\n");
  record.write(JsonObject().add("kind", "end"));
  EXPECT_EQ(content_of(path), "{\"kind\":\"run\"}\n{\"kind\":\"end\"}\n");
}

TEST_F(Record, IsNeverMixedWithAnother) {
  const auto path = folder / "arm-0.jsonl";
  RecordFile(path).write(JsonObject());
  try {
    RecordFile again(path);
    ADD_FAILURE() << "nothing was thrown";
  } catch (const std::runtime_error& error) {
    EXPECT_NE(std::string(error.what()).find("arm-0.jsonl is there already"), std::string::npos) << error.what();
  }
  EXPECT_EQ(content_of(path), "{}\n");
}

TEST(Settings, TheRateRisesThenFallsAsACosine) {
  auto system = paper::system_of("gpt4x128-bytes");
  system.epochs = 10;
  system.warmup_epochs = 0.5;
  system.final_rate = 0.1;
  EXPECT_DOUBLE_EQ(system.rate(0, 100), 0.02);
  EXPECT_DOUBLE_EQ(system.rate(49, 100), 1);
  EXPECT_DOUBLE_EQ(system.rate(50, 100), 1);
  EXPECT_DOUBLE_EQ(system.rate(525, 100), 0.55);
  EXPECT_NEAR(system.rate(999, 100), 0.1, 1e-5);
  EXPECT_DOUBLE_EQ(system.rate(5000, 100), 0.1);
}

TEST(Settings, BetterIsMoreAccuracyOrLessPerplexityAndNeverNaN) {
  const auto& images = paper::system_of("fashion-mnist");
  const auto& text = paper::system_of("gpt4x128-bytes");
  EXPECT_TRUE(images.better(89, 88) && text.better(5, 6));
  EXPECT_FALSE(images.better(88, 88) || text.better(6, 6) || images.better(std::nan(""), 0) ||
               text.better(std::nan(""), 9));
}

}  // namespace
