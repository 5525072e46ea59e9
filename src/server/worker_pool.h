// Threads for what would hold up token delivery: parsing, templates and tokenisation of large
// requests.
#pragma once

#include <boost/asio/post.hpp>
#include <boost/asio/thread_pool.hpp>
#include <optional>
#include <utility>

#include "server/asio_types.h"

namespace capstan::server {

class WorkerPool {
 public:
  explicit WorkerPool(int threads) : pool_(static_cast<size_t>(threads)) {}
  void stop() {
    pool_.stop();
    pool_.join();
  }

  /// Runs `job` (which must not throw) on a worker and returns its value here, on the IO thread.
  /// What the job refers to must live in the awaiting coroutine's frame.
  template <class T, class Job>
  Task<T> run(Executor executor, Job& job) {
    std::optional<T> result;
    Signal done(executor);
    asio::post(pool_, [&job, &result, &done, executor] {
      result.emplace(job());
      asio::post(executor, [&done] { done.notify(); });
    });
    co_await done.wait();
    co_return std::move(*result);
  }

 private:
  asio::thread_pool pool_;
};

}  // namespace capstan::server
