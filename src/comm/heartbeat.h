// Who has been heard of when, on the monotonic clock, which a change of the wall clock does not
// touch. Pure bookkeeping: time comes in as an argument.
//
// A process that was itself stopped (SIGSTOP, a suspended machine, a starved CPU) must not take its
// own sleep for the silence of others: time in which it did not run does not count.
#pragma once

#include <algorithm>
#include <vector>

#include "comm/control_socket.h"

namespace capstan::comm {

class HeartbeatClock {
 public:
  HeartbeatClock(size_t peers, Duration interval, Duration timeout, TimePoint now)
      : interval_(interval), timeout_(timeout), last_tick_(now), last_sent_(now - interval) {
    heard_.assign(peers, now);
  }

  /// At every turn of the watching thread, which comes at least once per interval, before it reads.
  /// Returns how long the process did not run; zero when it did.
  Duration tick(TimePoint now) {
    const Duration late = now - last_tick_ - interval_;
    last_tick_ = now;
    if (late < interval_) return Duration::zero();
    for (TimePoint& heard : heard_) heard += late;
    return late;
  }

  void heard(size_t peer, TimePoint now) { heard_[peer] = now; }
  Duration age(size_t peer, TimePoint now) const {
    return std::max(now - heard_[peer], Duration::zero());
  }
  bool silent(size_t peer, TimePoint now) const { return age(peer, now) >= timeout_; }

  /// True once per interval: a heartbeat shall go out.
  bool due(TimePoint now) {
    if (now - last_sent_ < interval_) return false;
    last_sent_ = now;
    return true;
  }
  TimePoint next() const { return last_sent_ + interval_; }

 private:
  Duration interval_, timeout_;
  TimePoint last_tick_, last_sent_;
  std::vector<TimePoint> heard_;
};

}  // namespace capstan::comm
