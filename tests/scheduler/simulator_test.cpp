// Whole loads under a cost model: stalls, hit rates, order of policies, arithmetic of the results.
#include "scheduler/simulator.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "scheduler/traces.h"

namespace capstan::scheduler {
namespace {

// 16 decodes: 16 ms; a 2048-token prefill: 215 ms. Roughly an 8B model on one accelerator.
constexpr CostModel kAccelerator{.step = 0.010,
                                 .prefill_token = 1e-4,
                                 .decode_token = 4e-4,
                                 .context_token = 2e-8,
                                 .attention_pair = 2e-9};
// 16 decodes: 32 ms; a 2048-token prefill: 2.1 s. Roughly a 135M model on two cores.
constexpr CostModel kLaptop{.step = 0.008,
                            .prefill_token = 1e-3,
                            .decode_token = 1.5e-3,
                            .context_token = 1e-7,
                            .attention_pair = 1e-8};

// Measured: SmolLM2-135M in Q4_1 on two Zen 3 cores. 4 decodes: 8 ms; attention to 2,000 keys costs
// a token as much as all matrices.
constexpr CostModel kSmolLm{.step = 0.0027,
                            .prefill_token = 1.1e-3,
                            .decode_token = 1.25e-3,
                            .context_token = 5.4e-7,
                            .attention_pair = 5.4e-7,
                            .jitter = 0.15};

SchedulerConfig big_pool() {
  SchedulerConfig config;
  config.num_pages = 20000;
  return config;
}

SimulationResult run(const SchedulerConfig& config, const CostModel& cost,
                     const std::vector<Arrival>& trace, SimulationOptions options = {50, false}) {
  auto result = simulate(config, cost, trace, options);
  EXPECT_TRUE(result.ok()) << (result.ok() ? "" : result.error().message);
  return result.ok() ? std::move(*result) : SimulationResult{};
}

Arrival arrival(double at, int prompt, int output, int first_token) {
  Arrival a;
  a.at = at;
  for (int i = 0; i < prompt; ++i) a.spec.prompt.push_back(first_token + i);
  a.spec.max_new_tokens = output;
  a.output_tokens = output;
  a.output_stream = static_cast<uint64_t>(first_token);
  return a;
}

TEST(Simulator, OneRequestTakesWhatTheCostModelSays) {
  const CostModel cost{.step = 1,
                       .prefill_token = 0.5,
                       .decode_token = 0.25,
                       .context_token = 0.125,
                       .attention_pair = 0};
  const auto result = run(big_pool(), cost, {arrival(3, 10, 3, 0)});
  const double prefill = 1 + 0.5 * 10;
  const double first_decode = 1 + 0.25 + 0.125 * 11;
  const double second_decode = 1 + 0.25 + 0.125 * 12;
  ASSERT_EQ(result.requests.size(), 1u);
  EXPECT_DOUBLE_EQ(result.ttft.p50, prefill);
  EXPECT_DOUBLE_EQ(result.itl.max, second_decode);
  EXPECT_DOUBLE_EQ(result.itl.p50, first_decode);
  EXPECT_DOUBLE_EQ(result.e2e.mean, prefill + first_decode + second_decode);
  EXPECT_DOUBLE_EQ(result.makespan, 3 + result.e2e.mean);
  EXPECT_DOUBLE_EQ(result.busy, result.e2e.mean);
  EXPECT_EQ(result.output_tokens, 3);
  EXPECT_EQ(result.steps, 3);
  EXPECT_EQ(result.requests[0].finish, FinishKind::kLength);
}

TEST(Simulator, SpeculationTakesAsManyStepsAsAcceptanceSays) {
  constexpr CostModel kSteps{.step = 1};
  std::vector<Arrival> trace;
  for (int i = 0; i < 4; ++i) trace.push_back(arrival(0, 10, 3000, 100 * i));
  const auto plain = run(big_pool(), kSteps, trace);
  SimulationOptions options{.check_every = 50, .draft_tokens = 3, .acceptance = 0.8};
  const auto drafted = run(big_pool(), kSteps, trace, options);
  EXPECT_EQ(plain.output_tokens, drafted.output_tokens);
  // (1 - a^(k+1)) / (1 - a) tokens a step
  EXPECT_NEAR(plain.makespan / drafted.makespan, 2.952, 0.1);
  EXPECT_NEAR(
      static_cast<double>(drafted.accepted_tokens) / static_cast<double>(drafted.draft_tokens),
      1.952 / 3, 0.03);
  options.acceptance = 1;
  EXPECT_NEAR(plain.makespan / run(big_pool(), kSteps, trace, options).makespan, 4, 0.01);
  options.acceptance = 0;
  EXPECT_EQ(plain.makespan, run(big_pool(), kSteps, trace, options).makespan);
}

TEST(Simulator, RefusesNonsense) {
  EXPECT_EQ(simulate(big_pool(), kLaptop, {}, {.acceptance = 1.5}).error().param, "options");

  EXPECT_EQ(simulate(big_pool(), kLaptop, std::vector{arrival(1, 1, 1, 0), arrival(0, 1, 1, 0)})
                .error()
                .param,
            "trace");
  EXPECT_EQ(simulate(big_pool(), CostModel{}, {}).error().param, "cost");
  EXPECT_EQ(simulate(big_pool(), CostModel{.step = 1, .jitter = 1}, {}).error().param, "cost");
  SchedulerConfig config;
  config.num_pages = 0;
  EXPECT_EQ(simulate(config, kLaptop, {}).error().param, "max-total-tokens");
}

TEST(Simulator, PercentilesAreNearestRank) {
  std::vector<double> samples(100);
  for (size_t i = 0; i < 100; ++i) samples[i] = static_cast<double>(100 - i);
  const auto p = Percentiles::of(samples);
  EXPECT_DOUBLE_EQ(p.p50, 50);
  EXPECT_DOUBLE_EQ(p.p90, 90);
  EXPECT_DOUBLE_EQ(p.p99, 99);
  EXPECT_DOUBLE_EQ(p.max, 100);
  EXPECT_DOUBLE_EQ(p.mean, 50.5);
  EXPECT_DOUBLE_EQ(Percentiles::of({}).max, 0);
}

TEST(Simulator, SameTraceSameResult) {
  const auto trace = conversation_trace({.conversations = 20, .turns = 3, .per_second = 4});
  SchedulerConfig config = big_pool();
  config.num_pages = 120;
  const auto a = run(config, kLaptop, trace);
  const auto b = run(config, kLaptop, trace);
  EXPECT_EQ(a.makespan, b.makespan);
  EXPECT_EQ(a.cached_tokens, b.cached_tokens);
  EXPECT_EQ(a.retractions, b.retractions);
}

/// Streams decode, then a long prompt comes; gaps between their tokens before and while it
/// prefills.
struct Isolation {
  double undisturbed_p50;
  Percentiles during;
  double prefill_seconds;
};
Isolation isolation(const SchedulerConfig& config, const CostModel& cost, int streams, int prompt) {
  std::vector<Arrival> trace;
  for (int i = 0; i < streams; ++i) trace.push_back(arrival(0.01 * i, 64, 4000, 10000 * i));
  trace.push_back(arrival(20, prompt, 2, 10'000'000));
  const auto result = run(config, cost, trace, {500, true});
  const RequestOutcome& intruder = result.requests.back();
  std::vector<double> before;
  std::vector<double> during;
  for (const TokenGap& gap : result.gaps) {
    if (gap.request + 1 == trace.size()) continue;
    if (gap.at > 10 && gap.at < intruder.first_admitted) before.push_back(gap.seconds);
    if (gap.at > intruder.first_admitted && gap.at <= intruder.first_token) {
      during.push_back(gap.seconds);
    }
  }
  EXPECT_GT(before.size(), 100u);
  EXPECT_GT(during.size(), 20u);
  return {Percentiles::of(before).p50, Percentiles::of(during),
          intruder.first_token - intruder.first_admitted};
}

/// Seconds that the tokens of a prompt add to steps.
double prefill_seconds_alone(const CostModel& cost, double prompt) {
  return cost.prefill_token * prompt + cost.attention_pair * prompt * (prompt + 1) / 2;
}

TEST(Isolation, ALongPromptDoesNotStallStreams) {
  for (const CostModel& cost : {kAccelerator, kLaptop, kSmolLm}) {
    for (const int streams : {1, 4, 16}) {
      const Isolation i = isolation(big_pool(), cost, streams, 4096);
      const std::string where =
          std::to_string(streams) + " streams, " + std::to_string(cost.step) + " s a step";
      EXPECT_LE(i.during.p99, 3 * i.undisturbed_p50) << where;
      EXPECT_LE(i.during.p99, 3 * i.during.p50) << where;
      EXPECT_LE(i.during.max, 5 * i.undisturbed_p50) << where;
      // Nor do they stall the prompt: half of the time is its own, and one step in 16 a probe.
      const double alone = prefill_seconds_alone(cost, 4096);
      EXPECT_LE(i.prefill_seconds, 2.6 * alone) << where;
    }
  }
}

TEST(Isolation, NorDoesAVeryLongOne) {
  const Isolation i = isolation(big_pool(), kAccelerator, 16, 32768);
  EXPECT_LE(i.during.p99, 2.5 * i.undisturbed_p50);
  EXPECT_LE(i.during.p99, 2 * i.during.p50);
}

TEST(Isolation, WithoutTheBoundTheyWouldStall) {
  SchedulerConfig config = big_pool();
  config.mixed_prefill_tokens = -1;
  const Isolation i = isolation(config, kLaptop, 16, 4096);
  EXPECT_GT(i.during.p99, 10 * i.undisturbed_p50);
  const Isolation bounded = isolation(big_pool(), kLaptop, 16, 4096);
  EXPECT_LT(bounded.prefill_seconds, 3 * i.prefill_seconds) << "the prompt pays, but not more";
}

TEST(Isolation, FromTheFirstStepsOn) {
  // No warm-up: a stream has just begun when the long prompt comes.
  for (const CostModel& cost : {kAccelerator, kLaptop, kSmolLm}) {
    std::vector<Arrival> trace = {arrival(0, 64, 400, 0), arrival(cost.step, 4096, 2, 10'000'000)};
    const auto result = run(big_pool(), cost, trace, {0, true});
    std::vector<double> gaps;
    for (const TokenGap& gap : result.gaps) {
      if (gap.request == 0) gaps.push_back(gap.seconds);
    }
    const double quiet = cost.step + cost.decode_token + 200 * cost.context_token;
    EXPECT_LE(Percentiles::of(gaps).p99, 4 * quiet);
  }
}

TEST(Admission, ShortPromptsBesideStreamsDoNotComeOneByOne) {
  // 40 streams want to run; each step carries several of the 16-token prompts.
  std::vector<Arrival> trace;
  for (int i = 0; i < 4; ++i) trace.push_back(arrival(0.001 * i, 64, 400, 10000 * i));
  for (int i = 0; i < 40; ++i) trace.push_back(arrival(3, 16, 100, 1000000 + 1000 * i));
  const auto result = run(big_pool(), kSmolLm, trace, {50, true});
  double last = 0;
  for (size_t i = 4; i < trace.size(); ++i) {
    last = std::max(last, result.requests[i].first_token - trace[i].at);
  }
  EXPECT_LT(last, 2.2 * prefill_seconds_alone(kSmolLm, 640));
}

TEST(Admission, WhoeverComesFirstComputesAPrefixForAll) {
  // 32 clients at once, none of whose 384 common tokens are cached yet.
  const auto trace = shared_prefix_trace({.groups = 1,
                                          .per_group = 32,
                                          .system_tokens = 384,
                                          .question_tokens = 128,
                                          .output_tokens = 96,
                                          .per_second = 0});
  const auto result = run(big_pool(), kSmolLm, trace);
  EXPECT_EQ(result.computed_prefill_tokens, 384 + 32 * 128);
  // Prefill alone takes 6 s. Those served first decode meanwhile.
  EXPECT_LT(result.ttft.p50, 6);
  EXPECT_LT(result.ttft.p99, 12);
  EXPECT_LT(result.makespan, 14);
}

TEST(HitRate, SharedPrefixesComeWithin5PercentOfTheBest) {
  for (const Policy policy : {Policy::kFcfs, Policy::kLpm}) {
    for (const double per_second : {0.0, 20.0}) {
      const auto trace = shared_prefix_trace({.per_second = per_second});
      SchedulerConfig config = big_pool();
      config.policy = policy;
      const auto result = run(config, kAccelerator, trace);
      EXPECT_EQ(result.refused, 0);
      EXPECT_GE(result.hit_rate(), 0.95 * best_hit_rate(trace, config.page_size))
          << "policy " << static_cast<int>(policy) << " at " << per_second << "/s";
    }
  }
}

TEST(HitRate, ConversationsFindTheirHistory) {
  const auto trace = conversation_trace({});
  SchedulerConfig config = big_pool();
  const auto result = run(config, kAccelerator, trace);
  EXPECT_GE(result.hit_rate(), 0.95 * best_hit_rate(trace, config.page_size));
  EXPECT_GT(result.hit_rate(), 0.5);
}

TEST(HitRate, BestIsNotBeaten) {
  for (const int page_size : {1, 16}) {
    const auto trace = conversation_trace({.conversations = 8});
    SchedulerConfig config = big_pool();
    config.page_size = page_size;
    config.num_pages = 100'000 / page_size;
    EXPECT_LE(run(config, kAccelerator, trace).hit_rate(), best_hit_rate(trace, page_size));
  }
}

TEST(HitRate, LpmBeatsFcfsWhenThePoolIsSmall) {
  // 64 system prompts of 512 tokens do not fit 16,000 tokens together.
  const auto trace = shared_prefix_trace({.groups = 64, .per_group = 8, .per_second = 0});
  SchedulerConfig config;
  config.num_pages = 1000;
  config.max_running_requests = 8;
  const auto fcfs = run(config, kAccelerator, trace);
  config.policy = Policy::kLpm;
  const auto lpm = run(config, kAccelerator, trace);
  config.policy = Policy::kDfsWeight;
  const auto dfs = run(config, kAccelerator, trace);
  EXPECT_GT(lpm.hit_rate(), fcfs.hit_rate() + 0.1);
  EXPECT_GT(dfs.hit_rate(), fcfs.hit_rate() + 0.1);
  EXPECT_LT(lpm.makespan, fcfs.makespan);
  EXPECT_GE(lpm.hit_rate(), 0.85 * best_hit_rate(trace, config.page_size));
}

TEST(Memory, OverloadRetractsAndStillFinishesAll) {
  const auto trace = shared_prefix_trace({.groups = 40,
                                          .per_group = 2,
                                          .system_tokens = 32,
                                          .question_tokens = 32,
                                          .output_tokens = 400,
                                          .per_second = 50});
  SchedulerConfig config;
  config.num_pages = 128;
  config.conservativeness = 0.1;
  const auto result = run(config, kAccelerator, trace, {1, false});
  EXPECT_GT(result.retractions, 0u);
  EXPECT_EQ(result.output_tokens, 80 * 400);
  for (const RequestOutcome& r : result.requests) EXPECT_EQ(r.finish, FinishKind::kLength);
  // What was pushed back mostly finds its pages again.
  config.disable_radix_cache = true;
  const auto without = run(config, kAccelerator, trace);
  EXPECT_EQ(without.output_tokens, 80 * 400);
  EXPECT_GT(without.computed_prefill_tokens, result.computed_prefill_tokens);
}

}  // namespace
}  // namespace capstan::scheduler
