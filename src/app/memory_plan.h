// How many tokens of KV cache the server keeps.
#pragma once

#include <cstdint>
#include <optional>

#include "base/result.h"

namespace capstan::app {

struct MemoryPlanInput {
  uint64_t available_bytes = 0;      // before loading: what can be had without swapping
  uint64_t available_now_bytes = 0;  // after loading
  uint64_t weight_bytes = 0;
  uint64_t bytes_per_token = 0;  // of KV cache, all layers
  int64_t context_length = 0;
  int page_size = 0;
  std::optional<double> mem_fraction_static;
  std::optional<int64_t> max_total_tokens;
};

struct MemoryPlan {
  int num_pages = 0;
  uint64_t kv_bytes = 0;
  /// Not empty when a full context does not fit: what that means for requests.
  std::string warning;
};

/// --max-total-tokens, if given; else --mem-fraction-static x available memory minus the weights,
/// if given; else what kDefaultContexts full contexts need, but at most kDefaultShare of the memory
/// left after loading. The operating system hands out the pages when they are first written, so a
/// pool that is not used costs nothing.
Result<MemoryPlan> plan_memory(const MemoryPlanInput& input);

inline constexpr int kDefaultContexts = 8;
inline constexpr double kDefaultShare = 0.5;

}  // namespace capstan::app
