// What every rank but the first does: receive a batch, run its shard, again, until told to stop.
#pragma once

#include <atomic>
#include <functional>
#include <memory>
#include <thread>

#include "engine/batch_message.h"
#include "engine/rank_clock.h"
#include "engine/watchdog.h"
#include "model/kv_store.h"
#include "model/model.h"
#include "platform/thread_pool.h"

namespace capstan::engine {

/// A rank, loaded: what its thread works with. In order of construction.
struct RankParts {
  TimedCommunicator* comm = nullptr;  // outlives the rank
  std::unique_ptr<platform::ThreadPool> pool;
  std::unique_ptr<model::Model> shard;
  std::unique_ptr<model::KvStore> kv;
};

struct RankOptions {
  int page_size = 0;
  /// After every forward step, with its number.
  std::function<void(uint64_t step)> on_step;
  /// This rank failed, or its communicator did (kUnavailable); called once, from its thread, before
  /// the communicator is aborted.
  std::function<void(int rank, const Error&)> on_failure;
  /// Of a step; Options::on_fatal as there. The clock runs from the message on.
  Watchdog::Options watchdog;
};

/// Runs a rank until rank 0 says stop or something fails.
Status run_rank(const RankParts& parts, const RankOptions& options);

/// The same on a thread of its own.
class RankThread {
 public:
  RankThread(RankParts parts, RankOptions options);
  /// Waits for the end: after rank 0's stop, or an abort.
  ~RankThread();
  RankThread(const RankThread&) = delete;
  RankThread& operator=(const RankThread&) = delete;

  const RankParts& parts() const { return parts_; }
  bool finished() const { return finished_; }
  void abort(const Error& why) { parts_.comm->abort(why); }

 private:
  void run();

  const RankParts parts_;
  const RankOptions options_;
  std::atomic<bool> finished_{false};
  std::thread thread_;
};

}  // namespace capstan::engine
