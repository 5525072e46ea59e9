#include "text/utf8.h"

#include <gtest/gtest.h>

#include "text/byte_map.h"

namespace capstan::text {
namespace {

std::string lossy(std::string_view bytes, size_t chunk) {
  Utf8Stream stream;
  std::string out;
  for (size_t i = 0; i < bytes.size(); i += chunk) {
    const size_t before = out.size();
    stream.push(bytes.substr(i, chunk), out);
    EXPECT_FALSE(first_invalid_utf8(std::string_view(out).substr(before)));
  }
  stream.finish(out);
  return out;
}

// Pairs from the Unicode Standard, section 3.9, tables 3-8 to 3-11, and the ends of every range.
TEST(Utf8, ReplacesMaximalSubparts) {
  const std::pair<std::string, std::string> cases[] = {
      {"\xC0\xAF\xE0\x80\xBF\xF0\x81\x82\x41", "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFDA"},
      {"\xED\xA0\x80\xED\xBF\xBF\xED\xAF\x41", "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFDA"},
      {"\xF4\x91\x92\x93\xFF\x41\x80\xBF\x42", "\uFFFD\uFFFD\uFFFD\uFFFD\uFFFDA\uFFFD\uFFFDB"},
      {"\xE1\x80\xE2\xF0\x91\x92\xF1\xBF\x41", "\uFFFD\uFFFD\uFFFD\uFFFDA"},
      {"\xF0\x9F\x98", "\uFFFD"},
      {"\xF0\x9F\x98\x80", "\U0001F600"},
      {"x\xE4\xB8", "x\uFFFD"},
      {"\xF4\x8F\xBF\xBF\xED\x9F\xBF\xEE\x80\x80\xC2\x80", "\U0010FFFF\uD7FF\uE000\u0080"},
      {std::string("\0\x7F", 2), std::string("\0\x7F", 2)},
      {"", ""},
  };
  for (const auto& [bytes, text] : cases) {
    for (const size_t chunk : {1, 2, 3, 100}) EXPECT_EQ(lossy(bytes, chunk), text);
  }
}

TEST(Utf8, FindsTheFirstBadByte) {
  EXPECT_EQ(first_invalid_utf8("abc"), std::nullopt);
  EXPECT_EQ(first_invalid_utf8("ab\xE4\xB8\xAD\xFF"), 5u);
  EXPECT_EQ(first_invalid_utf8("ab\xE4\xB8"), 2u);
}

TEST(ByteMap, CoversAllBytes) {
  EXPECT_EQ(bytes_of_token("\u0120a\u010A!"), " a\n!");
  EXPECT_EQ(bytes_of_token("\u0100\u0143\u00FF\u00AE"), std::string("\0\xAD\xFF\xAE", 4));
  EXPECT_EQ(bytes_of_token("\u0144"), "\u0144");  // the first character outside the alphabet
  EXPECT_EQ(bytes_of_token("<\uFF5CUser\uFF5C>"), "<\uFF5CUser\uFF5C>");
  EXPECT_EQ(bytes_of_token("a b"), "a b");
}

}  // namespace
}  // namespace capstan::text
