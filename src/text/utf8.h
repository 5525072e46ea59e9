// UTF-8 as it streams: complete characters out, invalid bytes replaced, an incomplete tail kept.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

namespace capstan::text {

/// Offset of the first byte that is not valid UTF-8 (overlong forms, surrogates and code points
/// beyond U+10FFFF included), or nothing.
std::optional<size_t> first_invalid_utf8(std::string_view bytes);

/// Turns bytes into valid UTF-8. Every maximal ill-formed subsequence becomes one U+FFFD (Unicode
/// Standard 3.9, "substitution of maximal subparts"), which is what Rust's from_utf8_lossy and so
/// Hugging Face decoders do. A sequence cut at the end of the input is kept for the next push.
class Utf8Stream {
 public:
  /// Appends to `out` all text that `bytes` completes.
  void push(std::string_view bytes, std::string& out);
  /// Appends U+FFFD if a sequence is incomplete, and starts afresh.
  void finish(std::string& out);

 private:
  std::string tail_;  // a proper prefix of a valid sequence: 0 to 3 bytes
};

}  // namespace capstan::text
