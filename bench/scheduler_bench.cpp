// Host cost of scheduling: plan() + commit() per step. Goal: 30 us at 256 running decodes, so that
// the whole host step stays below 100 us.
#include <benchmark/benchmark.h>

#include <numeric>

#include "scheduler/scheduler.h"
#include "scheduler/simulator.h"
#include "scheduler/traces.h"

namespace capstan::scheduler {
namespace {

RequestSpec request(RequestId id, int prompt, int output) {
  RequestSpec spec;
  spec.id = id;
  spec.prompt.resize(static_cast<size_t>(prompt));
  std::iota(spec.prompt.begin(), spec.prompt.end(), static_cast<int32_t>(id) * 100000);
  spec.max_new_tokens = output;
  return spec;
}

void step(Scheduler& scheduler, std::vector<SampledToken>& sampled) {
  const StepPlan plan = scheduler.plan(0);
  sampled.resize(plan.items.size(), {1, FinishKind::kNone});
  benchmark::DoNotOptimize(scheduler.commit(plan, sampled, 0));
}

/// Only decodes; every 16th step of each takes a page. `waiting` more stand in the queue.
void BM_DecodeStep(benchmark::State& state) {
  const auto running = static_cast<RequestId>(state.range(0));
  const auto waiting = static_cast<RequestId>(state.range(1));
  SchedulerConfig config;
  config.policy = static_cast<Policy>(state.range(2));
  config.max_running_requests = static_cast<int>(running);
  config.num_pages = 1 << 21;
  std::vector<SampledToken> sampled;
  std::unique_ptr<Scheduler> scheduler;
  int steps_left = 0;
  for (auto _ : state) {
    if (steps_left-- == 0) {
      state.PauseTiming();
      scheduler = std::move(Scheduler::create(config)).value();
      for (RequestId id = 1; id <= running; ++id) (void)scheduler->add(request(id, 128, 4000));
      while (scheduler->stats().running < static_cast<int>(running)) step(*scheduler, sampled);
      for (RequestId id = 1; id <= waiting; ++id) {
        (void)scheduler->add(request(running + id, 128, 4000));
      }
      for (int i = 0; i < 100; ++i) step(*scheduler, sampled);
      steps_left = 3000;
      state.ResumeTiming();
    }
    step(*scheduler, sampled);
  }
  state.SetItemsProcessed(state.iterations() * static_cast<int64_t>(running));
}
BENCHMARK(BM_DecodeStep)
    ->ArgNames({"running", "waiting", "policy"})
    ->Args({1, 0, int(Policy::kFcfs)})
    ->Args({32, 0, int(Policy::kFcfs)})
    ->Args({256, 0, int(Policy::kFcfs)})
    ->Args({256, 10000, int(Policy::kFcfs)})
    ->Args({256, 10000, int(Policy::kLpm)})
    ->Unit(benchmark::kMicrosecond);

/// A whole load with admissions, prefix hits, evictions and ends; time per step.
void BM_ServingStep(benchmark::State& state) {
  SharedPrefixLoad load;
  load.groups = 64;
  load.per_group = 32;
  load.per_second = 200;
  const auto trace = shared_prefix_trace(load);
  SchedulerConfig config;
  config.policy = static_cast<Policy>(state.range(0));
  config.num_pages = 8192;
  int64_t steps = 0;
  for (auto _ : state) {
    const auto result = simulate(config, {.step = 0.01, .prefill_token = 1e-5}, trace);
    steps += result->steps;
  }
  state.counters["per_step"] = benchmark::Counter(
      static_cast<double>(steps), benchmark::Counter::kIsRate | benchmark::Counter::kInvert);
}
BENCHMARK(BM_ServingStep)
    ->ArgName("policy")
    ->Arg(int(Policy::kFcfs))
    ->Arg(int(Policy::kLpm))
    ->Unit(benchmark::kMillisecond);

}  // namespace
}  // namespace capstan::scheduler

BENCHMARK_MAIN();
