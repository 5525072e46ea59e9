// Runs a model for many requests at once. One engine thread owns scheduler, cache and executor;
// everything here is thread-safe and never blocks on a step in progress.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "engine/sampling_params.h"
#include "model/model.h"
#include "platform/thread_pool.h"
#include "scheduler/scheduler.h"

namespace capstan::engine {

using scheduler::FinishKind;
using scheduler::RequestId;

struct TokenLogprob {
  int32_t token = -1;
  float logprob = 0;
};

/// One generated token with what was asked about it.
struct OutputToken {
  int32_t token = -1;
  /// Valid when logprobs were asked for. NaN in the first entry of prompt_logprobs: that token has
  /// no predecessor whose logits were asked for (null in JSON).
  float logprob = 0;
  std::vector<TokenLogprob> top;     // top_logprobs entries, descending
  std::vector<TokenLogprob> chosen;  // for token_ids_logprob
};

/// What a request's sink receives; several tokens may come in one.
struct OutputEvent {
  std::vector<OutputToken> tokens;
  bool finished = false;
  FinishKind finish = FinishKind::kNone;
  int32_t matched_token = -1;  // EOS or stop id that ended it
  std::string message;         // for kAbort
  ErrorCode abort_code = ErrorCode::kAborted;
  int32_t prompt_tokens = 0;
  int32_t cached_tokens = 0;  // at first admission
  int32_t retractions = 0;
  int32_t decode_steps = 0;  // so far; fewer than tokens where drafts were accepted
  double queue_seconds = 0;  // from submit() to first admission; so far, if never admitted
  /// With the first event, if asked for: one entry per prompt position from logprob_start.
  std::vector<OutputToken> prompt_logprobs;
};

struct EngineRequest {
  std::vector<int32_t> prompt;
  SamplingParams sampling;
  int64_t priority = 0;
  std::string cache_salt;      // namespaces the prefix cache
  uint64_t sibling_group = 0;  // see scheduler::RequestSpec
  int choice_index = 0;        // c of the random stream (seed, c, step)
  bool probe = false;          // health probe: no cache, no queue limit, no statistics
};

/// Called on the engine thread, in order, last call has finished=true. Must not block or throw.
using OutputSink = std::function<void(OutputEvent&&)>;

/// Speculative decoding: guessed tokens are verified together with the last one. What is written
/// does not depend on it.
struct SpeculationConfig {
  enum class Source : uint8_t {
    kNone,
    kNgram,  // what followed in the request's own text when it last said the same
    kNextn,  // the checkpoint's multi-token prediction layer; the model must have been loaded with
             // it
  };
  Source source = Source::kNone;
  int max_drafts = 11;  // per request and step
  /// Drafts only while they raise the tokens per second of the batch, as measured while running;
  /// otherwise always as many as there are.
  bool adaptive = true;
};

struct EngineConfig {
  scheduler::SchedulerConfig scheduler;
  SpeculationConfig speculation;
  DType kv_dtype = DType::kF16;
  uint64_t random_seed = 0;
  int decode_log_interval = 40;   // steps between "Decode batch" lines
  double watchdog_timeout = 300;  // seconds without a finished step while work exists; 0 = off
  double queue_timeout = -1;      // seconds; < 0 = off
  double run_timeout = -1;
  bool return_original_logprob = false;  // log-probabilities before temperature
  /// Ids from here on are never produced: rows that the embedding table has beyond the tokenizer's
  /// vocabulary (padding). 0 = none.
  int32_t token_limit = 0;
  double soft_watchdog_timeout = 0;  // seconds; only logs and dumps; 0 = off
  /// Called once on the watchdog's thread with what was running, after it was logged. Unset: the
  /// process ends at once with exit code 70 (the step cannot be interrupted, only left).
  std::function<void(const std::string&)> on_fatal;
  /// Of a split model: whether rank 0 waits for another rank at the moment.
  std::function<bool()> waits_for_ranks = {};
  /// Spreads sampling over the model's compute threads; may be null. Must outlive the engine and be
  /// used by nobody else while it runs (the model uses it from the engine thread).
  platform::ThreadPool* pool = nullptr;
};

/// A snapshot, refreshed every step and at least once per second while anything changes.
struct EngineStats {
  scheduler::SchedulerStats scheduler;
  double gen_throughput = 0;  // tokens/s over the last interval; 0 when idle
  double cache_hit_rate = 0;  // cached / prompt tokens of the last reporting window
  uint64_t steps = 0;
  uint64_t prefill_compute_tokens = 0, prefill_cached_tokens = 0, decode_tokens = 0;
  double last_step_seconds = 0;
  double seconds_since_progress = 0;  // 0 when idle; grows when a step hangs
  int step_prefill_tokens = 0;        // of the step in progress; 0 between steps and in pure decode
  size_t weight_bytes = 0, kv_bytes = 0;
  uint64_t finished_requests = 0;  // without probes; aborted ones included
  uint64_t aborted_requests = 0;
  // With speculation, of the last reporting window; 0 without drafts in it.
  double spec_accept_length = 0;  // tokens per request and decode step: accepted drafts plus one
  double spec_accept_rate = 0;    // share of verified drafts that held
  int spec_followed = 0;          // requests of the last step that NEXTN's layer was run for
  // Since the start: decode steps summed over requests, drafts verified, drafts accepted.
  uint64_t spec_verify_count = 0, spec_draft_tokens = 0, spec_accepted_tokens = 0;
  double spec_draft_seconds = 0;  // that NEXTN's layer took since the start
};

class Engine {
 public:
  static Result<std::unique_ptr<Engine>> create(std::unique_ptr<model::Model> model,
                                                const EngineConfig& config);
  virtual ~Engine() = default;  // stops the thread; live requests get kAbort

  /// Validates and queues. Errors: kInvalidArgument/kOutOfRange with param, kResourceExhausted when
  /// the queue is full, kUnavailable when draining. On success the sink will see exactly one
  /// finished event. max_new_tokens is clipped to what context and KV pool leave after the prompt;
  /// reaching that ends the request with kLength. With priority scheduling a full queue pushes out
  /// the lowest priority, which then ends with kAbort and abort_code kResourceExhausted.
  virtual Result<RequestId> submit(EngineRequest request, OutputSink sink) = 0;
  /// Takes effect within one step; unknown or finished ids are ignored.
  /// kStop = the caller matched a stop string; the sink gets its finished event either way.
  virtual void cancel(RequestId id, FinishKind kind = FinishKind::kAbort,
                      std::string message = "cancelled") = 0;
  virtual void cancel_all(std::string message) = 0;
  /// The model can not go on: this error for all live requests, after the step in progress, and
  /// for all that come. The first call counts.
  virtual void fail(const Error& why) { cancel_all(why.message); }

  /// While paused no step runs; requests wait, keep what they hold, and can be cancelled.
  virtual void set_paused(bool paused) = 0;
  /// False when requests run or wait (nothing is dropped then).
  virtual bool flush_cache() = 0;
  /// Refuses new requests from now on; running ones go on.
  virtual void begin_drain() = 0;
  virtual bool idle() const = 0;
  virtual EngineStats stats() const = 0;
  /// model::Model::expert_load(). Callable from any thread.
  virtual std::vector<std::vector<uint64_t>> expert_load() const { return {}; }
  virtual const model::ModelConfig& model_config() const = 0;
  virtual const EngineConfig& config() const = 0;
};

}  // namespace capstan::engine
