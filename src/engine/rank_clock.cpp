#include "engine/rank_clock.h"

#include <algorithm>
#include <chrono>

namespace capstan::engine {
namespace {

int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

}  // namespace

void RankClock::begin_step() {
  began_ = now_ns();
  waited_ = comm_.clock().waited_ns.load(std::memory_order_relaxed);
}

Result<bool> RankClock::end_step(uint32_t message) {
  const int64_t waited = comm_.clock().waited_ns.load(std::memory_order_relaxed) - waited_;
  busy_ns_ += std::max<int64_t>(0, now_ns() - began_ - waited);
  if (message % kTimingInterval != 0) return false;
  const auto ranks = static_cast<size_t>(comm_.size());
  all_.resize(ranks);
  bytes_.assign(ranks, sizeof(int64_t));
  CAPSTAN_RETURN_IF_ERROR(comm_.gather(&busy_ns_, all_.data(), bytes_, 0));
  busy_ns_ = 0;
  if (comm_.rank() != 0) return false;
  seconds_.clear();
  for (const int64_t ns : all_)
    seconds_.push_back(static_cast<double>(ns) * 1e-9 / kTimingInterval);
  return true;
}

}  // namespace capstan::engine
