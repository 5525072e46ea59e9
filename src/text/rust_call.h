// Calls into src/text/rust: owned buffers, and silence for ThreadSanitizer.
#pragma once

#include <string>
#include <string_view>

#include "base/result.h"
#include "text/rust_abi.h"

#ifdef CAPSTAN_TSAN
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace capstan::text {

/// Alive while the crate runs. The crate is not instrumented, so ThreadSanitizer sees its malloc,
/// free and memcpy but none of its atomics, and would report every cache it hands over as a race.
class RustScope {
 public:
#ifdef CAPSTAN_TSAN
  RustScope() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~RustScope() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
#else
  RustScope() {}
  ~RustScope() {}
#endif
  RustScope(const RustScope&) = delete;
  RustScope& operator=(const RustScope&) = delete;
};

class RustBytes {
 public:
  RustBytes() = default;
  explicit RustBytes(CapstanTextBytes raw) : raw_(raw) {}
  ~RustBytes() {
    RustScope scope;
    capstan_text_bytes_free(raw_);
  }
  RustBytes(const RustBytes&) = delete;
  RustBytes& operator=(const RustBytes&) = delete;

  CapstanTextBytes* out() { return &raw_; }
  std::string_view view() const { return {reinterpret_cast<const char*>(raw_.data), raw_.size}; }

 private:
  CapstanTextBytes raw_{nullptr, 0};
};

class RustIds {
 public:
  RustIds() = default;
  explicit RustIds(CapstanTextIds raw) : raw_(raw) {}
  ~RustIds() {
    RustScope scope;
    capstan_text_ids_free(raw_);
  }
  RustIds(const RustIds&) = delete;
  RustIds& operator=(const RustIds&) = delete;

  CapstanTextIds* out() { return &raw_; }
  const uint32_t* data() const { return raw_.data; }
  size_t size() const { return raw_.size; }

 private:
  CapstanTextIds raw_{nullptr, 0};
};

inline CapstanTextSlice rust_slice(std::string_view text) { return {text.data(), text.size()}; }

/// The Error for a failed call; `what` leads the message.
inline Error rust_error(int32_t status, std::string_view what, const RustBytes& message) {
  std::string text;
  if (!what.empty()) text.append(what).append(": ");
  text.append(message.view());
  if (status == kCapstanTextInternal) return internal_error(std::move(text));
  return invalid_argument(std::move(text));
}

}  // namespace capstan::text
