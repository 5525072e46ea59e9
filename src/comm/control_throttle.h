// Log lines of something that repeats: the first at once, then one per interval.
#pragma once

#include "comm/control_socket.h"

namespace capstan::comm {

class LogThrottle {
 public:
  explicit LogThrottle(Duration interval) : interval_(interval) {}

  /// True when a line is due; suppressed() then counts those that were not since the last.
  bool due(TimePoint now) {
    if (said_ && now - last_ < interval_) {
      ++pending_;
      return false;
    }
    said_ = true;
    last_ = now;
    suppressed_ = std::exchange(pending_, 0);
    return true;
  }
  int suppressed() const { return suppressed_; }

 private:
  Duration interval_;
  TimePoint last_{};
  bool said_ = false;
  int pending_ = 0, suppressed_ = 0;
};

}  // namespace capstan::comm
