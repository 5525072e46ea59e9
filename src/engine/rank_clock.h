// How much of a step each rank computes, told to rank 0 every so often.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/timed_communicator.h"

namespace capstan::engine {

/// Messages between two exchanges; one of 8 bytes a rank costs a few microseconds.
inline constexpr uint32_t kTimingInterval = 64;

/// One per rank, used by its thread. All ranks call end_step() for the same messages.
class RankClock {
 public:
  explicit RankClock(TimedCommunicator& comm) : comm_(comm) {}

  void begin_step();
  /// True when, at rank 0, compute_seconds() is new.
  Result<bool> end_step(uint32_t message);

  /// Seconds per message that each rank computed, waiting left out. Rank 0 only.
  const std::vector<double>& compute_seconds() const { return seconds_; }

 private:
  TimedCommunicator& comm_;
  int64_t began_ = 0, waited_ = 0;
  int64_t busy_ns_ = 0;
  std::vector<int64_t> all_, bytes_;
  std::vector<double> seconds_;
};

}  // namespace capstan::engine
