// A model split among ranks that are threads of the test, behind the interface of one model.
#pragma once

#include <gtest/gtest.h>

#include <deque>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "comm/communicator.h"
#include "golden.h"
#include "model/kv_store.h"
#include "model/model.h"

namespace capstan::model {

/// Every call runs on all ranks at once. Other ranks than the first get no matrix for logits and
/// hidden states, and their caches are made when the first one is seen.
class SplitModel final : public Model {
 public:
  /// `options.shard` gives the numbers of ranks and groups.
  SplitModel(const std::string& path, int ranks, const kernels::CpuOpsOptions& ops_options,
             LoadOptions options = {})
      : group_(comm::make_local_group(ranks)), caches_(static_cast<size_t>(ranks)) {
    auto checkpoint = Checkpoint::open(path);
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.error().message;
    std::shared_ptr<const Checkpoint> shared(std::move(*checkpoint));
    options.shard.size = ranks;
    for (int r = 0; r < ranks; ++r) {
      LoadedModel& m = ranks_.emplace_back();
      m.pool = std::make_unique<platform::ThreadPool>(1, /*pin=*/false);
      m.checkpoint = shared;
      auto ops = kernels::make_cpu_ops(ops_options, *m.pool);
      EXPECT_TRUE(ops.ok()) << ops.error().message;
      options.shard.rank = r;
      options.communicator = group_[static_cast<size_t>(r)].get();
      size_t& bytes = bytes_read_.emplace_back();
      options.progress = [&bytes](const LoadProgress& p) { bytes = p.bytes_done; };
      auto model = load_model(shared, *ops, *m.pool, options);
      EXPECT_TRUE(model.ok()) << model.error().message;
      if (model.ok()) m.model = std::move(*model);
    }
    draft_ = std::make_unique<Draft>(*this);
  }
  SplitModel(const SplitModel&) = delete;
  SplitModel& operator=(const SplitModel&) = delete;
  ~SplitModel() override {
    for (LoadedModel& m : ranks_) m.model.reset();  // before the group
  }

  const ModelConfig& config() const override { return rank(0).config(); }
  const ModelConfig& local_config() const override { return rank(0).local_config(); }
  size_t weight_bytes_per_token() const override { return rank(0).weight_bytes_per_token(); }
  size_t weight_bytes() const override { return rank(0).weight_bytes(); }
  DraftModel* draft() override { return rank(0).draft() == nullptr ? nullptr : draft_.get(); }
  std::vector<std::vector<uint64_t>> expert_load() const override { return rank(0).expert_load(); }

  Status forward(const ForwardBatch& batch, KvStore& kv, MatrixView logits) override {
    return on_all(kv, [&](int r, KvStore& cache) {
      ForwardBatch own = batch;
      if (r > 0) own.hidden_states = {};
      return rank(r).forward(own, cache, r == 0 ? logits : MatrixView{});
    });
  }

  Model& rank(int r) { return *ranks_[static_cast<size_t>(r)].model; }
  const Model& rank(int r) const { return *ranks_[static_cast<size_t>(r)].model; }
  comm::Communicator& communicator(int r) { return *group_[static_cast<size_t>(r)]; }
  /// What each rank reported as read when it was loaded.
  const std::deque<size_t>& bytes_read() const { return bytes_read_; }

 private:
  class Draft final : public DraftModel {
   public:
    explicit Draft(SplitModel& model) : model_(model) {}
    size_t weight_bytes_per_token() const override { return 0; }
    Status forward(const DraftBatch& batch, KvStore& kv, MatrixView logits) override {
      return model_.on_all(kv, [&](int r, KvStore& cache) {
        DraftBatch own = batch;
        if (r > 0) own.hidden_states = own.previous = {};
        return model_.rank(r).draft()->forward(own, cache, r == 0 ? logits : MatrixView{});
      });
    }

   private:
    SplitModel& model_;
  };

  /// Rank 0's status; others' failures fail the test.
  template <class F>
  Status on_all(KvStore& kv, F&& call) {
    std::vector<std::thread> threads;
    for (int r = 1; r < static_cast<int>(ranks_.size()); ++r) {
      auto& cache = caches_[static_cast<size_t>(r)];
      if (cache == nullptr) {
        const ModelConfig& c = rank(r).local_config();
        auto store = KvStore::create(c, kv.num_pages(), kv.page_size(), kv.layer(0).dtype,
                                     kv.num_layers() - c.num_layers);
        EXPECT_TRUE(store.ok()) << store.error().message;
        cache = std::make_unique<KvStore>(std::move(*store));
      }
      threads.emplace_back([&call, r, cache = cache.get()] {
        const Status status = call(r, *cache);
        EXPECT_TRUE(status.ok()) << "rank " << r << ": " << status.error().message;
      });
    }
    const Status status = call(0, kv);
    for (std::thread& t : threads) t.join();
    return status;
  }

  std::vector<std::unique_ptr<comm::Communicator>> group_;
  std::deque<size_t> bytes_read_;
  std::vector<LoadedModel> ranks_;
  std::vector<std::unique_ptr<KvStore>> caches_;  // of ranks 1 and up
  std::unique_ptr<Draft> draft_;
};

}  // namespace capstan::model
