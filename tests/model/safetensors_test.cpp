#include "model/safetensors.h"

#include <gtest/gtest.h>

#include "checkpoint_files.h"

namespace capstan::model {
namespace {

Result<std::vector<TensorView>> parse(const std::string& bytes) {
  return parse_safetensors(std::as_bytes(std::span(bytes)), "f.safetensors");
}

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
         ",\"data_offsets\":" + offsets + "}";
}

void refuse(const std::string& bytes, const std::vector<std::string>& parts,
            ErrorCode code = ErrorCode::kDataLoss) {
  std::vector<std::string> all = parts;
  all.push_back("f.safetensors");
  expect_error(parse(bytes), code, all);
}

TEST(Safetensors, ReadsShapesDtypesAndData) {
  const std::string header =
      "{\"__metadata__\":{\"a\":\"b\"}," + entry("b", "BF16", "[2,3]", "[8,20]") + "," +
      entry("a", "F32", "[2]", "[0,8]") + "," + entry("s", "F32", "[]", "[20,24]") + "," +
      entry("e", "U8", "[0,5]", "[24,24]") + "}   ";
  const std::string bytes = safetensors_bytes(header, std::string(24, 'x'));
  const auto tensors = parse(bytes);
  ASSERT_TRUE(tensors.ok()) << tensors.error().message;
  ASSERT_EQ(tensors->size(), 4u);
  const TensorView& a = (*tensors)[0];
  const TensorView& b = (*tensors)[1];
  EXPECT_EQ(a.name, "a");
  EXPECT_EQ(b.name, "b");
  EXPECT_EQ(b.dtype, DType::kBF16);
  EXPECT_EQ(b.shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(b.data - a.data, 8);
  EXPECT_EQ((*tensors)[2].elems(), 1);
  EXPECT_EQ((*tensors)[3].bytes(), 0u);
}

TEST(Safetensors, KnowsEveryDtypeOfTheFamily) {
  for (const auto& [name, width] : std::vector<std::pair<std::string, int>>{{"F32", 4},
                                                                            {"F16", 2},
                                                                            {"BF16", 2},
                                                                            {"F8_E4M3", 1},
                                                                            {"I64", 8},
                                                                            {"I32", 4},
                                                                            {"U8", 1},
                                                                            {"BOOL", 1}}) {
    const std::string size = std::to_string(3 * width);
    const auto tensors = parse(safetensors_bytes(
        "{" + entry("t", name, "[3]", "[0," + size + "]") + "}", std::string(3 * width, 'x')));
    ASSERT_TRUE(tensors.ok()) << tensors.error().message;
    EXPECT_EQ((*tensors)[0].bytes(), 3u * width);
  }
  refuse(safetensors_bytes("{" + entry("odd", "F64", "[1]", "[0,8]") + "}", std::string(8, 'x')),
         {"'odd'", "F64"}, ErrorCode::kInvalidArgument);
}

TEST(Safetensors, RefusesBadHeaders) {
  refuse("", {"truncated"});
  refuse("1234567", {"truncated"});
  refuse(raw(uint64_t{100}) + "{}", {"truncated", "100"});
  refuse(raw(UINT64_MAX) + "{}", {"18446744073709551615"});
  refuse(safetensors_bytes("{", ""), {"JSON"});
  refuse(safetensors_bytes("{}x", ""), {"JSON"});
  refuse(safetensors_bytes("[]", ""), {"not an object"});
  refuse(safetensors_bytes("{\"t\":1}", ""), {"'t'"});
  refuse(safetensors_bytes("{\"t\":{}}", ""), {"'t'", "dtype"});
  refuse(safetensors_bytes(std::string(100000, '['), ""), {"JSON"});
}

TEST(Safetensors, RefusesBadExtents) {
  const std::string data(16, 'x');
  const auto one = [&](const std::string& shape, const std::string& offsets) {
    return safetensors_bytes("{" + entry("w", "F32", shape, offsets) + "}", data);
  };
  refuse(one("[4]", "[0,20]"), {"'w'", "20", "16"});   // size is not shape x dtype
  refuse(one("[5]", "[0,20]"), {"'w'", "truncated"});  // beyond the file
  refuse(one("[4]", "[16,0]"), {"'w'"});               // backwards
  refuse(one("[4]", "[-16,0]"), {"'w'"});
  refuse(one("[4]", "[0.0,16.0]"), {"'w'"});
  refuse(one("[4]", "[0]"), {"'w'"});
  refuse(one("[-4]", "[0,16]"), {"'w'", "-4"});
  refuse(one("[4.5]", "[0,16]"), {"'w'"});
  refuse(one("[3]", "[0,12]"), {"16", "12"});                  // bytes left over
  refuse(one("[3]", "[4,16]"), {"'w'", "no tensor"});          // a hole
  refuse(one("[4611686018427387904,4]", "[0,16]"), {"'w'"});   // 2^62 * 4 wraps to 0
  refuse(one("[4611686018427387904]", "[0,0]"), {"'w'"});      // 2^62 * 4 bytes wraps to 0
  refuse(one("[0,9223372036854775807,3]", "[0,0]"), {"'w'"});  // empty, but others overflow
  refuse(one("[18446744073709551615]", "[0,16]"), {"'w'"});
  refuse(one("[4]", "[18446744073709551600,18446744073709551616]"), {"'w'"});
}

TEST(Safetensors, RefusesOverlapsAndDuplicates) {
  const std::string data(16, 'x');
  refuse(safetensors_bytes("{" + entry("a", "F32", "[3]", "[0,12]") + "," +
                               entry("b", "F32", "[2]", "[8,16]") + "}",
                           data),
         {"'a'", "'b'", "overlap"});
  refuse(safetensors_bytes("{" + entry("a", "F32", "[2]", "[0,8]") + "," +
                               entry("a", "F32", "[2]", "[8,16]") + "}",
                           data),
         {"'a'", "twice"});
  refuse(safetensors_bytes("{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F16\",\"shape\":[4],"
                           "\"data_offsets\":[0,16]}}",
                           data),
         {"'dtype'", "twice"});
}

TEST(Safetensors, HostileNamesAreShownHarmless) {
  refuse(safetensors_bytes("{\"a\\u001b[31m" + std::string(1000, 'n') + "\":1}", ""),
         {"'a\\x1b[31mnnn", "...'"});
}

}  // namespace
}  // namespace capstan::model
