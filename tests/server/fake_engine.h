// An engine without a model: a thread that hands every live request its next scripted token, step
// by step, under the test's control.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <functional>
#include <limits>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

#include "engine/engine.h"

namespace capstan::server::testing {

class FakeEngine final : public engine::Engine {
 public:
  using Request = engine::EngineRequest;
  /// The token of a request's step (0, 1, ...). Default: a, b, c, ... z, a, ...
  using Script = std::function<int32_t(const Request&, int step)>;

  explicit FakeEngine(int context_length = 512, int64_t vocab = 300) {
    model_.vocab_size = vocab;
    model_.architecture_name = "FakeForCausalLM";
    model_.model_type = "fake";
    model_.eos_token_ids = {257};
    config_.scheduler.context_length = context_length;
    config_.scheduler.num_pages = 4096;
    config_.scheduler.page_size = 16;
    thread_ = std::thread([this] { run(); });
  }
  ~FakeEngine() override {
    {
      const std::lock_guard lock(mutex_);
      quit_ = true;
    }
    wake_.notify_all();
    thread_.join();
  }

  // --- what tests set ---
  void set_script(Script script) {
    const std::lock_guard lock(mutex_);
    script_ = std::move(script);
  }
  /// Emits the bytes of `text`, then EOS.
  void say(const std::string& text) {
    set_script([text](const Request&, int step) {
      return step < static_cast<int>(text.size())
                 ? static_cast<int32_t>(static_cast<unsigned char>(text[static_cast<size_t>(step)]))
                 : 257;
    });
  }
  /// Only so many more steps are taken; -1: no bound.
  void allow_steps(int steps) {
    {
      const std::lock_guard lock(mutex_);
      allowed_ = steps;
    }
    wake_.notify_all();
  }
  /// The step after which a request ends with an error (kAbort and `code`); -1: never.
  void fail_after(int tokens, ErrorCode code, std::string message) {
    const std::lock_guard lock(mutex_);
    fail_after_ = tokens;
    fail_code_ = code;
    fail_message_ = std::move(message);
  }
  void set_max_live(int n) {
    const std::lock_guard lock(mutex_);
    max_live_ = n;
  }
  void set_tokens_per_event(int n) {
    const std::lock_guard lock(mutex_);
    tokens_per_event_ = n;
  }
  /// What stats() says of the step in progress.
  void set_step_prefill_tokens(int n) {
    const std::lock_guard lock(mutex_);
    step_prefill_ = n;
  }
  void set_expert_load(std::vector<std::vector<uint64_t>> load) {
    const std::lock_guard lock(mutex_);
    expert_load_ = std::move(load);
  }
  void set_cached_tokens(int n) {
    const std::lock_guard lock(mutex_);
    cached_ = n;
  }

  // --- what tests look at ---
  std::vector<Request> submitted() const {
    const std::lock_guard lock(mutex_);
    return submitted_;
  }
  int live() const {
    const std::lock_guard lock(mutex_);
    return static_cast<int>(live_.size());
  }
  int cancelled() const {
    const std::lock_guard lock(mutex_);
    return cancelled_;
  }
  /// Waits until the predicate holds; the bound only ends a test that has failed already.
  template <class Predicate>
  bool wait_for(Predicate predicate) {
    for (int i = 0; i < 20000; ++i) {
      if (predicate()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return false;
  }
  bool wait_live(int n) {
    return wait_for([&] { return live() == n; });
  }

  // --- Engine ---
  Result<engine::RequestId> submit(Request request, engine::OutputSink sink) override {
    const std::lock_guard lock(mutex_);
    if (draining_ && !request.probe) return unavailable("the engine takes no new requests");
    if (!request.probe && max_live_ >= 0 && static_cast<int>(live_.size()) >= max_live_) {
      return resource_exhausted("The request queue is full.");
    }
    CAPSTAN_RETURN_IF_ERROR(check(request));
    const engine::RequestId id = ++last_id_;
    if (!request.probe) submitted_.push_back(request);
    live_.emplace(id, Live{std::move(request), std::move(sink)});
    wake_.notify_all();
    return id;
  }
  void cancel(engine::RequestId id, engine::FinishKind kind, std::string message) override {
    const std::lock_guard lock(mutex_);
    const auto found = live_.find(id);
    if (found == live_.end()) return;
    found->second.cancel = kind;
    found->second.message = std::move(message);
    ++cancelled_;
    wake_.notify_all();
  }
  void cancel_all(std::string message) override {
    const std::lock_guard lock(mutex_);
    for (auto& [id, live] : live_) {
      live.cancel = engine::FinishKind::kAbort;
      live.message = message;
    }
    wake_.notify_all();
  }
  void set_paused(bool paused) override { allow_steps(paused ? 0 : -1); }
  bool flush_cache() override {
    const std::lock_guard lock(mutex_);
    if (!live_.empty()) return false;
    ++flushes_;
    return true;
  }
  void begin_drain() override {
    const std::lock_guard lock(mutex_);
    draining_ = true;
  }
  bool idle() const override { return live() == 0; }
  engine::EngineStats stats() const override {
    const std::lock_guard lock(mutex_);
    engine::EngineStats stats;
    for (const auto& [id, live] : live_) {
      if (!live.request.probe)
        ++(live.step > 0 ? stats.scheduler.running : stats.scheduler.waiting);
    }
    stats.scheduler.total_tokens = 4096 * 16;
    stats.scheduler.used_tokens = stats.scheduler.running * 16;
    stats.scheduler.free_tokens = stats.scheduler.total_tokens - stats.scheduler.used_tokens;
    stats.steps = steps_;
    stats.step_prefill_tokens = step_prefill_;
    stats.gen_throughput = live_.empty() ? 0 : 12.5;
    stats.cache_hit_rate = 0.25;
    stats.spec_accept_length = 2.5;
    stats.spec_accept_rate = 0.5;
    stats.spec_verify_count = 10;
    stats.spec_draft_tokens = 30;
    stats.spec_accepted_tokens = 15;
    stats.weight_bytes = 1000;
    stats.kv_bytes = 2000;
    return stats;
  }
  std::vector<std::vector<uint64_t>> expert_load() const override {
    const std::lock_guard lock(mutex_);
    return expert_load_;
  }
  const model::ModelConfig& model_config() const override { return model_; }
  const engine::EngineConfig& config() const override { return config_; }

 private:
  struct Live {
    Request request;
    engine::OutputSink sink;
    int step = 0;
    engine::FinishKind cancel = engine::FinishKind::kNone;
    std::string message = {};
  };

  Status check(const Request& request) const {
    const auto total =
        static_cast<int64_t>(request.prompt.size()) + request.sampling.max_new_tokens;
    if (request.prompt.empty()) return invalid_argument("empty prompt", "prompt");
    if (total > config_.scheduler.context_length + 1) {
      return Error{ErrorCode::kOutOfRange, "does not fit: " + std::to_string(total)};
    }
    return {};
  }

  engine::OutputToken make_token(const Request& request, int32_t id) const {
    engine::OutputToken token;
    token.token = id;
    if (!request.sampling.logprobs) return token;
    token.logprob = -0.5F;
    for (int k = 0; k < request.sampling.top_logprobs; ++k) {
      token.top.push_back({(id + k) % 300, -0.5F - static_cast<float>(k)});
    }
    return token;
  }

  // One step of one request; true when it has ended.
  bool advance(Live& live, engine::OutputEvent* event) {
    const Request& request = live.request;
    const auto& sampling = request.sampling;
    event->prompt_tokens = static_cast<int32_t>(request.prompt.size());
    event->cached_tokens = cached_;
    if (live.cancel != engine::FinishKind::kNone) {
      event->finished = true;
      event->finish = live.cancel;
      event->message = live.message;
      return true;
    }
    if (live.step == 0 && sampling.logprob_start >= 0) {
      for (size_t i = static_cast<size_t>(sampling.logprob_start); i < request.prompt.size(); ++i) {
        event->prompt_logprobs.push_back(make_token(request, request.prompt[i]));
      }
      if (sampling.logprob_start == 0) {
        event->prompt_logprobs[0].logprob = std::numeric_limits<float>::quiet_NaN();
      }
    }
    for (int i = 0; i < tokens_per_event_ && !event->finished; ++i) {
      if (live.step >= sampling.max_new_tokens) {
        event->finished = true;
        event->finish = engine::FinishKind::kLength;
        return true;
      }
      if (fail_after_ >= 0 && live.step >= fail_after_ && !request.probe) {
        event->finished = true;
        event->finish = engine::FinishKind::kAbort;
        event->abort_code = fail_code_;
        event->message = fail_message_;
        return true;
      }
      const int32_t id = script_ ? script_(request, live.step) : 'a' + live.step % 26;
      event->tokens.push_back(make_token(request, id));
      ++live.step;
      const bool stops = id == 257 || std::count(sampling.stop_token_ids.begin(),
                                                 sampling.stop_token_ids.end(), id) > 0;
      if (stops && !sampling.ignore_eos && live.step > sampling.min_new_tokens) {
        event->finished = true;
        event->finish = engine::FinishKind::kStop;
        event->matched_token = id;
      } else if (live.step >= sampling.max_new_tokens) {
        event->finished = true;
        event->finish = engine::FinishKind::kLength;
      }
    }
    return event->finished;
  }

  void run() {
    std::unique_lock lock(mutex_);
    for (;;) {
      wake_.wait(lock, [this] {
        return quit_ || (!live_.empty() && allowed_ != 0) ||
               std::any_of(live_.begin(), live_.end(), [](const auto& entry) {
                 return entry.second.cancel != engine::FinishKind::kNone;
               });
      });
      if (quit_) {
        while (!live_.empty()) {
          auto node = live_.extract(live_.begin());
          engine::OutputEvent event;
          event.finished = true;
          event.finish = engine::FinishKind::kAbort;
          lock.unlock();
          node.mapped().sink(std::move(event));
          lock.lock();
        }
        return;
      }
      std::vector<std::pair<engine::OutputSink, engine::OutputEvent>> out;
      for (auto it = live_.begin(); it != live_.end();) {
        if (allowed_ == 0 && it->second.cancel == engine::FinishKind::kNone) {
          ++it;
          continue;
        }
        engine::OutputEvent event;
        const bool ended = advance(it->second, &event);
        out.emplace_back(it->second.sink, std::move(event));
        it = ended ? live_.erase(it) : std::next(it);
      }
      if (allowed_ != 0) ++steps_;
      if (allowed_ > 0) --allowed_;
      lock.unlock();
      for (auto& [sink, event] : out) sink(std::move(event));
      lock.lock();
    }
  }

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::map<engine::RequestId, Live> live_;
  std::vector<Request> submitted_;
  std::vector<std::vector<uint64_t>> expert_load_;
  Script script_;
  engine::RequestId last_id_ = 0;
  uint64_t steps_ = 0;
  int allowed_ = -1, fail_after_ = -1, max_live_ = -1, tokens_per_event_ = 1, cached_ = 0,
      step_prefill_ = 0;
  int cancelled_ = 0, flushes_ = 0;
  ErrorCode fail_code_ = ErrorCode::kInternal;
  std::string fail_message_;
  bool draining_ = false, quit_ = false;
  model::ModelConfig model_;
  engine::EngineConfig config_;
  std::thread thread_;
};

}  // namespace capstan::server::testing
