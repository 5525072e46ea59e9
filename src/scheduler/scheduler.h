// Decides what each step computes. Pure: no threads, no clock, no I/O, no model.
//
// plan(now) -> StepPlan; the caller runs it; commit(results, now) applies it, or abandon() if it
// was not run. Between the two, only add() and cancel() may be called; a request cancelled in
// flight leaves at commit. Speculation: before plan(), propose() names tokens that may follow; the
// plan then computes them together with the last token, and commit() is told how many hold. Pages
// are owned as follows: the radix tree owns pages of cached prefixes; a running request owns the
// pages behind its cached prefix; commit and finish move ownership from request to tree. Nothing
// else holds pages; a waiting request holds none.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "cache/eviction_policy.h"
#include "scheduler/request.h"

namespace capstan::scheduler {

/// Order in which waiting requests are admitted. All but kFcfs let the oldest request go first
/// after `max_passed_over` others were admitted before it, so that nobody starves. kLpm and
/// kDfsWeight look at the 128 oldest waiting requests only: matching prefixes costs time in the
/// length of every prompt looked at.
enum class Policy : uint8_t {
  kLpm,        // longest cached prefix first
  kFcfs,       // first come, first served
  kRandom,     // uniformly among the next 256 arrivals, from random_seed
  kDfsWeight,  // depth-first over the prefix tree, branches wanted by most requests first
  kLof,        // longest output (max_new_tokens) first
};

/// "lpm", "fcfs", "random", "dfs-weight", "lof"; kInvalidArgument otherwise.
Result<Policy> parse_policy(std::string_view name);

struct SchedulerConfig {
  Policy policy = Policy::kFcfs;
  int page_size = 16;
  int num_pages = 0;  // capacity; page 0 is usable
  int max_running_requests = 256;
  int max_queued_requests = -1;  // -1: unbounded
  /// Prefill tokens per step, a multiple of page_size; -1: prompts are not cut.
  int chunked_prefill_size = 2048;
  /// Bound of the prefill tokens of one step; at least context_length is allowed.
  int max_prefill_tokens = 16384;
  /// Prefill tokens of a step that also decodes, so that a long prompt does not stall streams:
  /// > 0: this many; -1: as chunked_prefill_size; 0: measured, such that the step lasts about
  /// mixed_step_ratio times a step that only decodes (see step_budget.h).
  int mixed_prefill_tokens = 0;
  double mixed_step_ratio = 2.0;  // > 1; a p99 inter-token latency of twice the median
  int context_length = 0;         // prompt + output; 0: bounded by the pool only
  cache::EvictionPolicy eviction_policy = cache::EvictionPolicy::kLru;
  bool disable_radix_cache = false;
  bool enable_priority = false;
  bool low_priority_values_first = false;
  /// A running request gives way to a waiting one whose priority is higher by more than this.
  int64_t priority_preemption_threshold = 10;
  bool disable_priority_preemption = false;
  bool retract_by_priority = false;  // default: by length (fewest outputs, longest input go first)
  /// >= 0. Admission assumes that requests use 0.7 * conservativeness of their max_new_tokens at
  /// first; see step_budget.h for how the share moves.
  double conservativeness = 1.0;
  int clip_max_new_tokens = 4096;           // no request is assumed to write more than this
  double priority_ageing_per_second = 0.0;  // added to a waiting request's priority
  int max_passed_over = 32;                 // see Policy
  /// A waiting request is held back while a running one computes at least this many tokens of
  /// prefix that it could then take from the cache; at most twice per request. -1: never.
  int in_batch_sharing_tokens = 32;
  uint64_t random_seed = 0;
};

/// One sequence's work in a step: compute tokens [start, start+count) of prompt+output.
struct PlanItem {
  RequestId id = 0;
  int32_t start = 0;  // position of the first token computed
  int32_t count = 0;
  std::span<const int32_t> tokens;  // the count token ids; valid until commit
  std::span<const int32_t> pages;   // covers positions [0, start+count); valid until commit
  bool samples = false;    // the logits of the last row before the drafts yield the next token
  bool is_decode = false;  // computes exactly the last generated token, and drafts after it
  /// The last so many of `tokens` are proposed ones; the logits of each yield the token after it if
  /// it holds. 0 unless is_decode.
  int32_t drafts = 0;
  int32_t cached_tokens = 0;  // prefix served from cache at (re)admission
  bool first_chunk = false;   // first item since (re)admission
};

struct Finished {
  RequestId id = 0;
  FinishKind kind = FinishKind::kNone;
  std::string message;  // for kAbort: why
};

struct StepPlan {
  std::vector<PlanItem> items;     // decode items first, then prefill chunks
  std::vector<Finished> finished;  // requests that ended without being run (cancelled, impossible)
  int prefill_tokens = 0;
  int decode_tokens = 0;  // drafts included
  int draft_tokens = 0;
  int cached_tokens = 0;  // of requests admitted in this step
  int admitted = 0;
  int retracted = 0;
  bool empty() const { return items.empty(); }
};

/// The outcome of one item, by item index: the first `accepted` of its drafts hold and `token`
/// comes after them. `stop` ends the request after this token.
struct SampledToken {
  int32_t token = -1;  // ignored where !samples
  FinishKind stop = FinishKind::kNone;
  int32_t accepted = 0;  // at most item.drafts
};

struct SchedulerStats {
  int running = 0;
  int waiting = 0;
  int64_t used_tokens = 0;       // needed by requests, shared prefixes once (pages * page_size)
  int64_t evictable_tokens = 0;  // cached and unpinned
  int64_t free_tokens = 0;
  int64_t total_tokens = 0;
  uint64_t retractions = 0, evicted_tokens = 0, aborted = 0, finished = 0;
  uint64_t prompt_tokens = 0, cached_prompt_tokens = 0;  // at first admission, without no_cache
  double new_token_ratio = 0;    // share of max_new_tokens that admission assumes
  int mixed_prefill_tokens = 0;  // prefill tokens that a step with decodes may have now
};

class Scheduler {
 public:
  static Result<std::unique_ptr<Scheduler>> create(const SchedulerConfig& config);
  virtual ~Scheduler() = default;

  /// Queues a request. kResourceExhausted "The request queue is full." when the queue is;
  /// kOutOfRange when prompt and output can never fit the pool, or the prompt not the context
  /// (output beyond the context is cut: the request ends with kLength there). With priorities, a
  /// full queue may push out a waiting request of lower priority that never ran, which the next
  /// plan reports in `finished`.
  virtual Status add(RequestSpec spec) = 0;

  /// Ends a request wherever it is; kAbort unless the caller says it stopped properly (stop
  /// string). Unknown ids are ignored. Memory is free at once, or at commit if the request is in
  /// flight.
  virtual void cancel(RequestId id, FinishKind kind = FinishKind::kAbort) = 0;

  /// Tokens that may follow the last one of a request that decodes: the next plan computes as many
  /// of them as output limit and memory allow, evicting cached prefixes but pushing back nobody.
  /// Forgotten after that plan; ignored for requests that do not decode, and between plan and
  /// commit. What is rejected never gets into the cache.
  virtual void propose(RequestId id, std::span<const int32_t> drafts) = 0;

  /// Plans the next step. Empty when nothing can run.
  virtual StepPlan plan(double now) = 0;
  /// Applies the step just run. `sampled` is parallel to plan.items.
  /// Returns requests that finished in it.
  virtual std::vector<Finished> commit(const StepPlan& plan, std::span<const SampledToken> sampled,
                                       double now) = 0;

  /// Instead of commit, when the step failed: nothing it would have computed counts or is cached,
  /// its requests stay and are planned again. Returns the requests cancelled meanwhile.
  virtual std::vector<Finished> abandon(const StepPlan& plan) = 0;

  /// Most tokens of prompt + output that add() accepts.
  virtual int64_t max_request_tokens() const = 0;
  /// Drops all cached prefixes. Refused (false) while requests run or wait.
  virtual bool flush_cache() = 0;
  virtual bool idle() const = 0;  // nothing runs, waits or is still to be reported by plan()
  virtual SchedulerStats stats() const = 0;
  /// Number of times the request was retracted so far; 0 for unknown ids.
  virtual int retractions(RequestId id) const = 0;
  /// Verifies every invariant of scheduler, page pool and radix tree; the message names the first
  /// broken one.
  virtual Status check_invariants() const = 0;
};

}  // namespace capstan::scheduler
