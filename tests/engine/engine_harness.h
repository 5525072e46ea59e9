// An engine over the null model, and sinks that collect what it says.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <condition_variable>
#include <deque>
#include <future>
#include <mutex>
#include <random>
#include <thread>

#include "engine/engine.h"
#include "engine/null_model.h"

namespace capstan::engine {

inline std::vector<int32_t> prompt_of(int length, uint32_t seed, int32_t vocab = 64) {
  std::mt19937 rng(seed);
  std::vector<int32_t> prompt(static_cast<size_t>(length));
  for (int32_t& t : prompt) t = static_cast<int32_t>(rng() % static_cast<uint32_t>(vocab));
  return prompt;
}

inline EngineRequest greedy(std::vector<int32_t> prompt, int32_t max_new_tokens) {
  EngineRequest r;
  r.prompt = std::move(prompt);
  r.sampling.temperature = 0;
  r.sampling.max_new_tokens = max_new_tokens;
  return r;
}

inline EngineConfig small_config() {
  EngineConfig config;
  config.scheduler.page_size = 16;
  config.scheduler.num_pages = 256;
  config.scheduler.context_length = 2048;
  config.scheduler.max_running_requests = 16;
  config.kv_dtype = DType::kF16;
  config.watchdog_timeout = 0;
  return config;
}

/// The events of one request. The engine thread writes, the test reads after wait().
class Output {
 public:
  Output& wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return finished_; });
    return *this;
  }
  OutputSink sink() {
    return [this](OutputEvent&& event) {
      std::lock_guard lock(mutex_);
      EXPECT_FALSE(finished_) << "an event after the last one";
      for (const OutputToken& t : event.tokens) tokens_.push_back(t.token);
      finished_ = event.finished;
      events_.push_back(std::move(event));
      changed_.notify_all();
    };
  }
  std::vector<int32_t> tokens() const {
    std::lock_guard lock(mutex_);
    return tokens_;
  }
  const std::vector<OutputEvent>& events() const { return events_; }  // after wait()
  const OutputEvent& last() const { return events_.back(); }
  FinishKind finish() const { return last().finish; }

  RequestId id = 0;
  EngineRequest request;

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool finished_ = false;
  std::vector<int32_t> tokens_;
  std::vector<OutputEvent> events_;
};

/// Holds the engine thread inside a step.
class Gate {
 public:
  void close() { set(false); }
  void open() { set(true); }
  void pass() {
    std::unique_lock lock(mutex_);
    ++visitors_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return open_; });
  }
  void wait_for_visitor() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return visitors_ > 0; });
  }

 private:
  void set(bool open) {
    std::lock_guard lock(mutex_);
    open_ = open;
    changed_.notify_all();
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = true;
  int visitors_ = 0;
};

class Harness {
 public:
  explicit Harness(EngineConfig config = small_config(), NullModelOptions options = {})
      : reference_(options) {
    auto engine = Engine::create(std::make_unique<NullModel>(options), config);
    if (!engine.ok()) ADD_FAILURE() << engine.error().message;
    engine_ = std::move(engine).value();
  }

  Engine& engine() { return *engine_; }
  const NullModel& model() const { return reference_; }

  Output& submit(EngineRequest request) {
    submit_to(outputs_.emplace_back(), std::move(request));
    return outputs_.back();
  }
  void submit_to(Output& output, EngineRequest request) {
    output.request = request;
    const auto id = engine_->submit(std::move(request), output.sink());
    if (!id.ok()) {
      ADD_FAILURE() << id.error().message;
      return;
    }
    output.id = *id;
  }

  std::vector<int32_t> expected_greedy(std::vector<int32_t> context, int count) const {
    std::vector<int32_t> out;
    for (int i = 0; i < count; ++i) {
      const auto logits = reference_.expected_logits(context);
      out.push_back(
          static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
      context.push_back(out.back());
    }
    return out;
  }

  void wait_idle() {
    while (!engine_->idle()) std::this_thread::yield();
  }
  /// Every page is free or cached and unpinned, and nothing runs or waits.
  void expect_clean() {
    wait_idle();
    EXPECT_TRUE(engine_->flush_cache());
    const scheduler::SchedulerStats s = engine_->stats().scheduler;
    EXPECT_EQ(s.running, 0);
    EXPECT_EQ(s.waiting, 0);
    EXPECT_EQ(s.used_tokens, 0);
  }

 private:
  NullModel reference_;
  std::deque<Output> outputs_;  // outlives the engine
  std::unique_ptr<Engine> engine_;
};

}  // namespace capstan::engine
