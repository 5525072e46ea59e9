// Rank 0 of a split model, as the engine sees it: one model.
//
// forward() checks the batch, sends it to the other ranks (rank_loop.h) and runs its own shard with
// them. A batch that is wrong is refused before anybody hears of it; after that any failure of a
// rank is the end for all, since the others wait for it in a collective.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "engine/batch_message.h"
#include "engine/rank_clock.h"
#include "model/model.h"

namespace capstan::engine {

struct GroupModelOptions {
  int page_size = 0;
  int groups = 1;  // of attention: model::Shard::dp_size
  /// After every step, with its number; on the thread that calls forward().
  std::function<void(uint64_t step)> on_step;
  /// Every kTimingInterval messages: seconds per message that each rank computed.
  std::function<void(const std::vector<double>&)> on_timings;
  /// Rank 0 failed, or learned from the communicator that another one did; called once. It tells
  /// whoever watches the group, may wait a little to learn who is to blame, and returns what
  /// clients are told.
  std::function<Error(const Error&)> on_failure;
};

class GroupModel final : public model::Model {
 public:
  /// `comm` outlives the model.
  GroupModel(std::unique_ptr<model::Model> shard, TimedCommunicator& comm,
             GroupModelOptions options);
  /// Tells the other ranks to stop, unless the group has failed.
  ~GroupModel() override;

  const model::ModelConfig& config() const override { return shard_->config(); }
  const model::ModelConfig& local_config() const override { return shard_->local_config(); }
  size_t weight_bytes_per_token() const override { return shard_->weight_bytes_per_token(); }
  size_t weight_bytes() const override { return shard_->weight_bytes(); }
  model::DraftModel* draft() override { return shard_->draft() != nullptr ? &draft_ : nullptr; }
  /// Every rank routes every token, so rank 0's counts are the model's.
  std::vector<std::vector<uint64_t>> expert_load() const override { return shard_->expert_load(); }
  /// As the shard's; kUnavailable with the group's end once it has failed.
  Status forward(const model::ForwardBatch& batch, model::KvStore& kv, MatrixView logits) override;

 private:
  class Draft final : public model::DraftModel {
   public:
    explicit Draft(GroupModel& model) : model_(model) {}
    size_t weight_bytes_per_token() const override {
      return model_.shard_->draft()->weight_bytes_per_token();
    }
    Status forward(const model::DraftBatch& batch, model::KvStore& kv, MatrixView logits) override;

   private:
    GroupModel& model_;
  };

  Status start(const model::ForwardBatch& batch, const model::KvStore& kv, MatrixView logits,
               BatchKind kind);
  template <class F>
  Status run(F&& compute);
  Error fail(const Error& why);

  const std::unique_ptr<model::Model> shard_;
  TimedCommunicator& comm_;
  const GroupModelOptions options_;
  BatchEncoder encoder_;
  RankClock clock_;
  std::optional<Error> failure_;
  uint64_t steps_ = 0;
  Draft draft_{*this};
};

}  // namespace capstan::engine
