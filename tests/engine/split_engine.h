// An engine over a model that is split among ranks: threads of the test, as in the program.
#pragma once

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "engine/dp_engine.h"
#include "engine/engine_harness.h"
#include "engine/group_check.h"
#include "engine/group_model.h"
#include "engine/rank_loop.h"
#include "model/golden.h"

namespace capstan::engine {

inline EngineConfig split_config(int chunked_prefill_size) {
  EngineConfig c = small_config();
  c.scheduler.num_pages = 256;
  c.scheduler.context_length = 512;
  c.scheduler.chunked_prefill_size = chunked_prefill_size;
  return c;
}

class SplitEngine {
 public:
  using WrapShard =
      std::function<std::unique_ptr<model::Model>(int rank, std::unique_ptr<model::Model>)>;

  SplitEngine(const std::string& path, int ranks, EngineConfig config, model::LoadOptions load = {},
              WrapShard wrap = {}) {
    const bool nextn = config.speculation.source == SpeculationConfig::Source::kNextn;
    load.draft = nextn;
    load.shard.size = ranks;
    auto group = comm::make_local_group(ranks);
    for (int r = 0; r < ranks; ++r) {
      RankParts parts;
      comms_.push_back(
          std::make_unique<TimedCommunicator>(std::move(group[static_cast<size_t>(r)])));
      parts.comm = comms_.back().get();
      load.shard.rank = r;
      load.communicator = parts.comm;
      auto loaded = model::load(
          path, {.isa = kernels::supported_isas().back(), .quantise_activations = false}, 1, load);
      if (wrap) loaded.model = wrap(r, std::move(loaded.model));
      const model::ModelConfig& own = loaded.model->local_config();
      auto kv = model::KvStore::create(own, config.scheduler.num_pages, config.scheduler.page_size,
                                       DType::kF32, nextn ? 1 : 0);
      EXPECT_TRUE(kv.ok());
      parts.kv = std::make_unique<model::KvStore>(std::move(*kv));
      parts.shard = std::move(loaded.model);
      parts.pool = std::move(loaded.pool);
      loaded_.push_back(std::move(loaded));
      if (r == 0) {
        first_ = std::move(parts);
      } else {
        RankOptions options;
        options.page_size = config.scheduler.page_size;
        options.on_failure = [this](int rank, const Error& why) { note(rank, why); };
        options.on_step = [this, r](uint64_t step) { steps_[static_cast<size_t>(r)] = step; };
        threads_.push_back(std::make_unique<RankThread>(std::move(parts), std::move(options)));
      }
    }
    GroupModelOptions options;
    options.page_size = config.scheduler.page_size;
    options.groups = load.shard.dp_size;
    options.on_step = [this](uint64_t step) { steps_[0] = step; };
    options.on_failure = [this](const Error& why) {
      note(0, why);
      return why;
    };
    options.on_timings = [this](const std::vector<double>& seconds) {
      std::lock_guard lock(mutex_);
      timings_ = seconds;
    };
    config.kv_dtype = DType::kF32;
    config.pool = first_.pool.get();
    auto model =
        std::make_unique<GroupModel>(std::move(first_.shard), *first_.comm, std::move(options));
    auto created = load.shard.dp_size > 1
                       ? create_dp_engine(std::move(model), std::move(first_.kv),
                                          load.shard.dp_size, LoadBalance::kRequests, config)
                       : Engine::create(std::move(model), config);
    EXPECT_TRUE(created.ok()) << created.error().message;
    engine_ = std::move(created).value();
  }
  ~SplitEngine() { stop(); }

  Engine& engine() { return *engine_; }
  Output& submit(EngineRequest request) {
    Output& out = outputs_.emplace_back();
    out.request = request;
    const auto id = engine_->submit(std::move(request), out.sink());
    EXPECT_TRUE(id.ok()) << id.error().message;
    if (id.ok()) out.id = *id;
    return out;
  }
  /// Rank 0 tells the others to stop; returns when they have.
  void stop() {
    engine_.reset();
    threads_.clear();
  }
  struct Failure {
    int rank;
    std::string message;
  };
  std::vector<Failure> failures() const {
    std::lock_guard lock(mutex_);
    return failures_;
  }
  std::vector<double> timings() const {
    std::lock_guard lock(mutex_);
    return timings_;
  }
  uint64_t steps(int rank) const { return steps_[static_cast<size_t>(rank)]; }

 private:
  void note(int rank, const Error& why) {
    std::lock_guard lock(mutex_);
    failures_.push_back({rank, why.message});
  }
  mutable std::mutex mutex_;
  std::vector<Failure> failures_;
  std::vector<double> timings_;
  std::array<std::atomic<uint64_t>, 16> steps_{};
  std::deque<Output> outputs_;
  std::vector<std::unique_ptr<TimedCommunicator>> comms_;
  std::vector<model::LoadedModel> loaded_;  // checkpoints
  RankParts first_;
  std::vector<std::unique_ptr<RankThread>> threads_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace capstan::engine
