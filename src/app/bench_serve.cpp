// Goodput of concurrent synthetic clients through the engine: scheduler, prefix cache, sampler and
// model, without HTTP and text.
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <random>

#include "app/bench_model.h"
#include "engine/engine.h"

namespace capstan::app {

namespace {

using Clock = std::chrono::steady_clock;

/// What the engine thread notes of one request; read after all have finished.
struct ClientLog {
  Clock::time_point start, first, last;
  std::vector<double> gaps;  // seconds between events
  int tokens = 0;
  int cached = 0;
  std::string error;
};

/// Counts finished requests and wakes the waiting thread.
struct Latch {
  std::mutex mutex;
  std::condition_variable done;
  int pending = 0;
};

std::vector<int32_t> random_tokens(std::mt19937_64& rng, int count, int64_t vocab) {
  std::uniform_int_distribution<int32_t> any(0, static_cast<int32_t>(vocab) - 1);
  std::vector<int32_t> out(static_cast<size_t>(count));
  for (int32_t& t : out) t = any(rng);
  return out;
}

engine::OutputSink make_sink(ClientLog& log, Latch& latch) {
  return [&log, &latch](engine::OutputEvent&& event) {
    const auto now = Clock::now();
    if (!event.tokens.empty()) {
      if (log.tokens == 0) {
        log.first = now;
      } else {
        log.gaps.push_back(std::chrono::duration<double>(now - log.last).count());
      }
      log.last = now;
      log.tokens += static_cast<int>(event.tokens.size());
    }
    if (!event.finished) return;
    log.cached = event.cached_tokens;
    if (event.finish == engine::FinishKind::kAbort) log.error = event.message;
    const std::lock_guard lock(latch.mutex);
    if (--latch.pending == 0) latch.done.notify_one();
  };
}

Status run_requests(engine::Engine& engine, std::vector<engine::EngineRequest> requests,
                    std::vector<ClientLog>& logs) {
  Latch latch;
  latch.pending = static_cast<int>(requests.size());
  logs.resize(requests.size());
  Status failed;
  for (size_t i = 0; i < requests.size(); ++i) {
    logs[i].start = Clock::now();
    auto submitted = engine.submit(std::move(requests[i]), make_sink(logs[i], latch));
    if (submitted.ok()) continue;
    if (failed.ok()) failed = submitted.status();
    const std::lock_guard lock(latch.mutex);
    --latch.pending;
  }
  std::unique_lock lock(latch.mutex);
  latch.done.wait(lock, [&] { return latch.pending == 0; });
  CAPSTAN_RETURN_IF_ERROR(failed);
  for (const ClientLog& log : logs) {
    if (!log.error.empty()) return internal_error("a request was aborted: " + log.error);
  }
  return {};
}

}  // namespace

Result<std::vector<BenchRow>> bench_serve(BenchModel& loaded, const BenchOptions& options) {
  using Kind = BenchOptions::Kind;
  const model::ModelConfig config = loaded.model->config();
  const int prompt = options.prompt_length(Kind::kServe);
  const int output = options.output_length(Kind::kServe);
  const int longest = output * 4 / 3;  // outputs vary by a third either way, so ends are staggered
  const int shared = std::min(options.shared_prefix, prompt - 1);
  if (config.max_position_embeddings > 0 && prompt + longest > config.max_position_embeddings) {
    return invalid_argument(
        format("--prompt-len %d and --output-len %d exceed the model's context "
               "length of %lld",
               prompt, output, static_cast<long long>(config.max_position_embeddings)),
        "prompt-len");
  }
  engine::EngineConfig engine_config;
  engine_config.kv_dtype = loaded.kv_dtype;
  engine_config.random_seed = options.seed;
  engine_config.decode_log_interval = 1 << 30;
  scheduler::SchedulerConfig& s = engine_config.scheduler;
  s.policy = scheduler::Policy::kLpm;
  s.page_size = options.page_size;
  s.max_running_requests = options.clients;
  s.context_length = prompt + longest;
  s.chunked_prefill_size = options.chunk;
  // Room for everybody without sharing: memory pressure is not what this measures.
  s.num_pages = (options.clients + 1) * ((prompt + longest) / options.page_size + 2);
  s.random_seed = options.seed;
  CAPSTAN_ASSIGN(auto engine, engine::Engine::create(std::move(loaded.model), engine_config));

  std::mt19937_64 rng(options.seed);
  const std::vector<int32_t> head = random_tokens(rng, shared, config.vocab_size);
  const auto request = [&](int tail, int new_tokens) {
    engine::EngineRequest r;
    r.prompt = head;
    const std::vector<int32_t> rest = random_tokens(rng, tail, config.vocab_size);
    r.prompt.insert(r.prompt.end(), rest.begin(), rest.end());
    r.sampling.max_new_tokens = new_tokens;
    r.sampling.temperature = 0;
    r.sampling.ignore_eos = true;
    return r;
  };
  // One request alone first: a server that has been up for a minute has seen its system prompt.
  std::vector<engine::EngineRequest> first;
  first.push_back(request(8, 1));
  std::vector<ClientLog> logs;
  CAPSTAN_RETURN_IF_ERROR(run_requests(*engine, std::move(first), logs));
  logs.clear();

  std::vector<engine::EngineRequest> requests;
  std::uniform_int_distribution<int> length(std::max(1, output * 2 / 3), longest);
  for (int i = 0; i < options.clients; ++i) {
    requests.push_back(request(prompt - shared, length(rng)));
  }
  const auto start = Clock::now();
  CAPSTAN_RETURN_IF_ERROR(run_requests(*engine, std::move(requests), logs));
  const double seconds = std::chrono::duration<double>(Clock::now() - start).count();

  std::vector<double> ttft, gaps;
  double tokens = 0, cached = 0;
  for (const ClientLog& log : logs) {
    ttft.push_back(std::chrono::duration<double>(log.first - log.start).count());
    gaps.insert(gaps.end(), log.gaps.begin(), log.gaps.end());
    tokens += log.tokens;
    cached += log.cached;
  }
  const double hit = cached / (static_cast<double>(options.clients) * prompt);
  BenchRow row;
  row.name = format("serve, %d clients, %d in (%d shared)", options.clients, prompt, shared);
  row.values = {{"output_tok_per_s", tokens / seconds},
                {"seconds", seconds},
                {"ttft_p50_ms", 1e3 * percentile(ttft, 50)},
                {"ttft_p99_ms", 1e3 * percentile(ttft, 99)},
                {"itl_p50_ms", 1e3 * percentile(gaps, 50)},
                {"itl_p99_ms", 1e3 * percentile(gaps, 99)},
                {"cached_share", hit}};
  row.text = format(
      "%8.1f tok/s out  TTFT p50 %.0f p99 %.0f ms  ITL p50 %.1f p99 %.1f ms  "
      "%.0f%% of prompt tokens cached",
      tokens / seconds, 1e3 * percentile(ttft, 50), 1e3 * percentile(ttft, 99),
      1e3 * percentile(gaps, 50), 1e3 * percentile(gaps, 99), 100 * hit);
  return std::vector<BenchRow>{std::move(row)};
}

}  // namespace capstan::app
