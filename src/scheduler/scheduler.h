// Decides what each step computes. Pure: no threads, no clock, no I/O, no model.
//
// plan(now) -> StepPlan; the caller runs it; commit(results, now) applies it. Between the two, only
// add() and cancel() may be called; a request cancelled in flight leaves at commit. Pages are owned
// as follows: the radix tree owns pages of cached prefixes; a running request owns the pages behind
// its cached prefix; commit and finish move ownership from request to tree. Nothing else holds
// pages.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "base/result.h"
#include "scheduler/request.h"

namespace capstan::scheduler {

enum class Policy : uint8_t { kLpm, kFcfs, kRandom, kDfsWeight, kLof };

struct SchedulerConfig {
  Policy policy = Policy::kFcfs;
  int page_size = 16;
  int num_pages = 0;  // capacity; page 0 is usable
  int max_running_requests = 256;
  int max_queued_requests = -1;     // -1: unbounded
  int chunked_prefill_size = 2048;  // prefill tokens per step; -1: whole prompts
  int max_prefill_tokens = 16384;
  int context_length = 0;
  bool disable_radix_cache = false;
  bool enable_priority = false;
  bool low_priority_values_first = false;
  int64_t priority_preemption_threshold = 10;
  bool disable_priority_preemption = false;
  bool retract_by_priority = false;  // default: by length (fewest outputs, longest input go first)
  double conservativeness = 1.0;
  int clip_max_new_tokens = 4096;
  double priority_ageing_per_second = 0.0;
  uint64_t random_seed = 0;
};

/// One sequence's work in a step: compute tokens [start, start+count) of prompt+output.
struct PlanItem {
  RequestId id = 0;
  int32_t start = 0;  // position of the first token computed
  int32_t count = 0;
  std::span<const int32_t> tokens;  // the count token ids; valid until commit
  std::span<const int32_t> pages;   // covers positions [0, start+count); valid until commit
  bool samples = false;             // the last row's logits yield the next token
  bool is_decode = false;           // computes exactly the last generated token
  int32_t cached_tokens = 0;        // prefix served from cache at (re)admission
  bool first_chunk = false;         // first item since (re)admission
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
  int decode_tokens = 0;
  int cached_tokens = 0;  // of requests admitted in this step
  int admitted = 0;
  int retracted = 0;
  bool empty() const { return items.empty(); }
};

/// The outcome of one item, by item index. `stop` ends the request after this token.
struct SampledToken {
  int32_t token = -1;  // ignored where !samples
  FinishKind stop = FinishKind::kNone;
};

struct SchedulerStats {
  int running = 0;
  int waiting = 0;
  int64_t used_tokens = 0;       // held by requests (pages * page_size)
  int64_t evictable_tokens = 0;  // cached and unpinned
  int64_t free_tokens = 0;
  int64_t total_tokens = 0;
  uint64_t retractions = 0, evicted_tokens = 0, aborted = 0, finished = 0;
  uint64_t prompt_tokens = 0, cached_prompt_tokens = 0;
};

class Scheduler {
 public:
  static Result<std::unique_ptr<Scheduler>> create(const SchedulerConfig& config);
  virtual ~Scheduler() = default;

  /// Queues a request. kResourceExhausted "The request queue is full." when the queue is;
  /// kOutOfRange when prompt and output can never fit the pool. With priorities, a full queue may
  /// push out a waiting request of lower priority, which the next plan reports in `finished`.
  virtual Status add(RequestSpec spec) = 0;

  /// Ends a request wherever it is; kAbort unless the caller says it stopped properly (stop
  /// string). Unknown ids are ignored. Memory is free at once, or at commit if the request is in
  /// flight.
  virtual void cancel(RequestId id, FinishKind kind = FinishKind::kAbort) = 0;

  /// Plans the next step. Empty when nothing can run.
  virtual StepPlan plan(double now) = 0;
  /// Applies the step just run. `sampled` is parallel to plan.items.
  /// Returns requests that finished in it.
  virtual std::vector<Finished> commit(const StepPlan& plan, std::span<const SampledToken> sampled,
                                       double now) = 0;

  /// Drops all cached prefixes. Refused (false) while requests run or wait.
  virtual bool flush_cache() = 0;
  virtual bool idle() const = 0;  // nothing runs or waits
  virtual SchedulerStats stats() const = 0;
  /// Number of times the request was retracted so far; 0 for unknown ids.
  virtual int retractions(RequestId id) const = 0;
  /// Verifies every invariant of scheduler, page pool and radix tree; the message names the first
  /// broken one.
  virtual Status check_invariants() const = 0;
};

}  // namespace capstan::scheduler
