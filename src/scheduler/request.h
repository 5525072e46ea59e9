// A request as the scheduler sees it: token counts, priorities and state; no text, no sampling.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace capstan::scheduler {

using RequestId = uint64_t;  // unique per process, ascending by arrival

enum class RequestState : uint8_t { kWaiting, kPrefill, kDecode, kFinished };

enum class FinishKind : uint8_t {
  kNone,
  kStop,    // EOS, stop id or stop string
  kLength,  // max_new_tokens or the context is full
  kAbort,   // client left, administrator, timeout, or memory can never suffice
};

/// What the caller gives on arrival. Times are seconds on the caller's clock.
struct RequestSpec {
  RequestId id = 0;
  std::vector<int32_t> prompt;   // at least one token
  int32_t max_new_tokens = 0;    // 0 = prefill only
  int64_t priority = 0;          // larger first, unless configured otherwise
  uint64_t cache_namespace = 0;  // requests with different values share no prefix
  uint64_t sibling_group =
      0;  // non-zero: same prompt (n > 1); later ones wait for the first's prefill
  bool bypass_queue_limit = false;  // health probes
  bool no_cache = false;            // neither reads nor leaves prefixes (health probes)
  /// >= 0: log-probabilities of prompt tokens from here are wanted, so fewer than this many tokens
  /// come from the cache (rows logprob_start - 1 and later are computed) until the prompt is done.
  int32_t logprob_start = -1;
  double arrival = 0;
};

}  // namespace capstan::scheduler
