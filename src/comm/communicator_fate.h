// What the ranks of one process have in common: whether their communicators still work.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "base/result.h"

namespace capstan::comm {

/// One per process and group, shared by all its ranks, their subgroups and the thread that watches
/// the peers. Once failed it stays so, and all operations end with the first error.
class Fate {
 public:
  /// Any thread. The first error counts and becomes kUnavailable; wakes everybody who sleeps.
  void fail(const Error& why);
  /// Cheap enough for every round of a spin loop. Sequentially consistent: a rank announces that it
  /// touches another's memory before it asks, and one that leaves asks in the other order.
  bool failed() const { return failed_.load(); }
  /// Only after failed().
  Error error() const;

  /// `wake` rouses sleepers of one region or channel; called at most once, from fail(), with the
  /// list locked: it must not come back here. Runs at once if all has failed already.
  int add_waker(std::function<void()> wake);
  /// On return the waker does not run and never will.
  void remove_waker(int id);

 private:
  std::atomic<bool> failed_{false};
  mutable std::mutex mutex_;
  Error error_;
  int next_id_ = 0;
  std::vector<std::pair<int, std::function<void()>>> wakers_;
};

}  // namespace capstan::comm
