#include "model/gguf_file.h"

#include <gtest/gtest.h>

#include "checkpoint_files.h"

namespace capstan::model {
namespace {

Result<GgufFile> parse(const std::string& bytes) {
  return GgufFile::parse(std::as_bytes(std::span(bytes)), "f.gguf");
}

void refuse(const std::string& bytes, std::vector<std::string> parts,
            ErrorCode code = ErrorCode::kDataLoss) {
  parts.push_back("f.gguf");
  expect_error(parse(bytes), code, parts);
}

GgufWriter good() {
  GgufWriter w;
  w.string("general.architecture", "llama").u32("n", 7).f32("x", 0.5F).boolean("b", true);
  w.strings("list", {"a", "", "ccc"}).i32s("ints", {1, -2, 3});
  w.raw_key("big", 10, raw(uint64_t{1} << 63)).raw_key("neg", 11, raw(int64_t{-5}));
  w.raw_key("small", 1, raw(int8_t{-3})).raw_key("double", 12, raw(2.5));
  w.tensor(float_tensor("m", {2, 3}, [](int64_t i) { return static_cast<double>(i); }), 0);
  w.tensor({"q", DType::kQ8_0, {2, 32}, std::string(68, 'q')}, 8);
  return w;
}

TEST(GgufFile, ReadsMetadataAndTensors) {
  for (const uint32_t version : {2u, 3u}) {
    GgufWriter w = good();
    w.version = version;
    const std::string bytes = w.bytes();
    const auto gguf = parse(bytes);
    ASSERT_TRUE(gguf.ok()) << gguf.error().message;
    EXPECT_EQ(**gguf->string("general.architecture"), "llama");
    EXPECT_EQ(**gguf->integer("n"), 7);
    EXPECT_EQ(**gguf->number("x"), 0.5);
    EXPECT_EQ(**gguf->number("n"), 7.0);
    EXPECT_EQ(**gguf->number("double"), 2.5);
    EXPECT_TRUE(**gguf->boolean("b"));
    EXPECT_EQ(**gguf->integer("neg"), -5);
    EXPECT_EQ(**gguf->integer("small"), -3);
    EXPECT_FALSE(gguf->integer("absent")->has_value());
    EXPECT_EQ((*gguf->array("list"))->strings, (std::vector<std::string_view>{"a", "", "ccc"}));
    EXPECT_EQ(scalar_integer((*gguf->array("ints"))->at(1)), -2);
    EXPECT_EQ(*gguf->array("absent"), nullptr);

    ASSERT_EQ(gguf->tensors().size(), 2u);
    const TensorView& m = gguf->tensors()[0];
    EXPECT_EQ(m.shape, (std::vector<int64_t>{2, 3}));  // reversed against the file
    float last = 0;
    std::memcpy(&last, m.data + 20, 4);
    EXPECT_EQ(last, 5.0F);
    EXPECT_EQ(gguf->tensors()[1].dtype, DType::kQ8_0);
    EXPECT_EQ(gguf->tensors()[1].bytes(), 68u);
  }
}

TEST(GgufFile, WrongTypesAreNamed) {
  const std::string bytes = good().bytes();
  const auto gguf = parse(bytes);
  ASSERT_TRUE(gguf.ok());
  expect_error(gguf->integer("x"), ErrorCode::kDataLoss, {"f.gguf", "'x'", "integer"});
  expect_error(gguf->integer("big"), ErrorCode::kDataLoss, {"'big'"});
  expect_error(gguf->number("list"), ErrorCode::kDataLoss, {"'list'"});
  expect_error(gguf->string("n"), ErrorCode::kDataLoss, {"'n'", "string"});
  expect_error(gguf->boolean("n"), ErrorCode::kDataLoss, {"'n'", "boolean"});
  expect_error(gguf->array("n"), ErrorCode::kDataLoss, {"'n'", "array"});
}

TEST(GgufFile, EveryTruncationIsAnErrorNotACrash) {
  const std::string bytes = good().bytes();
  // The last tensor's padding (28 bytes) is not needed.
  for (size_t n = 0; n + 28 < bytes.size(); ++n) {
    const auto gguf = parse(bytes.substr(0, n));
    ASSERT_FALSE(gguf.ok()) << "accepted " << n << " of " << bytes.size() << " bytes";
    EXPECT_EQ(gguf.error().code, ErrorCode::kDataLoss);
  }
}

TEST(GgufFile, RefusesOtherContainers) {
  refuse("GGML" + std::string(40, '\0'), {"not a GGUF file", "GGML"});
  GgufWriter w;
  w.version = 1;
  refuse(w.bytes(), {"version 1"}, ErrorCode::kInvalidArgument);
  w.version = 0x03000000;
  refuse(w.bytes(), {"big-endian"}, ErrorCode::kInvalidArgument);
}

TEST(GgufFile, RefusesLyingCounts) {
  GgufWriter keys = good();
  keys.key_count = UINT64_MAX;
  refuse(keys.bytes(), {});
  GgufWriter tensors = good();
  tensors.tensor_count = UINT64_MAX;
  refuse(tensors.bytes(), {});
  refuse(GgufWriter().raw_key("k", 8, raw(UINT64_MAX)).bytes(), {"'k'", "18446744073709551615"});
  // 2^61 elements of 8 bytes wrap to 0 bytes.
  for (const uint32_t type : {0u, 8u, 10u, 12u}) {
    refuse(GgufWriter().raw_key("k", 9, raw(type) + raw(uint64_t{1} << 61)).bytes(), {"'k'"});
  }
  refuse(GgufWriter().raw_key("k", 9, raw(uint32_t{9}) + raw(uint64_t{1})).bytes(),
         {"'k'", "array of arrays"});
  refuse(GgufWriter().raw_key("k", 9, raw(uint32_t{99}) + raw(uint64_t{1})).bytes(), {"'k'", "99"});
  refuse(GgufWriter().raw_key("k", 13, "").bytes(), {"'k'", "13"});
  refuse(GgufWriter().u32("k", 1).u32("k", 2).bytes(), {"'k'", "twice"});
}

TEST(GgufFile, RefusesBadTensors) {
  const auto one = [](const std::vector<uint64_t>& ne, uint32_t type, uint64_t offset) {
    GgufWriter w;
    w.info("w", ne, type, offset).data = std::string(64, 'x');
    return w.bytes();
  };
  ASSERT_TRUE(parse(one({16}, 0, 0)).ok());
  refuse(one({17}, 0, 0), {"'w'", "68", "64"});
  refuse(one({8}, 0, 64), {"'w'", "truncated"});
  refuse(one({1}, 0, UINT64_MAX - 31), {"'w'"});
  refuse(one({1}, 0, 4), {"'w'", "aligned"});
  refuse(one({1, 1, 1, 1, 1}, 0, 0), {"'w'", "5 dimensions"});
  refuse(one({uint64_t{1} << 62, 4}, 0, 0), {"'w'", "overflow"});
  refuse(one({uint64_t{1} << 62}, 0, 0), {"'w'", "overflow"});  // 2^64 bytes
  refuse(one({0, INT64_MAX, 3}, 0, 0), {"'w'", "overflow"});
  refuse(one({UINT64_MAX}, 0, 0), {"'w'"});
  refuse(one({33}, 8, 0), {"'w'", "33", "Q8_0"});
  refuse(one({1}, 16, 0), {"'w'", "IQ2_XXS"}, ErrorCode::kInvalidArgument);
  refuse(one({1}, 999, 0), {"'w'", "999"});
  GgufWriter twice;
  twice.info("w", {8}, 0, 0).info("w", {8}, 0, 32).data = std::string(64, 'x');
  refuse(twice.bytes(), {"'w'", "twice"});
  GgufWriter overlap;
  overlap.info("w", {16}, 0, 0).info("v", {8}, 0, 32).data = std::string(64, 'x');
  refuse(overlap.bytes(), {"'w'", "'v'", "overlap"});
}

TEST(GgufFile, AlignmentIsCheckedAndUsed) {
  for (const uint32_t bad : {0u, 3u, 48u, 0x80000000u}) {
    refuse(GgufWriter().u32("general.alignment", bad).bytes(), {"general.alignment"});
  }
  GgufWriter w;
  w.u32("general.alignment", 256).info("w", {1}, 0, 0).data = raw(1.5F);
  const std::string bytes = w.bytes(256);
  const auto gguf = parse(bytes);
  ASSERT_TRUE(gguf.ok()) << gguf.error().message;
  float v = 0;
  std::memcpy(&v, gguf->tensors()[0].data, 4);
  EXPECT_EQ(v, 1.5F);
}

}  // namespace
}  // namespace capstan::model
