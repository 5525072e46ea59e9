#include "platform/mapped_file.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "platform/mapping_faults.h"

namespace capstan::platform {
namespace {

namespace fs = std::filesystem;

class MappedFileTest : public ::testing::Test {
 protected:
  MappedFileTest() {
    std::string pattern = (fs::temp_directory_path() / "capstan-map-XXXXXX").string();
    dir_ = mkdtemp(pattern.data());
  }
  ~MappedFileTest() override { fs::remove_all(dir_); }
  std::string put(const std::string& name, const std::string& text) {
    std::ofstream(dir_ / name) << text;
    return (dir_ / name).string();
  }
  fs::path dir_;
};

TEST_F(MappedFileTest, MapsTheBytes) {
  std::string text(10000, 'x');
  for (size_t i = 0; i < text.size(); ++i) text[i] = static_cast<char>('a' + i % 26);
  auto file = MappedFile::open(put("a", text));
  ASSERT_TRUE(file.ok()) << file.error().message;
  for (auto advice : {MappedFile::Advice::kSequential, MappedFile::Advice::kWillNeed,
                      MappedFile::Advice::kDontNeed}) {
    file->advise(advice);
    file->advise(advice, 5000, 100);
    file->advise(advice, 20000, 100);
  }
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(file->data()), file->size()), text);
  MappedFile moved = std::move(*file);
  EXPECT_EQ(moved.size(), text.size());
  EXPECT_EQ(file->data(), nullptr);
  file->advise(MappedFile::Advice::kWillNeed);
  moved = MappedFile();
  EXPECT_EQ(moved.size(), 0u);
}

TEST_F(MappedFileTest, ErrorsNamePathAndReason) {
  const std::string missing = (dir_ / "none").string();
  auto file = MappedFile::open(missing);
  ASSERT_FALSE(file.ok());
  EXPECT_EQ(file.error().code, ErrorCode::kNotFound);
  EXPECT_NE(file.error().message.find(missing), std::string::npos);
  EXPECT_NE(file.error().message.find("No such file"), std::string::npos);

  file = MappedFile::open(put("empty", ""));
  ASSERT_FALSE(file.ok());
  EXPECT_EQ(file.error().code, ErrorCode::kDataLoss);
  EXPECT_NE(file.error().message.find("empty"), std::string::npos);

  file = MappedFile::open(dir_.string());
  ASSERT_FALSE(file.ok());
  EXPECT_EQ(file.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(file.error().message.find("directory"), std::string::npos);

  const std::string pipe = (dir_ / "pipe").string();
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  file = MappedFile::open(pipe);  // must not wait for a writer
  ASSERT_FALSE(file.ok());
  EXPECT_NE(file.error().message.find("not a regular file"), std::string::npos);

  file = MappedFile::open(put("file", "x") + "/below");
  ASSERT_FALSE(file.ok());
  EXPECT_EQ(file.error().code, ErrorCode::kNotFound);
}

TEST_F(MappedFileTest, ATruncatedFileIsNamedWhenTheProcessDies) {
  const std::string path = put("shrinks", std::string(64 << 10, 'x'));
  EXPECT_EXIT(
      {
        explain_mapping_faults();
        auto other = MappedFile::open(put("stays", "x"));
        auto file = MappedFile::open(path);
        const bool cut = truncate(path.c_str(), 4096) == 0;
        const volatile std::byte* data = file->data();
        exit(cut ? static_cast<int>(data[8192]) : 1);
      },
      testing::KilledBySignal(SIGBUS), "shrinks' can not be read at byte 8192");
}

}  // namespace
}  // namespace capstan::platform
