// The ranks of this node: threads, kernels and weights of each.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "app/rank_group.h"
#include "app/serve_options.h"
#include "engine/rank_loop.h"
#include "model/checkpoint.h"

namespace capstan::app {

/// One rank, loaded. In order of construction.
struct LoadedRank {
  engine::TimedCommunicator* comm = nullptr;  // null: the only rank
  std::unique_ptr<platform::ThreadPool> pool;
  std::shared_ptr<kernels::Ops> ops;
  std::unique_ptr<model::Model> model;
};

/// Multi-token prediction is loaded too.
bool drafts_with_layer(const ServeOptions& options);

/// Loads this node's ranks, at the same time, and prints what each of them read. `group` is null
/// where there is one rank. kAborted when `cancelled` says so.
Result<std::vector<LoadedRank>> load_ranks(const ServeOptions& options,
                                           std::shared_ptr<const model::Checkpoint> checkpoint,
                                           RankGroup* group,
                                           const std::function<bool()>& cancelled);

/// Decides the pages of the KV pool, the same on all nodes: what the least of them has room for.
Status size_kv_pool(ServeOptions& options, const std::vector<LoadedRank>& ranks,
                    uint64_t available_before, RankGroup* group);

/// A cache of the size decided.
Result<std::unique_ptr<model::KvStore>> make_kv_store(const ServeOptions& options,
                                                      const model::Model& model);

/// Every collective among all ranks with known numbers, then all nodes together.
Status check_ranks(const std::vector<LoadedRank>& ranks, RankGroup& group);

}  // namespace capstan::app
