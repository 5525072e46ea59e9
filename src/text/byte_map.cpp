#include "text/byte_map.h"

#include <array>
#include <cstdint>

namespace capstan::text {
namespace {

// Bytes 33-126, 161-172 and 174-255 map to the same code point, the other 68, ascending, to
// U+0100 and up: all code points are below 0x144.
constexpr size_t kAlphabetEnd = 256 + 68;

constexpr std::array<int16_t, kAlphabetEnd> make_byte_of() {
  std::array<int16_t, kAlphabetEnd> byte_of{};
  for (int16_t& entry : byte_of) entry = -1;
  size_t next = 256;
  for (int16_t byte = 0; byte < 256; ++byte) {
    const bool same = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
    byte_of[same ? static_cast<size_t>(byte) : next++] = byte;
  }
  return byte_of;
}

constexpr std::array<int16_t, kAlphabetEnd> kByteOf = make_byte_of();

}  // namespace

std::string bytes_of_token(std::string_view token) {
  std::string bytes;
  bytes.reserve(token.size());
  for (size_t i = 0; i < token.size();) {
    const auto lead = static_cast<uint8_t>(token[i]);
    uint32_t code = lead;
    size_t length = 1;
    if (lead >= 0xC2 && lead <= 0xDF && i + 1 < token.size()) {
      code = (lead & 0x1Fu) << 6 | (static_cast<uint8_t>(token[i + 1]) & 0x3Fu);
      length = 2;
    } else if (lead >= 0x80) {
      return std::string(token);  // beyond U+07FF: outside the alphabet
    }
    if (code >= kAlphabetEnd || kByteOf[code] < 0) return std::string(token);
    bytes.push_back(static_cast<char>(kByteOf[code]));
    i += length;
  }
  return bytes;
}

}  // namespace capstan::text
