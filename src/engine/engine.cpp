// The public face of the engine: creation, the mailbox, statistics. The loop is in engine_loop.cpp.
#include "engine/engine.h"

#include <algorithm>

#include "base/log.h"
#include "engine/engine_impl.h"

namespace capstan::engine {
namespace {

// Logits that prompt log-probabilities may take in one pass: 64 MB, or a few rows in any case.
int max_prompt_logit_rows(const model::ModelConfig& model) {
  constexpr int64_t kFloats = (64 << 20) / 4;
  return static_cast<int>(std::clamp<int64_t>(kFloats / model.vocab_size, 4, 4096));
}

NextnOptions nextn_options(model::Model& model, const EngineConfig& config) {
  const int64_t vocab = model.config().vocab_size;
  return {
      .model = model.draft(),
      .hidden_size = model.config().hidden_size,
      .vocab_size = vocab,
      .token_limit = config.token_limit > 0 ? std::min<int64_t>(config.token_limit, vocab) : vocab,
      .page_size = config.scheduler.page_size};
}

}  // namespace

Result<std::unique_ptr<Engine>> Engine::create(std::unique_ptr<model::Model> model,
                                               const EngineConfig& config) {
  const scheduler::SchedulerConfig& s = config.scheduler;
  if (model == nullptr) return internal_error("Engine::create needs a model");
  if (s.context_length < 2) {
    return invalid_argument(
        "the context length must be at least 2 tokens, but is " + std::to_string(s.context_length),
        "context-length");
  }
  if (config.decode_log_interval < 1) {
    return invalid_argument("--decode-log-interval must be at least 1, but is " +
                                std::to_string(config.decode_log_interval),
                            "decode-log-interval");
  }
  if (config.speculation.max_drafts < 0) {
    return invalid_argument("--speculative-num-draft-tokens must be at least 1, but is " +
                                std::to_string(config.speculation.max_drafts + 1),
                            "speculative-num-draft-tokens");
  }
  const bool nextn = config.speculation.source == SpeculationConfig::Source::kNextn;
  if (nextn && model->draft() == nullptr) {
    return invalid_argument(
        "--speculative-algorithm NEXTN needs a model with a multi-token prediction layer, and this "
        "one was loaded without; use NGRAM",
        "speculative-algorithm");
  }
  CAPSTAN_ASSIGN(auto scheduler, scheduler::Scheduler::create(s));
  CAPSTAN_ASSIGN(auto kv, model::KvStore::create(model->local_config(), s.num_pages, s.page_size,
                                                 config.kv_dtype, nextn ? 1 : 0));
  return std::unique_ptr<Engine>(
      std::make_unique<EngineImpl>(std::move(model), config, std::move(kv), std::move(scheduler)));
}

EngineImpl::EngineImpl(std::unique_ptr<model::Model> model, const EngineConfig& config,
                       model::KvStore kv, std::unique_ptr<scheduler::Scheduler> scheduler)
    : config_(config),
      model_(std::move(model)),
      kv_(std::move(kv)),
      scheduler_(std::move(scheduler)),
      sampler_({config.token_limit, config.return_original_logprob}, config.pool),
      builder_(config.scheduler.page_size, max_prompt_logit_rows(model_->config())),
      report_(config.decode_log_interval),
      speculator_(Speculator::create(config.speculation, nextn_options(*model_, config),
                                     [this] { return now(); })) {
  working_.weight_bytes = model_->weight_bytes();
  working_.kv_bytes = kv_.bytes();
  working_.scheduler = scheduler_->stats();
  stats_ = working_;
  watchdog_ = std::make_unique<Watchdog>(
      Watchdog::Options{config.watchdog_timeout, config.soft_watchdog_timeout, config.on_fatal,
                        config.waits_for_ranks},
      [this] { return describe_step(); });
  // Also the logger's first use, here rather than by two engines' threads at once: the library's
  // own guard is invisible to the thread sanitizer.
  LOG_DEBUG("Engine: {} pages of {} tokens, {} bytes of KV", config.scheduler.num_pages,
            config.scheduler.page_size, working_.kv_bytes);
  thread_ = std::thread([this] { run(); });
}

EngineImpl::~EngineImpl() {
  draining_ = true;
  {
    std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wake_.notify_one();
  thread_.join();
  watchdog_.reset();
}

double EngineImpl::now() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - epoch_).count();
}

Result<RequestId> EngineImpl::submit(EngineRequest request, OutputSink sink) {
  CAPSTAN_RETURN_IF_ERROR(check_request(request, model_->config(), config_));
  const RequestId id = next_id_.fetch_add(1, std::memory_order_relaxed);
  const bool probe = request.probe;
  auto live =
      make_live_request(id, std::move(request), std::move(sink), model_->config(), config_, now());
  {
    std::lock_guard lock(mutex_);
    if (failure_) return *failure_;
    if (draining_ || stop_) {
      return unavailable("the server is shutting down and takes no new requests");
    }
    if (!probe) {
      // With priorities the scheduler decides who has to leave the queue.
      const int limit = config_.scheduler.max_queued_requests;
      if (limit >= 0 && !config_.scheduler.enable_priority && queued_ >= limit) {
        return resource_exhausted("The request queue is full. " + std::to_string(queued_) +
                                  " requests wait, the limit is " + std::to_string(limit) +
                                  " (--max-queued-requests); retry later.");
      }
      ++queued_;
      ++mailbox_requests_;
    }
    live_count_.fetch_add(1);
    mailbox_.emplace_back(std::move(live));
  }
  wake_.notify_one();
  return id;
}

void EngineImpl::post(Command command) {
  {
    std::lock_guard lock(mutex_);
    mailbox_.push_back(std::move(command));
  }
  wake_.notify_one();
}

void EngineImpl::cancel(RequestId id, FinishKind kind, std::string message) {
  post(Cancel{id, kind == FinishKind::kNone ? FinishKind::kAbort : kind, std::move(message)});
}

void EngineImpl::cancel_all(std::string message) { post(CancelAll{std::move(message)}); }

void EngineImpl::fail(const Error& why) {
  {
    std::lock_guard lock(mutex_);
    if (failure_) return;
    failure_ = why;
    mailbox_.emplace_back(CancelAll{why.message, why.code});
  }
  wake_.notify_one();
}

void EngineImpl::set_paused(bool paused) {
  {
    std::lock_guard lock(mutex_);
    paused_ = paused;
  }
  wake_.notify_one();
}

bool EngineImpl::flush_cache() {
  if (!idle()) return false;  // and so never waits for a step
  Flush flush;
  std::future<bool> done = flush.done.get_future();
  post(std::move(flush));
  return done.get();
}

EngineStats EngineImpl::stats() const {
  EngineStats out;
  {
    std::lock_guard lock(stats_mutex_);
    out = stats_;
    // The outline is that of the step in progress until the step's statistics are published.
    if (outline_.number > stats_.steps) out.step_prefill_tokens = outline_.prefill_tokens;
  }
  {
    // Between steps the published count is stale: requests may have arrived during a long one.
    std::lock_guard lock(mutex_);
    out.scheduler.waiting = queued_;
  }
  if (working_now_ && !idle()) {
    out.seconds_since_progress =
        std::max(0.0, now() - static_cast<double>(progress_ns_.load()) * 1e-9);
  }
  return out;
}

std::string EngineImpl::describe_step() const {
  std::lock_guard lock(stats_mutex_);
  std::string text = "Step " + std::to_string(outline_.number) + ": " +
                     std::to_string(outline_.decode) + " decode tokens, " +
                     std::to_string(outline_.prefill_tokens) + " prefill tokens of " +
                     std::to_string(outline_.prefill_items) + " requests; request ids:";
  constexpr size_t kShown = 32;
  for (size_t i = 0; i < outline_.ids.size() && i < kShown; ++i) {
    text += " " + std::to_string(outline_.ids[i]);
  }
  if (outline_.ids.size() > kShown) {
    text += " and " + std::to_string(outline_.ids.size() - kShown) + " more";
  }
  return text + ".";
}

}  // namespace capstan::engine
