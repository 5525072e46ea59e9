// Engines that schedule on their own and share one model: data-parallel attention.
//
// Each group of ranks that attends for sequences of its own (model::Shard::dp_size) has an engine:
// scheduler, prefix cache and pages. But the FFNs run over all ranks, so all groups must step
// together. The joiner waits until every engine that has something to compute has come with its
// batch, computes them as one, and hands each its rows. An engine that sleeps is not waited for.
#pragma once

#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

#include "engine/batch_message.h"
#include "model/model.h"
#include "platform/thread_pool.h"

namespace capstan::engine {

class StepJoiner {
 public:
  /// `kv` is the cache of this process's first rank; `pool` (may be null) its compute threads.
  StepJoiner(std::unique_ptr<model::Model> model, std::unique_ptr<model::KvStore> kv, int groups,
             platform::ThreadPool* pool);

  /// The model as each engine has it; they keep the joiner alive. The caches that engines pass to
  /// forward() are not used: pages are places in the caches of the group's ranks. Each is to be
  /// used by one thread at a time.
  static std::vector<std::unique_ptr<model::Model>> members(std::shared_ptr<StepJoiner> joiner);

 private:
  class Member;
  class MemberDraft;
  enum class Presence : uint8_t {
    kResting,  // not waited for
    kBusy,     // between two batches
    kHere,     // waits for its result
    kDone,     // has it, and not taken it yet
  };
  struct Seat {
    Presence presence = Presence::kResting;
    BatchKind kind = BatchKind::kForward;
    const model::ForwardBatch* batch = nullptr;
    MatrixView previous;  // of a draft
    MatrixView logits;
    Status status;
  };

  Status run(int group, BatchKind kind, const model::ForwardBatch& batch, MatrixView previous,
             MatrixView logits);
  void rest(int group);
  bool complete() const;
  void compute_next(std::unique_lock<std::mutex>& lock);
  Status compute(BatchKind kind, const std::vector<Seat*>& seats);
  Status compute_all(BatchKind kind, const std::vector<Seat*>& seats);
  void join(const std::vector<Seat*>& seats);
  void add(const Seat& seat, uint64_t group);
  Status forward(BatchKind kind, MatrixView previous, MatrixView logits);

  const std::unique_ptr<model::Model> model_;
  const std::unique_ptr<model::KvStore> kv_;
  platform::ThreadPool* const pool_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<Seat>
      seats_;  // by group; a seat that is kHere and taken belongs to the computing thread
  bool computing_ = false;

  // The joined batch, of the computing thread.
  model::ForwardBatch batch_;
  std::vector<int32_t> tokens_, positions_, logit_rows_, hidden_rows_, groups_;
  std::vector<int64_t> slots_;
  std::vector<kernels::SequenceSlice> sequences_;
  std::vector<uint64_t> ids_;
  std::vector<float> logits_, hidden_, previous_;
};

}  // namespace capstan::engine
