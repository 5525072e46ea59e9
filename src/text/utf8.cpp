#include "text/utf8.h"

#include <cstdint>

namespace capstan::text {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

struct Step {
  size_t length;    // bytes of the sequence, or of its ill-formed maximal subpart
  bool valid;       // a complete character
  bool incomplete;  // valid so far, but the input ends
};

/// Looks at the sequence that starts at `at` (Unicode Standard, table 3-7).
Step step(std::string_view bytes, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(bytes[i]); };
  const uint8_t lead = byte(at);
  if (lead < 0x80) return {1, true, false};
  size_t length = 0;
  uint8_t low = 0x80, high = 0xBF;  // allowed range of the second byte
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    if (lead == 0xE0) low = 0xA0;   // no overlong forms
    if (lead == 0xED) high = 0x9F;  // no surrogates
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;  // nothing beyond U+10FFFF
  } else {
    return {1, false, false};
  }
  for (size_t i = 1; i < length; ++i) {
    if (at + i == bytes.size()) return {i, false, true};
    const uint8_t next = byte(at + i);
    if (next < low || next > high) return {i, false, false};
    low = 0x80;
    high = 0xBF;
  }
  return {length, true, false};
}

}  // namespace

std::optional<size_t> first_invalid_utf8(std::string_view bytes) {
  for (size_t at = 0; at < bytes.size();) {
    const Step next = step(bytes, at);
    if (!next.valid) return at;
    at += next.length;
  }
  return std::nullopt;
}

void Utf8Stream::push(std::string_view bytes, std::string& out) {
  std::string joined;
  if (!tail_.empty()) {
    joined = std::move(tail_);
    joined.append(bytes);
    bytes = joined;
    tail_.clear();
  }
  size_t good = 0;  // start of the valid run that is not copied yet
  size_t at = 0;
  while (at < bytes.size()) {
    const Step next = step(bytes, at);
    if (next.valid) {
      at += next.length;
      continue;
    }
    out.append(bytes.substr(good, at - good));
    if (next.incomplete) {
      tail_.assign(bytes.substr(at));
      return;
    }
    out.append(kReplacement);
    at += next.length;
    good = at;
  }
  out.append(bytes.substr(good));
}

void Utf8Stream::finish(std::string& out) {
  if (!tail_.empty()) out.append(kReplacement);
  tail_.clear();
}

}  // namespace capstan::text
