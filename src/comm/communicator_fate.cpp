#include "comm/communicator_fate.h"

#include <algorithm>

namespace capstan::comm {

void Fate::fail(const Error& why) {
  const std::lock_guard lock(mutex_);
  if (failed_.load()) return;
  error_ = unavailable(why.message);
  failed_.store(true);
  for (const auto& [id, wake] : wakers_) wake();
}

Error Fate::error() const {
  const std::lock_guard lock(mutex_);
  return error_;
}

int Fate::add_waker(std::function<void()> wake) {
  const std::lock_guard lock(mutex_);
  if (failed_.load()) wake();
  wakers_.emplace_back(next_id_, std::move(wake));
  return next_id_++;
}

void Fate::remove_waker(int id) {
  const std::lock_guard lock(mutex_);
  std::erase_if(wakers_, [id](const auto& waker) { return waker.first == id; });
}

}  // namespace capstan::comm
