// What one step and one request look like: plan items, cached_tokens, limits, refusals.
#include <gtest/gtest.h>

#include <numeric>

#include "scheduler/scheduler.h"

namespace capstan::scheduler {
namespace {

std::vector<int32_t> iota(int n, int from = 0) {
  std::vector<int32_t> v(static_cast<size_t>(n));
  std::iota(v.begin(), v.end(), from);
  return v;
}

std::unique_ptr<Scheduler> make(SchedulerConfig config) {
  auto scheduler = Scheduler::create(config);
  EXPECT_TRUE(scheduler.ok()) << (scheduler.ok() ? "" : scheduler.error().message);
  return std::move(*scheduler);
}

/// Runs until idle; every sampled token is 7. Returns cached_tokens of the last admission.
int drain(Scheduler& scheduler, std::vector<Finished>* ended = nullptr) {
  int cached = -1;
  for (int step = 0; !scheduler.idle(); ++step) {
    if (step > 100000) {
      ADD_FAILURE() << "never idle";
      break;
    }
    const StepPlan plan = scheduler.plan(0);
    for (const PlanItem& item : plan.items) {
      if (item.first_chunk) cached = item.cached_tokens;
    }
    std::vector<SampledToken> sampled(plan.items.size(), SampledToken{7, FinishKind::kNone});
    auto finished = scheduler.commit(plan, sampled, 0);
    if (ended != nullptr) {
      ended->insert(ended->end(), plan.finished.begin(), plan.finished.end());
      ended->insert(ended->end(), finished.begin(), finished.end());
    }
    const Status status = scheduler.check_invariants();
    EXPECT_TRUE(status.ok()) << status.error().message;
  }
  return cached;
}

RequestSpec request(RequestId id, std::vector<int32_t> prompt, int max_new = 4) {
  RequestSpec spec;
  spec.id = id;
  spec.prompt = std::move(prompt);
  spec.max_new_tokens = max_new;
  return spec;
}

TEST(Scheduler, CachedTokensSeriesOfTheReferenceServer) {
  SchedulerConfig config;
  config.page_size = 1;
  config.num_pages = 40000;
  config.chunked_prefill_size = 2048;
  auto scheduler = make(config);
  RequestId id = 0;
  const auto cached = [&](int prompt) {
    EXPECT_TRUE(scheduler->add(request(++id, iota(prompt, 100), 1)).ok());
    return drain(*scheduler);
  };
  ASSERT_TRUE(scheduler->flush_cache());
  EXPECT_EQ(cached(100), 0);
  EXPECT_EQ(cached(10000), 100);
  EXPECT_EQ(cached(10000), 9999);
  EXPECT_EQ(cached(1000), 999);
  EXPECT_EQ(cached(11000), 10000);
  ASSERT_TRUE(scheduler->flush_cache());
  EXPECT_EQ(cached(100), 0);
}

TEST(Scheduler, DisabledCacheNeverHits) {
  SchedulerConfig config;
  config.num_pages = 100;
  config.disable_radix_cache = true;
  auto scheduler = make(config);
  for (RequestId id = 1; id <= 3; ++id) {
    ASSERT_TRUE(scheduler->add(request(id, iota(100))).ok());
    EXPECT_EQ(drain(*scheduler), 0);
    EXPECT_EQ(scheduler->stats().free_tokens, 1600);
  }
}

TEST(Scheduler, ChunksThenDecodes) {
  SchedulerConfig config;
  config.num_pages = 100;
  config.chunked_prefill_size = 32;
  auto scheduler = make(config);
  ASSERT_TRUE(scheduler->add(request(1, iota(70), 3)).ok());
  struct Expected {
    int start, count;
    bool samples, decode, first;
  };
  for (const Expected& e : {Expected{0, 32, false, false, true},
                            {32, 32, false, false, false},
                            {64, 6, true, false, false},
                            {70, 1, true, true, false},
                            {71, 1, true, true, false}}) {
    const StepPlan plan = scheduler->plan(0);
    ASSERT_EQ(plan.items.size(), 1u);
    const PlanItem& item = plan.items[0];
    EXPECT_EQ(item.start, e.start);
    EXPECT_EQ(item.count, e.count);
    EXPECT_EQ(item.tokens.size(), static_cast<size_t>(e.count));
    EXPECT_EQ(item.tokens[0], e.start < 70 ? e.start : 5);
    EXPECT_EQ(item.pages.size(), static_cast<size_t>((e.start + e.count + 15) / 16));
    EXPECT_EQ(item.samples, e.samples);
    EXPECT_EQ(item.is_decode, e.decode);
    EXPECT_EQ(item.first_chunk, e.first);
    const SampledToken token{5, FinishKind::kNone};
    const auto finished = scheduler->commit(plan, std::span(&token, 1), 0);
    if (e.start == 71) {
      ASSERT_EQ(finished.size(), 1u);
      EXPECT_EQ(finished[0].kind, FinishKind::kLength);
    } else {
      EXPECT_TRUE(finished.empty());
    }
  }
  EXPECT_TRUE(scheduler->idle());
  EXPECT_EQ(scheduler->stats().used_tokens, 0);
  EXPECT_EQ(scheduler->stats().evictable_tokens, 64);
}

TEST(Scheduler, PrefillOnlyEndsWithoutSampling) {
  SchedulerConfig config;
  config.num_pages = 100;
  auto scheduler = make(config);
  ASSERT_TRUE(scheduler->add(request(1, iota(40), 0)).ok());
  const StepPlan plan = scheduler->plan(0);
  ASSERT_EQ(plan.items.size(), 1u);
  EXPECT_FALSE(plan.items[0].samples);
  const auto finished = scheduler->commit(plan, {}, 0);
  ASSERT_EQ(finished.size(), 1u);
  EXPECT_EQ(finished[0].kind, FinishKind::kLength);
  EXPECT_EQ(scheduler->stats().evictable_tokens, 32);
}

TEST(Scheduler, RefusesWhatCanNeverFitWithBothNumbers) {
  SchedulerConfig config;
  config.num_pages = 10;
  auto scheduler = make(config);
  EXPECT_EQ(scheduler->max_request_tokens(), 160);
  const Status status = scheduler->add(request(1, iota(150), 11));
  ASSERT_FALSE(status.ok());
  EXPECT_EQ(status.error().code, ErrorCode::kOutOfRange);
  EXPECT_NE(status.error().message.find("161"), std::string::npos) << status.error().message;
  EXPECT_NE(status.error().message.find("160"), std::string::npos) << status.error().message;
  EXPECT_TRUE(scheduler->idle());
  EXPECT_TRUE(scheduler->add(request(1, iota(150), 10)).ok());
  drain(*scheduler);

  config.context_length = 100;
  scheduler = make(config);
  const Status too_long = scheduler->add(request(1, iota(100), 1));
  ASSERT_FALSE(too_long.ok());
  EXPECT_EQ(too_long.error().code, ErrorCode::kOutOfRange);
  ASSERT_TRUE(scheduler->add(request(2, iota(97), 1000)).ok()) << "output is cut to the context";
  std::vector<Finished> ended;
  drain(*scheduler, &ended);
  ASSERT_EQ(ended.size(), 1u);
  EXPECT_EQ(ended[0].kind, FinishKind::kLength);
  EXPECT_EQ(scheduler->add(request(3, {}, 1)).error().code, ErrorCode::kInvalidArgument);
}

TEST(Scheduler, StopEndsAndLengthComesFirst) {
  SchedulerConfig config;
  config.num_pages = 10;
  auto scheduler = make(config);
  ASSERT_TRUE(scheduler->add(request(1, iota(5), 9)).ok());
  ASSERT_TRUE(scheduler->add(request(2, iota(5, 50), 1)).ok());
  const StepPlan plan = scheduler->plan(0);
  ASSERT_EQ(plan.items.size(), 2u);
  const std::vector<SampledToken> sampled(2, SampledToken{7, FinishKind::kStop});
  const auto finished = scheduler->commit(plan, sampled, 0);
  ASSERT_EQ(finished.size(), 2u);
  EXPECT_EQ(finished[0].kind, FinishKind::kStop);
  EXPECT_EQ(finished[1].kind, FinishKind::kLength);
}

TEST(Scheduler, CancelInEveryStateFreesEverything) {
  SchedulerConfig config;
  config.num_pages = 20;
  config.chunked_prefill_size = 16;
  config.max_running_requests = 1;
  auto scheduler = make(config);
  const auto step = [&](bool cancel_in_flight) {
    const StepPlan plan = scheduler->plan(0);
    if (cancel_in_flight) scheduler->cancel(1, FinishKind::kStop);
    const std::vector<SampledToken> sampled(plan.items.size(), SampledToken{7, FinishKind::kNone});
    return scheduler->commit(plan, sampled, 0);
  };
  for (int steps = 0; steps < 8; ++steps) {
    for (const bool in_flight : {false, true}) {
      ASSERT_TRUE(scheduler->add(request(1, iota(40, 100 * steps), 20)).ok());
      ASSERT_TRUE(scheduler->add(request(2, iota(40, 7), 20)).ok());
      for (int i = 0; i < steps; ++i) ASSERT_TRUE(step(false).empty());
      if (in_flight) {
        const auto finished = step(true);
        ASSERT_EQ(finished.size(), 1u);
        EXPECT_EQ(finished[0].kind, FinishKind::kStop);
      } else {
        scheduler->cancel(1, FinishKind::kAbort);
        EXPECT_EQ(scheduler->stats().used_tokens, 0);
        const StepPlan plan = scheduler->plan(0);
        ASSERT_EQ(plan.finished.size(), 1u);
        EXPECT_EQ(plan.finished[0].id, 1u);
        EXPECT_EQ(plan.finished[0].kind, FinishKind::kAbort);
        EXPECT_TRUE(scheduler->abandon(plan).empty());
      }
      EXPECT_TRUE(scheduler->check_invariants().ok())
          << scheduler->check_invariants().error().message;
      scheduler->cancel(2, FinishKind::kAbort);
      scheduler->cancel(99, FinishKind::kAbort);
      EXPECT_EQ(scheduler->stats().used_tokens, 0);
      EXPECT_EQ(scheduler->plan(0).finished.size(), 1u);
      EXPECT_TRUE(scheduler->idle());
    }
  }
}

TEST(Scheduler, AbandonedStepIsPlannedAgain) {
  SchedulerConfig config;
  config.num_pages = 20;
  auto scheduler = make(config);
  ASSERT_TRUE(scheduler->add(request(1, iota(40), 2)).ok());
  for (int i = 0; i < 3; ++i) {
    const StepPlan plan = scheduler->plan(0);
    ASSERT_EQ(plan.items.size(), 1u);
    EXPECT_EQ(plan.items[0].start, 0);
    EXPECT_EQ(plan.items[0].count, 40);
    EXPECT_TRUE(plan.items[0].first_chunk);
    EXPECT_TRUE(scheduler->plan(0).empty()) << "one plan at a time";
    EXPECT_TRUE(scheduler->abandon(plan).empty());
    EXPECT_EQ(scheduler->stats().evictable_tokens, 0) << "nothing of a failed step is cached";
  }
  const StepPlan plan = scheduler->plan(0);
  scheduler->cancel(1, FinishKind::kAbort);
  EXPECT_EQ(scheduler->abandon(plan).size(), 1u);
  EXPECT_EQ(scheduler->stats().free_tokens, 320);
}

TEST(Scheduler, AStepThatBrokeForOneRequestLeavesNothingOfItInTheCache) {
  SchedulerConfig config;
  config.num_pages = 20;
  config.chunked_prefill_size = 32;
  auto scheduler = make(config);
  ASSERT_TRUE(scheduler->add(request(1, iota(64), 2)).ok());
  const StepPlan first = scheduler->plan(0);
  EXPECT_TRUE(scheduler->commit(first, std::vector<SampledToken>(1), 0).empty());
  const StepPlan second = scheduler->plan(0);
  const SampledToken broken{-1, FinishKind::kAbort};
  const auto finished = scheduler->commit(second, std::span(&broken, 1), 0);
  ASSERT_EQ(finished.size(), 1u);
  EXPECT_EQ(finished[0].kind, FinishKind::kAbort);
  EXPECT_FALSE(finished[0].message.empty());
  EXPECT_EQ(scheduler->stats().evictable_tokens, 32) << "the first chunk, not the broken one";
  EXPECT_EQ(scheduler->stats().free_tokens, 320 - 32);
}

TEST(Scheduler, NamespacesAndProbesShareNothing) {
  SchedulerConfig config;
  config.num_pages = 100;
  auto scheduler = make(config);
  RequestId id = 0;
  const auto cached = [&](uint64_t name_space, bool no_cache) {
    RequestSpec spec = request(++id, iota(64), 1);
    spec.cache_namespace = name_space;
    spec.no_cache = no_cache;
    EXPECT_TRUE(scheduler->add(std::move(spec)).ok());
    return drain(*scheduler);
  };
  EXPECT_EQ(cached(0, true), 0);
  EXPECT_EQ(scheduler->stats().evictable_tokens, 0);
  EXPECT_EQ(scheduler->stats().prompt_tokens, 0u);
  EXPECT_EQ(cached(0, false), 0);
  EXPECT_EQ(cached(0, false), 48);
  EXPECT_EQ(cached(1, false), 0);
  EXPECT_EQ(cached(1, false), 48);
  EXPECT_EQ(cached(0, true), 0);
}

TEST(Scheduler, LogprobStartLimitsTheCache) {
  SchedulerConfig config;
  config.num_pages = 100;
  config.page_size = 1;
  auto scheduler = make(config);
  RequestId id = 0;
  const auto cached = [&](int logprob_start) {
    RequestSpec spec = request(++id, iota(64), 1);
    spec.logprob_start = logprob_start;
    EXPECT_TRUE(scheduler->add(std::move(spec)).ok());
    return drain(*scheduler);
  };
  EXPECT_EQ(cached(-1), 0);
  EXPECT_EQ(cached(-1), 63);
  EXPECT_EQ(cached(0), 0);
  EXPECT_EQ(cached(10), 9);
  EXPECT_EQ(cached(64), 63);
}

TEST(Scheduler, QueueLimit) {
  SchedulerConfig config;
  config.num_pages = 100;
  config.max_queued_requests = 2;
  auto scheduler = make(config);
  ASSERT_TRUE(scheduler->add(request(1, iota(5))).ok());
  ASSERT_TRUE(scheduler->add(request(2, iota(5))).ok());
  const Status full = scheduler->add(request(3, iota(5)));
  ASSERT_FALSE(full.ok());
  EXPECT_EQ(full.error().code, ErrorCode::kResourceExhausted);
  EXPECT_EQ(full.error().message.find("The request queue is full."), 0u);
  RequestSpec probe = request(4, iota(1), 1);
  probe.bypass_queue_limit = true;
  EXPECT_TRUE(scheduler->add(probe).ok());
  drain(*scheduler);
  EXPECT_TRUE(scheduler->add(request(3, iota(5))).ok());
}

TEST(Scheduler, FlushIsRefusedWhileRequestsWait) {
  SchedulerConfig config;
  config.num_pages = 100;
  auto scheduler = make(config);
  ASSERT_TRUE(scheduler->add(request(1, iota(50))).ok());
  EXPECT_FALSE(scheduler->flush_cache());
  drain(*scheduler);
  EXPECT_EQ(scheduler->stats().evictable_tokens, 48);
  EXPECT_TRUE(scheduler->flush_cache());
  EXPECT_EQ(scheduler->stats().free_tokens, 1600);
}

TEST(Scheduler, ConfigErrorsNameFlagAndValue) {
  SchedulerConfig config;
  config.num_pages = 10;
  config.chunked_prefill_size = 17;
  auto bad = Scheduler::create(config);
  ASSERT_FALSE(bad.ok());
  EXPECT_EQ(bad.error().param, "chunked-prefill-size");
  EXPECT_NE(bad.error().message.find("17"), std::string::npos);
  config.chunked_prefill_size = 32;
  config.enable_priority = true;
  config.policy = Policy::kLpm;
  bad = Scheduler::create(config);
  ASSERT_FALSE(bad.ok());
  EXPECT_EQ(bad.error().param, "schedule-policy");
  config.policy = Policy::kLof;
  config.conservativeness = -0.5;
  EXPECT_EQ(Scheduler::create(config).error().param, "schedule-conservativeness");
  EXPECT_EQ(*parse_policy("dfs-weight"), Policy::kDfsWeight);
  EXPECT_NE(parse_policy("best").error().message.find("'best'"), std::string::npos);
  EXPECT_EQ(*cache::parse_eviction_policy("lfu"), cache::EvictionPolicy::kLfu);
  EXPECT_FALSE(cache::parse_eviction_policy("mru").ok());
}

}  // namespace
}  // namespace capstan::scheduler
