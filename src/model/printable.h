// Names and values from untrusted files, made safe for one log line or one JSON error.
#pragma once

#include <string>
#include <string_view>

namespace capstan::model {

/// 'text' in quotes, cut to 96 bytes, with everything outside printable ASCII as \xNN.
inline std::string printable(std::string_view text) {
  constexpr size_t kMaxShown = 96;
  constexpr char kHex[] = "0123456789abcdef";
  std::string out = "'";
  for (const char c : text.substr(0, kMaxShown)) {
    const auto u = static_cast<unsigned char>(c);
    if (u >= 0x20 && u < 0x7f) {
      out += c;
    } else {
      out += "\\x";
      out += kHex[u >> 4];
      out += kHex[u & 15];
    }
  }
  if (text.size() > kMaxShown) out += "...";
  return out + "'";
}

/// [2, 3, 4]
template <class Range>
std::string shape_string(const Range& shape) {
  std::string out = "[";
  for (const auto d : shape) {
    if (out.size() > 1) out += ", ";
    out += std::to_string(d);
  }
  return out + "]";
}

}  // namespace capstan::model
