// A step in flight: the pool's threads spin instead of sleeping.
#pragma once

#include "platform/thread_pool.h"

namespace capstan::engine {

class Burst {
 public:
  explicit Burst(platform::ThreadPool* pool) : pool_(pool) {
    if (pool_ != nullptr) pool_->begin_burst();
  }
  ~Burst() {
    if (pool_ != nullptr) pool_->end_burst();
  }
  Burst(const Burst&) = delete;
  Burst& operator=(const Burst&) = delete;

 private:
  platform::ThreadPool* pool_;
};

}  // namespace capstan::engine
