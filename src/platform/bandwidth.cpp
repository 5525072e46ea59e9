#include "platform/bandwidth.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <memory>
#include <vector>

#include "platform/cpu.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace capstan::platform {
namespace {

using Clock = std::chrono::steady_clock;

/// Prefetch distances to try: hardware prefetchers stop at the page and the best hint to cross it
/// differs by machine (0: none).
constexpr size_t kAhead[] = {0, 1024, 2048, 4096};

/// Adds up `bytes` (a multiple of 256) so that every cache line is loaded.
uint64_t read_all(const std::byte* p, size_t bytes, size_t ahead) {
#if defined(__x86_64__)
  __m128i sum[4] = {_mm_setzero_si128(), _mm_setzero_si128(), _mm_setzero_si128(),
                    _mm_setzero_si128()};
  for (size_t i = 0; i < bytes; i += 256) {
    if (ahead != 0) {
      for (size_t line = 0; line < 256; line += 64) {
        _mm_prefetch(reinterpret_cast<const char*>(p + i + ahead + line), _MM_HINT_T0);
      }
    }
    for (size_t j = 0; j < 256; j += 64) {
      for (size_t k = 0; k < 4; ++k) {
        const auto* v = reinterpret_cast<const __m128i*>(p + i + j + 16 * k);
        sum[k] = _mm_add_epi64(sum[k], _mm_load_si128(v));
      }
    }
  }
  const __m128i total = _mm_add_epi64(_mm_add_epi64(sum[0], sum[1]), _mm_add_epi64(sum[2], sum[3]));
  return static_cast<uint64_t>(_mm_cvtsi128_si64(total));
#else
  (void)ahead;
  uint64_t sum[4] = {};
  for (size_t i = 0; i < bytes; i += 32) {
    for (size_t k = 0; k < 4; ++k) {
      uint64_t v;
      std::memcpy(&v, p + i + 8 * k, 8);
      sum[k] += v;
    }
  }
  return sum[0] + sum[1] + sum[2] + sum[3];
#endif
}

}  // namespace

double measure_dram_read(ThreadPool& pool, double seconds) {
  constexpr size_t kMiB = size_t{1} << 20;
  const long cache = sysconf(_SC_LEVEL3_CACHE_SIZE);
  size_t bytes = std::max<size_t>(256 * kMiB, cache > 0 ? 4 * static_cast<size_t>(cache) : 0);
  bytes = std::min<size_t>(bytes, memory_info().available_bytes / 4);
  const auto threads = static_cast<size_t>(pool.size());
  const size_t share = bytes / threads / 4096 * 4096;
  if (share == 0) return 0;
  const std::unique_ptr<void, void (*)(void*)> memory(std::aligned_alloc(4096, share * threads),
                                                      std::free);
  if (memory == nullptr) return 0;
  auto* data = static_cast<std::byte*>(memory.get());
  // Each thread touches its own share: on NUMA machines the pages land beside it.
  pool.run([&](int t) { std::memset(data + static_cast<size_t>(t) * share, t + 1, share); });

  std::vector<uint64_t> sums(threads * 8);  // one cache line each
  double best = 0;
  const auto stop = Clock::now() + std::chrono::duration<double>(seconds);
  pool.begin_burst();
  for (size_t pass = 0; pass < std::size(kAhead) || Clock::now() < stop; ++pass) {
    const size_t ahead = kAhead[pass % std::size(kAhead)];
    const auto start = Clock::now();
    pool.run([&](int t) {
      sums[static_cast<size_t>(t) * 8] +=
          read_all(data + static_cast<size_t>(t) * share, share, ahead);
    });
    const double elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    best = std::max(best, static_cast<double>(share * threads) / elapsed);
  }
  pool.end_burst();
  volatile uint64_t keep = sums[0];
  (void)keep;
  return best;
}

}  // namespace capstan::platform
