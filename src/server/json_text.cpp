#include "server/json_text.h"

#include <array>
#include <charconv>
#include <cmath>
#include <limits>

namespace capstan::server {
namespace {

constexpr std::array<bool, 256> make_plain_table() {
  std::array<bool, 256> plain{};
  for (int c = 0x20; c < 256; ++c) plain[c] = true;
  plain['"'] = plain['\\'] = plain[0xE2] = plain[0x7F] = false;
  return plain;
}
// Bytes copied as they are. 0xE2 begins U+2028/2029 and is looked at more closely.
constexpr std::array<bool, 256> kPlain = make_plain_table();

// Length of the UTF-8 sequence at `s`, or 0 with `bad` = bytes that one U+FFFD stands for (the
// maximal-subpart rule of Unicode, which Python follows).
size_t sequence_length(std::string_view s, size_t* bad) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(s[i]); };
  const unsigned char first = byte(0);
  *bad = 1;
  if (first < 0x80) return 1;
  if (first < 0xC2 || first > 0xF4) return 0;
  const size_t want = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  unsigned char low = 0x80, high = 0xBF;
  if (first == 0xE0) low = 0xA0;
  if (first == 0xED) high = 0x9F;
  if (first == 0xF0) low = 0x90;
  if (first == 0xF4) high = 0x8F;
  for (size_t i = 1; i < want; ++i) {
    if (i >= s.size() || byte(i) < low || byte(i) > high) {
      *bad = i;
      return 0;
    }
    low = 0x80;
    high = 0xBF;
  }
  return want;
}

template <class T>
void append_number(std::string& out, T value) {
  if (std::isnan(value)) value = 0;
  if (std::isinf(value)) {
    value = value > 0 ? std::numeric_limits<T>::max() : std::numeric_limits<T>::lowest();
  }
  std::array<char, 32> digits;
  const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value).ptr;
  out.append(digits.data(), end);
}

}  // namespace

void append_json_escaped(std::string& out, std::string_view text) {
  static constexpr char kHex[] = "0123456789abcdef";
  size_t run = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const auto c = static_cast<unsigned char>(text[i]);
    if (kPlain[c]) continue;
    if (c == 0xE2) {
      const bool separator = i + 2 < text.size() && text[i + 1] == '\x80' &&
                             (text[i + 2] == '\xA8' || text[i + 2] == '\xA9');
      if (!separator) continue;
      out.append(text, run, i - run);
      out += text[i + 2] == '\xA8' ? "\\u2028" : "\\u2029";
      i += 2;
      run = i + 1;
      continue;
    }
    out.append(text, run, i - run);
    run = i + 1;
    switch (c) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      default:
        out += "\\u00";
        out += kHex[c >> 4];
        out += kHex[c & 15];
    }
  }
  out.append(text, run, text.size() - run);
}

void append_json_string(std::string& out, std::string_view text) {
  out += '"';
  append_json_escaped(out, text);
  out += '"';
}

void append_json_int(std::string& out, int64_t value) {
  std::array<char, 24> digits;
  const auto end = std::to_chars(digits.data(), digits.data() + digits.size(), value).ptr;
  out.append(digits.data(), end);
}

void append_json_float(std::string& out, float value) { append_number(out, value); }
void append_json_double(std::string& out, double value) { append_number(out, value); }

std::string utf8_lossy(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  while (!bytes.empty()) {
    size_t bad = 0;
    const size_t good = sequence_length(bytes, &bad);
    if (good > 0) {
      out.append(bytes, 0, good);
      bytes.remove_prefix(good);
    } else {
      out += "\xEF\xBF\xBD";
      bytes.remove_prefix(bad);
    }
  }
  return out;
}

int64_t count_code_points(std::string_view utf8) {
  int64_t count = 0;
  for (const char c : utf8) count += (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  return count;
}

}  // namespace capstan::server
