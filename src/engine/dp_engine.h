// Data-parallel attention as one engine: an engine for each group of ranks, and who gets a request.
#pragma once

#include <memory>

#include "engine/engine.h"

namespace capstan::engine {

/// Which group a request goes to (--load-balance-method). Requests of one sibling group stay
/// together, to share their prompt's cache.
enum class LoadBalance : uint8_t {
  kRequests,    // the one with the fewest requests, running and waiting; in turn among equals
  kTokens,      // the one whose requests have the fewest tokens, prompts and longest outputs
  kRoundRobin,  // in turn
};

/// `model` computes for `groups` groups (model::Shard::dp_size); `kv` is the cache of this
/// process's first rank. Limits of requests in `config` are for all groups together, those of
/// tokens for each; ids, statistics and commands are of all together. A full queue sends a request
/// to another group before it is refused.
Result<std::unique_ptr<Engine>> create_dp_engine(std::unique_ptr<model::Model> model,
                                                 std::unique_ptr<model::KvStore> kv, int groups,
                                                 LoadBalance balance, const EngineConfig& config);

}  // namespace capstan::engine
