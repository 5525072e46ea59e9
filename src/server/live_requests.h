// Requests that are being served: by client-visible id for /abort_request and duplicate detection,
// and as a count for draining.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

#include "scheduler/request.h"

namespace capstan::server {

/// Counts work in progress; another thread may wait for none.
class ActiveCount {
 public:
  void enter() {
    const std::lock_guard lock(mutex_);
    ++count_;
  }
  void leave() {
    const std::lock_guard lock(mutex_);
    if (--count_ == 0) zero_.notify_all();
  }
  int64_t count() const {
    const std::lock_guard lock(mutex_);
    return count_;
  }
  /// `timeout` <= 0: no bound. False when it ran out.
  bool wait_zero(std::chrono::milliseconds timeout) {
    std::unique_lock lock(mutex_);
    const auto none = [this] { return count_ == 0; };
    if (timeout.count() > 0) return zero_.wait_for(lock, timeout, none);
    zero_.wait(lock, none);
    return true;
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable zero_;
  int64_t count_ = 0;
};

class LiveRequests {
 public:
  /// False when that id is alive already.
  bool insert(const std::string& rid) {
    const std::lock_guard lock(mutex_);
    return live_.try_emplace(rid).second;
  }
  void add_engine_id(const std::string& rid, scheduler::RequestId id) {
    const std::lock_guard lock(mutex_);
    live_[rid].push_back(id);
  }
  void erase(const std::string& rid) {
    const std::lock_guard lock(mutex_);
    live_.erase(rid);
  }
  std::vector<scheduler::RequestId> engine_ids(const std::string& rid) const {
    const std::lock_guard lock(mutex_);
    const auto found = live_.find(rid);
    return found == live_.end() ? std::vector<scheduler::RequestId>() : found->second;
  }

 private:
  mutable std::mutex mutex_;
  std::unordered_map<std::string, std::vector<scheduler::RequestId>> live_;
};

}  // namespace capstan::server
