// What the host does around the model: one step of the engine's work with a model that computes
// nothing, and the sampler on a large vocabulary.
#include <benchmark/benchmark.h>

#include <condition_variable>
#include <mutex>
#include <random>

#include "base/log.h"
#include "engine/engine.h"
#include "engine/null_model.h"
#include "engine/sampler.h"

namespace capstan::engine {
namespace {

/// Time per decode step with range(0) running sequences, everything included that is not the model:
/// plan, batch, sampling of a 32-token vocabulary, commit, sinks, statistics.
void BM_DecodeStep(benchmark::State& state) {
  spdlog::set_level(spdlog::level::warn);
  const auto sequences = static_cast<int>(state.range(0));
  constexpr int kTokens = 2000, kPrompt = 64;
  for (auto _ : state) {
    EngineConfig config;
    config.scheduler.num_pages = sequences * (kPrompt + kTokens + 16) / 16 + 64;
    config.scheduler.context_length = 4096;
    config.scheduler.max_running_requests = sequences;
    NullModelOptions options;
    options.vocab_size = 32;
    std::mutex mutex;
    std::condition_variable done;
    int remaining = sequences;
    double began = 0, ended = 0;
    uint64_t steps = 0;
    const auto clock = [] {
      return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch())
          .count();
    };
    // Only pure decode steps count: from the first of them to the last full one.
    options.before_forward = [&](const model::ForwardBatch& batch) {
      if (static_cast<int>(batch.tokens.size()) == sequences &&
          static_cast<int>(batch.sequences.size()) == sequences) {
        ended = clock();
        if (steps++ == 0) began = ended;
      }
      return Status();
    };
    auto engine = Engine::create(std::make_unique<NullModel>(options), config);
    if (!engine.ok()) {
      state.SkipWithError(engine.error().message.c_str());
      return;
    }
    (*engine)->set_paused(true);
    std::mt19937 rng(1);
    for (int i = 0; i < sequences; ++i) {
      EngineRequest request;
      for (int t = 0; t < kPrompt; ++t) request.prompt.push_back(static_cast<int32_t>(rng() % 32));
      request.sampling.temperature = 0;
      request.sampling.max_new_tokens = kTokens;
      const auto id = (*engine)->submit(std::move(request), [&](OutputEvent&& event) {
        if (!event.finished) return;
        std::lock_guard lock(mutex);
        if (--remaining == 0) done.notify_one();
      });
      if (!id.ok()) state.SkipWithError(id.error().message.c_str());
    }
    (*engine)->set_paused(false);
    {
      std::unique_lock lock(mutex);
      done.wait(lock, [&] { return remaining == 0; });
    }
    state.SetIterationTime((ended - began) / static_cast<double>(std::max<uint64_t>(1, steps - 1)));
  }
}
BENCHMARK(BM_DecodeStep)
    ->RangeMultiplier(4)
    ->Range(1, 256)
    ->UseManualTime()
    ->Iterations(3)
    ->Unit(benchmark::kMicrosecond);

constexpr int64_t kVocab = 151936;  // Qwen's, the largest in common use with DeepSeek's 129,280

/// One row of logits shaped like a language model's: a few likely tokens above a broad bulk.
std::vector<float> peaked_row() {
  std::mt19937 rng(1);
  std::normal_distribution<float> bulk(0, 2);
  std::vector<float> row(kVocab);
  for (float& v : row) v = bulk(rng);
  for (int i = 0; i < 50; ++i) row[rng() % kVocab] = 10 + static_cast<float>(i) * 0.15f;
  return row;
}

void sample_rows(benchmark::State& state, const SamplingParams& params, bool flat = false) {
  const std::vector<float> source = flat ? std::vector<float>(kVocab, 0.5f) : peaked_row();
  std::vector<float> row = source;
  RowSampler sampler({});
  int32_t step = 0;
  for (auto _ : state) {
    SampleOutput out;
    sampler.sample({row.data(), kVocab, &params, nullptr, {}, step++, 1, 0}, out);
    benchmark::DoNotOptimize(out.token.token);
  }
}

void BM_Greedy(benchmark::State& state) {
  SamplingParams p;
  p.temperature = 0;
  sample_rows(state, p);
}
void BM_Temperature(benchmark::State& state) { sample_rows(state, {}); }
void BM_TopP(benchmark::State& state) {
  SamplingParams p;
  p.top_p = 0.95;
  p.temperature = 0.6;
  sample_rows(state, p);
}
void BM_TopKTopPMinP(benchmark::State& state) {
  SamplingParams p;
  p.top_p = 0.9;
  p.top_k = 50;
  p.min_p = 0.05;
  sample_rows(state, p);
}
void BM_TopPFlat(benchmark::State& state) {
  SamplingParams p;
  p.top_p = 0.9;
  sample_rows(state, p, true);
}
void BM_GreedyTopLogprobs(benchmark::State& state) {
  SamplingParams p;
  p.temperature = 0;
  p.logprobs = true;
  p.top_logprobs = 20;
  sample_rows(state, p);
}
BENCHMARK(BM_Greedy)->Unit(benchmark::kMicrosecond);
BENCHMARK(BM_Temperature)->Unit(benchmark::kMicrosecond);
BENCHMARK(BM_TopP)->Unit(benchmark::kMicrosecond);
BENCHMARK(BM_TopKTopPMinP)->Unit(benchmark::kMicrosecond);
BENCHMARK(BM_TopPFlat)->Unit(benchmark::kMicrosecond);
BENCHMARK(BM_GreedyTopLogprobs)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace capstan::engine

BENCHMARK_MAIN();
