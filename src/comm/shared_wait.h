// How a rank waits: pauses, then yields, then sleeps.
#pragma once

#include <chrono>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "comm/shared_region.h"

namespace capstan::comm {

inline void cpu_pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

/// One wait. relax() passes a little time; then is_long() says whether to sleep instead.
class Waiter {
 public:
  Waiter(bool crowded, Patience patience) : crowded_(crowded), patience_(patience) {}

  void relax() {
    cpu_pause();
    if (++turn_ % (crowded_ ? kCrowdedPausesPerYield : kPausesPerYield) != 0) return;
    std::this_thread::yield();
    const auto now = std::chrono::steady_clock::now();
    if (start_ == std::chrono::steady_clock::time_point{}) start_ = now;
    long_ = now - start_ > limit();
  }
  bool is_long() const { return long_; }

 private:
  // 1000 pauses are about 15 us on Zen 3, 35 us on Intel; a yield with nobody waiting costs 0.3 us.
  static constexpr int kPausesPerYield = 1000;
  // With more ranks than CPUs the one waited for may be without a CPU: ours is better given away.
  static constexpr int kCrowdedPausesPerYield = 32;

  std::chrono::nanoseconds limit() const {
    using namespace std::chrono_literals;
    // A wake-up costs some 50 us: nothing after 20 ms, when a step waits for a rank that prefills
    // alone, and too much after the fraction of a millisecond that lies between two steps.
    if (crowded_) return 100us;
    return patience_ == Patience::kIdle ? std::chrono::nanoseconds(2ms) : 20ms;
  }

  const bool crowded_;
  const Patience patience_;
  int turn_ = 0;
  bool long_ = false;
  std::chrono::steady_clock::time_point start_{};
};

}  // namespace capstan::comm
