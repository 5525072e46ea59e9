#include "comm/shared_copy.h"

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace capstan::comm {

#if defined(__x86_64__)  // SSE2 is part of it

void copy_out(void* to, const void* from, size_t bytes) {
  if (bytes < kStreamedBytes) {
    std::memcpy(to, from, bytes);
    return;
  }
  auto* out = static_cast<std::byte*>(to);
  const auto* in = static_cast<const std::byte*>(from);
  // Whole lines are streamed; a line streamed in part would be read from memory first.
  const size_t head = (64 - reinterpret_cast<uintptr_t>(out) % 64) % 64;
  std::memcpy(out, in, head);
  size_t i = head;
  for (; i + 64 <= bytes; i += 64) {
    for (size_t k = 0; k < 64; k += 16) {
      _mm_stream_si128(reinterpret_cast<__m128i*>(out + i + k),
                       _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i + k)));
    }
  }
  std::memcpy(out + i, in + i, bytes - i);
  // Streamed stores are not ordered by the release that follows.
  _mm_sfence();
}

#else

void copy_out(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }

#endif

}  // namespace capstan::comm
