#include "engine/dp_engine.h"

#include <algorithm>
#include <atomic>
#include <numeric>

#include "engine/step_joiner.h"

namespace capstan::engine {
namespace {

/// What a group has to do, counted from submit() to the last event.
struct Load {
  std::atomic<int64_t> requests{0}, tokens{0};
};

class DpEngine final : public Engine {
 public:
  DpEngine(const EngineConfig& config, LoadBalance balance, size_t groups)
      : config_(config), balance_(balance), loads_(groups) {}

  Status start(std::vector<std::unique_ptr<model::Model>> members, const EngineConfig& each) {
    for (auto& member : members) {
      CAPSTAN_ASSIGN(auto engine, Engine::create(std::move(member), each));
      engines_.push_back(std::move(engine));
    }
    return {};
  }

  Result<RequestId> submit(EngineRequest request, OutputSink sink) override;
  void cancel(RequestId id, FinishKind kind, std::string message) override {
    engines_[id % engines_.size()]->cancel(id / engines_.size(), kind, std::move(message));
  }
  void cancel_all(std::string message) override {
    for (const auto& e : engines_) e->cancel_all(message);
  }
  void fail(const Error& why) override {
    for (const auto& e : engines_) e->fail(why);
  }
  void set_paused(bool paused) override {
    for (const auto& e : engines_) e->set_paused(paused);
  }
  bool flush_cache() override {
    bool flushed = idle();
    if (flushed) {
      for (const auto& e : engines_) flushed = e->flush_cache() && flushed;
    }
    return flushed;
  }
  void begin_drain() override {
    for (const auto& e : engines_) e->begin_drain();
  }
  bool idle() const override {
    return std::ranges::all_of(engines_, [](const auto& e) { return e->idle(); });
  }
  EngineStats stats() const override;
  std::vector<std::vector<uint64_t>> expert_load() const override {
    return engines_.front()->expert_load();
  }
  const model::ModelConfig& model_config() const override {
    return engines_.front()->model_config();
  }
  const EngineConfig& config() const override { return config_; }

 private:
  std::vector<size_t> order(const EngineRequest& request);

  const EngineConfig config_;
  const LoadBalance balance_;
  std::vector<Load> loads_;  // outlives the engines, whose sinks count in it
  std::atomic<uint64_t> turn_{0};
  std::vector<std::unique_ptr<Engine>> engines_;
};

/// Groups in the order in which they are asked.
std::vector<size_t> DpEngine::order(const EngineRequest& request) {
  const size_t n = engines_.size();
  const bool sibling = request.sibling_group != 0;
  const uint64_t first = sibling ? request.sibling_group : turn_.fetch_add(1);
  std::vector<size_t> groups(n);
  for (size_t i = 0; i < n; ++i) groups[i] = static_cast<size_t>((first + i) % n);
  if (sibling || balance_ == LoadBalance::kRoundRobin) return groups;
  std::vector<int64_t> load(n);
  for (size_t g = 0; g < n; ++g) {
    load[g] = balance_ == LoadBalance::kTokens ? loads_[g].tokens : loads_[g].requests;
  }
  std::ranges::stable_sort(groups, {}, [&](size_t g) { return load[g]; });
  return groups;
}

Result<RequestId> DpEngine::submit(EngineRequest request, OutputSink sink) {
  const int64_t tokens =
      static_cast<int64_t>(request.prompt.size()) +
      std::min(request.sampling.max_new_tokens, config_.scheduler.clip_max_new_tokens);
  Result<RequestId> id = resource_exhausted("no group took the request");
  for (const size_t g : order(request)) {
    Load& load = loads_[g];
    ++load.requests;
    load.tokens += tokens;
    id = engines_[g]->submit(request, [&load, tokens, sink](OutputEvent&& event) {
      if (event.finished) {
        --load.requests;
        load.tokens -= tokens;
      }
      sink(std::move(event));
    });
    if (id.ok()) return *id * engines_.size() + g;
    --load.requests;
    load.tokens -= tokens;
    if (id.error().code != ErrorCode::kResourceExhausted) break;
  }
  return id;
}

void add(scheduler::SchedulerStats& all, const scheduler::SchedulerStats& s) {
  all.running += s.running;
  all.waiting += s.waiting;
  all.used_tokens += s.used_tokens;
  all.evictable_tokens += s.evictable_tokens;
  all.free_tokens += s.free_tokens;
  all.total_tokens += s.total_tokens;
  all.retractions += s.retractions;
  all.evicted_tokens += s.evicted_tokens;
  all.aborted += s.aborted;
  all.finished += s.finished;
  all.prompt_tokens += s.prompt_tokens;
  all.cached_prompt_tokens += s.cached_prompt_tokens;
  all.new_token_ratio = std::max(all.new_token_ratio, s.new_token_ratio);
  all.mixed_prefill_tokens += s.mixed_prefill_tokens;
}

EngineStats DpEngine::stats() const {
  EngineStats all;
  // Shares are weighted with what they are shares of, over all time.
  double hits = 0, accepted_length = 0, accepted_rate = 0, prompts = 0, verified = 0;
  for (const auto& e : engines_) {
    const EngineStats s = e->stats();
    add(all.scheduler, s.scheduler);
    all.gen_throughput += s.gen_throughput;
    all.steps += s.steps;
    all.prefill_compute_tokens += s.prefill_compute_tokens;
    all.prefill_cached_tokens += s.prefill_cached_tokens;
    all.decode_tokens += s.decode_tokens;
    all.last_step_seconds = std::max(all.last_step_seconds, s.last_step_seconds);
    all.seconds_since_progress = std::max(all.seconds_since_progress, s.seconds_since_progress);
    all.step_prefill_tokens += s.step_prefill_tokens;
    all.kv_bytes += s.kv_bytes;
    all.weight_bytes = s.weight_bytes;  // one model
    all.finished_requests += s.finished_requests;
    all.aborted_requests += s.aborted_requests;
    all.spec_followed += s.spec_followed;
    all.spec_verify_count += s.spec_verify_count;
    all.spec_draft_tokens += s.spec_draft_tokens;
    all.spec_accepted_tokens += s.spec_accepted_tokens;
    all.spec_draft_seconds += s.spec_draft_seconds;
    const auto computed = static_cast<double>(s.prefill_compute_tokens + s.prefill_cached_tokens);
    const auto steps = static_cast<double>(s.spec_verify_count);
    prompts += computed;
    verified += steps;
    hits += s.cache_hit_rate * computed;
    accepted_length += s.spec_accept_length * steps;
    accepted_rate += s.spec_accept_rate * steps;
  }
  if (prompts > 0) all.cache_hit_rate = hits / prompts;
  if (verified > 0) {
    all.spec_accept_length = accepted_length / verified;
    all.spec_accept_rate = accepted_rate / verified;
  }
  return all;
}

/// One group's share: at least one request, and whole pages.
EngineConfig share_of(const EngineConfig& config, int groups) {
  EngineConfig each = config;
  scheduler::SchedulerConfig& s = each.scheduler;
  const auto share = [groups](int all) { return all > 0 ? std::max(1, all / groups) : all; };
  s.max_running_requests = share(s.max_running_requests);
  s.max_queued_requests = share(s.max_queued_requests);
  // The groups' prefill chunks are computed together.
  const auto whole_pages = [&](int tokens) {
    return tokens > 0 ? std::max(s.page_size, tokens / groups / s.page_size * s.page_size) : tokens;
  };
  s.chunked_prefill_size = whole_pages(s.chunked_prefill_size);
  s.max_prefill_tokens = whole_pages(s.max_prefill_tokens);
  each.pool = nullptr;  // engines sample at the same time: each on its own thread
  return each;
}

}  // namespace

Result<std::unique_ptr<Engine>> create_dp_engine(std::unique_ptr<model::Model> model,
                                                 std::unique_ptr<model::KvStore> kv, int groups,
                                                 LoadBalance balance, const EngineConfig& config) {
  auto joiner = std::make_shared<StepJoiner>(std::move(model), std::move(kv), groups, config.pool);
  auto engine = std::make_unique<DpEngine>(config, balance, static_cast<size_t>(groups));
  CAPSTAN_RETURN_IF_ERROR(
      engine->start(StepJoiner::members(std::move(joiner)), share_of(config, groups)));
  return std::unique_ptr<Engine>(std::move(engine));
}

}  // namespace capstan::engine
