#include <gtest/gtest.h>

#include <set>
#include <string>
#include <vector>

#include "deepseek_models.h"
#include "golden.h"
#include "model/checkpoint.h"
#include "model/digest.h"
#include "tiny_model.h"

namespace capstan::model {
namespace {

std::string digest_of(const std::string& path, const std::string& overrides = "{}") {
  auto checkpoint = Checkpoint::open(path, overrides);
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.error().message;
  return checkpoint.ok() ? (*checkpoint)->digest() : "";
}

std::string digest_of(const std::vector<FileTensor>& tensors,
                      const std::string& config = kTinyConfig) {
  const TempDir dir;
  dir.write("config.json", config);
  dir.write("model.safetensors", safetensors_file(tensors));
  return digest_of(dir.path());
}

TEST(Digest, IsTheSameForTheSameModelAnywhere) {
  const std::string digest = digest_of(tiny_tensors());
  EXPECT_EQ(digest.size(), 64u);
  EXPECT_EQ(digest.find_first_not_of("0123456789abcdef"), std::string::npos);
  EXPECT_EQ(digest_of(tiny_tensors()), digest);  // another directory
  std::vector<FileTensor> reordered = tiny_tensors();
  std::rotate(reordered.begin(), reordered.begin() + 3, reordered.end());
  EXPECT_EQ(digest_of(reordered), digest);
}

TEST(Digest, SeesBytesShapesTypesNamesAndConfig) {
  std::set<std::string> digests = {digest_of(tiny_tensors())};
  const auto expect_new = [&](const std::string& digest, const char* what) {
    EXPECT_TRUE(digests.insert(digest).second) << what;
  };
  // In every tensor, the first byte, the middle one and the last.
  for (const FileTensor& t : tiny_tensors()) {
    for (const size_t at : {size_t{0}, t.bytes.size() / 2, t.bytes.size() - 1}) {
      std::vector<FileTensor> changed = tiny_tensors();
      tensor_named(changed, t.name).bytes[at] ^= 1;
      expect_new(digest_of(changed), t.name.c_str());
    }
  }
  std::vector<FileTensor> turned = tiny_tensors();
  FileTensor& down = tensor_named(turned, "model.layers.0.mlp.down_proj.weight");
  std::swap(down.shape[0], down.shape[1]);
  expect_new(digest_of(turned), "shape");
  std::vector<FileTensor> retyped = tiny_tensors();
  FileTensor& norm = tensor_named(retyped, "model.norm.weight");
  norm.dtype = DType::kBF16;
  norm.shape = {2 * norm.shape[0]};
  expect_new(digest_of(retyped), "dtype");
  std::vector<FileTensor> fewer = tiny_tensors();
  fewer.pop_back();
  expect_new(digest_of(fewer), "a tensor less");
  std::string config = kTinyConfig;
  config.replace(config.find("\"eos_token_id\":2"), 16, "\"eos_token_id\":3");
  expect_new(digest_of(tiny_tensors(), config), "config");

  const TempDir dir;
  dir.write("config.json", kTinyConfig);
  dir.write("model.safetensors", safetensors_file(tiny_tensors()));
  expect_new(digest_of(dir.path(), R"({"rope_theta":5000})"), "overrides");
}

TEST(Digest, DoesNotCareHowFilesAreCut) {
  // The two differ in the spelling of their configs alone.
  const std::string sharded = testdata("tiny-llama3-bf16-sharded"),
                    one = testdata("tiny-llama3-bf16");
  const TempDir dir;
  dir.write("config.json", read_file(sharded + "/config.json"));
  dir.write("model.safetensors", read_file(one + "/model.safetensors"));
  EXPECT_EQ(digest_of(dir.path()), digest_of(sharded));
  EXPECT_NE(digest_of(one), digest_of(sharded));
}

TEST(Digest, OfGgufSeesMetadataAndTensors) {
  const std::string path = testdata("gguf/tiny-llama3-q8_0.gguf");
  const std::string digest = digest_of(path);
  EXPECT_EQ(digest_of(path), digest);
  EXPECT_NE(digest_of(testdata("gguf/tiny-llama3-f16.gguf")), digest);
  std::string bytes = read_file(path);
  bytes[bytes.size() - 64] ^= 1;  // in the last tensor, whatever padding follows it
  const TempDir dir;
  EXPECT_NE(digest_of(dir.write("model.gguf", bytes)), digest);
  EXPECT_NE(digest_of(deepseek_checkpoint("tiny-v3-new-q8_0")), digest);
}

TEST(Digest, SamplesAFewOfManyTensors) {
  TensorTable table;
  std::vector<std::string> data(3000, std::string(16, 'x'));
  for (size_t i = 0; i < data.size(); ++i) {
    TensorView t;
    t.data = reinterpret_cast<const std::byte*>(data[i].data());
    t.dtype = DType::kU8;
    t.shape = {16};
    ASSERT_TRUE(table.add("t" + std::to_string(10000 + i), t, "file").ok());
  }
  const std::string digest = checkpoint_digest("{}", table);
  int seen = 0;
  for (size_t i = 0; i < 30; ++i) {
    data[i][5] = 'y';
    if (checkpoint_digest("{}", table) != digest) ++seen;
    data[i][5] = 'x';
  }
  EXPECT_EQ(seen, 10);  // every third of 3,000
}

}  // namespace
}  // namespace capstan::model
