// Who goes first, who gives way, who waits for whose prefix.
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

/// A scheduler and short ways to feed it. Every sampled token is 7 unless it is told to stop.
class Bench {
 public:
  explicit Bench(const SchedulerConfig& config) {
    auto made = Scheduler::create(config);
    EXPECT_TRUE(made.ok()) << (made.ok() ? "" : made.error().message);
    scheduler = std::move(*made);
  }

  Status add(RequestId id, std::vector<int32_t> prompt, int max_new = 4, int64_t priority = 0,
             uint64_t siblings = 0, double arrival = 0) {
    RequestSpec spec;
    spec.id = id;
    spec.prompt = std::move(prompt);
    spec.max_new_tokens = max_new;
    spec.priority = priority;
    spec.sibling_group = siblings;
    spec.arrival = arrival;
    return scheduler->add(std::move(spec));
  }

  /// One step; the ids it computed, decodes first.
  std::vector<RequestId> step() {
    last = scheduler->plan(0);
    std::vector<RequestId> ids;
    for (const PlanItem& item : last.items) ids.push_back(item.id);
    const std::vector<SampledToken> sampled(last.items.size(), SampledToken{7, FinishKind::kNone});
    for (const Finished& f : scheduler->commit(last, sampled, 0)) ended.push_back(f);
    ended.insert(ended.end(), last.finished.begin(), last.finished.end());
    const Status status = scheduler->check_invariants();
    EXPECT_TRUE(status.ok()) << status.error().message;
    return ids;
  }
  /// Runs until idle; ids in the order of their admission.
  std::vector<RequestId> order_of_admission(int limit = 10000) {
    std::vector<RequestId> order;
    while (!scheduler->idle() && limit-- > 0) {
      step();
      for (const PlanItem& item : last.items) {
        if (item.first_chunk) order.push_back(item.id);
      }
    }
    EXPECT_TRUE(scheduler->idle());
    return order;
  }
  const PlanItem* item(RequestId id) const {
    for (const PlanItem& i : last.items) {
      if (i.id == id) return &i;
    }
    return nullptr;
  }

  std::unique_ptr<Scheduler> scheduler;
  StepPlan last;
  std::vector<Finished> ended;
};

SchedulerConfig one_at_a_time(Policy policy) {
  SchedulerConfig config;
  config.policy = policy;
  config.num_pages = 200;
  config.max_running_requests = 1;
  return config;
}

using Ids = std::vector<RequestId>;

TEST(Policy, FcfsKeepsTheOrderOfArrival) {
  Bench b(one_at_a_time(Policy::kFcfs));
  for (RequestId id : {5, 3, 9, 1})
    ASSERT_TRUE(b.add(id, iota(20, static_cast<int>(id) * 100)).ok());
  EXPECT_EQ(b.order_of_admission(), (Ids{5, 3, 9, 1}));
}

TEST(Policy, LpmTakesTheLongestCachedPrefixFirst) {
  Bench b(one_at_a_time(Policy::kLpm));
  ASSERT_TRUE(b.add(1, iota(160)).ok());
  b.order_of_admission();
  ASSERT_TRUE(b.add(2, iota(100, 5000)).ok());
  ASSERT_TRUE(b.add(3, iota(40)).ok());
  ASSERT_TRUE(b.add(4, iota(120)).ok());
  ASSERT_TRUE(b.add(5, iota(100, 6000)).ok());
  EXPECT_EQ(b.order_of_admission(), (Ids{4, 3, 2, 5}));
}

TEST(Policy, LofTakesTheLongestOutputFirst) {
  Bench b(one_at_a_time(Policy::kLof));
  const int outputs[] = {3, 9, 1, 9};
  for (RequestId id = 1; id <= 4; ++id) ASSERT_TRUE(b.add(id, iota(5), outputs[id - 1]).ok());
  EXPECT_EQ(b.order_of_admission(), (Ids{2, 4, 1, 3}));
}

TEST(Policy, DfsWeightFinishesTheHeaviestBranchFirst) {
  Bench b(one_at_a_time(Policy::kDfsWeight));
  auto left = iota(64);
  auto right = iota(32);
  const auto tail = iota(32, 900);
  right.insert(right.end(), tail.begin(), tail.end());
  ASSERT_TRUE(b.add(1, left).ok());
  ASSERT_TRUE(b.add(2, right).ok());
  b.order_of_admission();
  const auto with_tail = [](std::vector<int32_t> v, int from) {
    const auto more = iota(20, from);
    v.insert(v.end(), more.begin(), more.end());
    return v;
  };
  ASSERT_TRUE(b.add(3, iota(20, 7000)).ok());             // no match
  ASSERT_TRUE(b.add(4, with_tail(left, 1000)).ok());      // left branch
  ASSERT_TRUE(b.add(5, with_tail(right, 2000)).ok());     // right branch
  ASSERT_TRUE(b.add(6, with_tail(iota(32), 3000)).ok());  // the stem of both
  ASSERT_TRUE(b.add(7, with_tail(right, 4000)).ok());     // right branch
  ASSERT_TRUE(b.add(8, with_tail(right, 6000)).ok());     // right branch
  const Ids order = b.order_of_admission();
  EXPECT_EQ(Ids(order.begin(), order.begin() + 2), (Ids{5, 7})) << "three against one";
  EXPECT_EQ(Ids(order.end() - 2, order.end()), (Ids{6, 3})) << "leaves before stems before cold";
}

TEST(Policy, RandomIsRepeatableAndNotArrival) {
  const auto order = [](uint64_t seed) {
    SchedulerConfig config = one_at_a_time(Policy::kRandom);
    config.random_seed = seed;
    Bench b(config);
    for (RequestId id = 1; id <= 30; ++id) EXPECT_TRUE(b.add(id, iota(5), 1).ok());
    return b.order_of_admission();
  };
  EXPECT_EQ(order(1), order(1));
  EXPECT_NE(order(1), order(2));
  Ids arrival(30);
  std::iota(arrival.begin(), arrival.end(), 1);
  EXPECT_NE(order(1), arrival);
}

TEST(Policy, NobodyStarvesUnderLpmRandomOrLof) {
  for (const Policy policy : {Policy::kLpm, Policy::kDfsWeight, Policy::kLof, Policy::kRandom}) {
    SchedulerConfig config = one_at_a_time(policy);
    config.max_passed_over = 20;
    Bench b(config);
    ASSERT_TRUE(b.add(1, iota(64)).ok());
    b.order_of_admission();
    ASSERT_TRUE(b.add(2, iota(32, 5000), 1).ok());  // cold and short: last by every policy
    RequestId next = 3;
    bool served = false;
    for (int i = 0; i < 200 && !served; ++i) {
      // Two arrive for each one that is served: those that the policy prefers never run out.
      for (int k = 0; k < 2; ++k) ASSERT_TRUE(b.add(next++, iota(64), 2).ok());
      for (const RequestId id : b.step()) served |= id == 2;
    }
    EXPECT_TRUE(served) << "policy " << static_cast<int>(policy);
  }
}

TEST(Siblings, LaterOnesWaitForTheFirstsPrefillAndShareIt) {
  SchedulerConfig config;
  config.num_pages = 100;
  config.chunked_prefill_size = 32;
  config.mixed_prefill_tokens = -1;
  Bench b(config);
  for (RequestId id = 1; id <= 3; ++id) ASSERT_TRUE(b.add(id, iota(90), 8, 0, 77).ok());
  EXPECT_EQ(b.step(), (Ids{1}));
  EXPECT_EQ(b.step(), (Ids{1}));
  EXPECT_EQ(b.step(), (Ids{1}));
  EXPECT_EQ(b.step(), (Ids{1, 2, 3}));
  EXPECT_EQ(b.item(2)->cached_tokens, 80);
  EXPECT_EQ(b.item(3)->count, 10);
  ASSERT_TRUE(b.add(4, iota(90), 8, 0, 77).ok());
  b.step();
  ASSERT_NE(b.item(4), nullptr) << "nothing to wait for any more";
  EXPECT_EQ(b.item(4)->cached_tokens, 80);
  b.order_of_admission();
}

TEST(Siblings, TheNextOneLeadsWhenTheFirstLeaves) {
  SchedulerConfig config;
  config.num_pages = 100;
  config.chunked_prefill_size = 32;
  Bench b(config);
  for (RequestId id = 1; id <= 3; ++id) ASSERT_TRUE(b.add(id, iota(90), 2, 0, 77).ok());
  b.scheduler->cancel(1, FinishKind::kAbort);
  EXPECT_EQ(b.step(), (Ids{2}));
  b.scheduler->cancel(2, FinishKind::kAbort);
  EXPECT_EQ(b.step(), (Ids{3}));
  EXPECT_EQ(b.item(3)->cached_tokens, 32) << "what the second computed is not lost";
  b.order_of_admission();
  EXPECT_EQ(b.ended.size(), 3u);
}

TEST(InBatchSharing, WaitsForThePrefixBeingComputed) {
  for (const int worth : {32, -1}) {
    SchedulerConfig config;
    config.num_pages = 200;
    config.in_batch_sharing_tokens = worth;
    Bench b(config);
    for (RequestId id = 1; id <= 3; ++id) {
      auto prompt = iota(128);
      const auto tail = iota(16, static_cast<int>(id) * 1000);
      prompt.insert(prompt.end(), tail.begin(), tail.end());
      ASSERT_TRUE(b.add(id, std::move(prompt), 8).ok());
    }
    ASSERT_TRUE(b.add(4, iota(128, 50000), 8).ok());
    const Ids first = b.step();
    if (worth < 0) {
      EXPECT_EQ(first, (Ids{1, 2, 3, 4}));
      continue;
    }
    EXPECT_EQ(first, (Ids{1, 4})) << "the unrelated one must not wait";
    b.step();
    ASSERT_NE(b.item(2), nullptr);
    EXPECT_EQ(b.item(2)->cached_tokens, 128);
    EXPECT_EQ(b.item(3)->cached_tokens, 128);
    b.order_of_admission();
  }
}

TEST(InBatchSharing, WaitsNoLongerThanTheSharedPartTakes) {
  SchedulerConfig config;
  config.num_pages = 200;
  config.chunked_prefill_size = 64;
  Bench b(config);
  ASSERT_TRUE(b.add(1, iota(1000), 1).ok());
  auto prompt = iota(64);
  prompt.push_back(9999);
  ASSERT_TRUE(b.add(2, prompt, 1).ok());
  b.step();
  EXPECT_EQ(b.item(2), nullptr);
  for (int i = 0; i < 20 && b.item(2) == nullptr; ++i) b.step();
  ASSERT_NE(b.item(2), nullptr);
  EXPECT_EQ(b.item(2)->cached_tokens, 64);
}

TEST(Retraction, PushesBackTheOneWithFewestOutputsAndKeepsItsPages) {
  SchedulerConfig config;
  config.page_size = 1;
  config.num_pages = 40;
  config.chunked_prefill_size = 64;
  config.conservativeness = 0;
  config.clip_max_new_tokens = 1;  // admits both at once
  Bench b(config);
  ASSERT_TRUE(b.add(1, iota(10), 25).ok());
  b.step();
  ASSERT_TRUE(b.add(2, iota(10, 100), 25).ok());
  while (b.scheduler->stats().retractions == 0) b.step();
  EXPECT_EQ(b.last.retracted, 1);
  EXPECT_EQ(b.scheduler->retractions(2), 1);
  EXPECT_EQ(b.scheduler->retractions(1), 0);
  EXPECT_EQ(b.scheduler->stats().running, 1);
  EXPECT_GT(b.scheduler->stats().evictable_tokens, 0) << "its pages stay until they are needed";
  EXPECT_GT(b.scheduler->stats().new_token_ratio, 0.2) << "admission learns from it";
  b.order_of_admission();
  ASSERT_EQ(b.ended.size(), 2u);
  EXPECT_EQ(b.ended[0].id, 1u);
  EXPECT_EQ(b.ended[1].kind, FinishKind::kLength);
}

TEST(Retraction, WakesThoseWhoWaitForTheVictimsPrefill) {
  SchedulerConfig config;
  config.num_pages = 21;
  config.chunked_prefill_size = 64;
  config.mixed_prefill_tokens = 64;
  config.conservativeness = 0;
  config.clip_max_new_tokens = 1;
  Bench b(config);
  ASSERT_TRUE(b.add(1, iota(14), 30).ok());
  b.step();
  ASSERT_TRUE(b.add(2, iota(5, 500), 30).ok());
  ASSERT_TRUE(b.add(3, iota(300, 1000), 1).ok());
  auto prompt = iota(290, 1000);
  prompt.push_back(9999);
  ASSERT_TRUE(b.add(4, prompt, 1).ok());
  // 2 takes 5 tokens of the step and 3 three pages; 4 comes up for the rest and waits for 3.
  EXPECT_EQ(b.step(), (Ids{1, 2, 3}));
  EXPECT_EQ(b.item(3)->count, 48);
  while (b.scheduler->stats().retractions == 0) b.step();  // each step checks the invariants
  EXPECT_EQ(b.scheduler->retractions(3), 1);
  b.order_of_admission();
  EXPECT_EQ(b.ended.size(), 4u);
}

TEST(Retraction, ByPriorityPushesBackTheLowest) {
  SchedulerConfig config;
  config.page_size = 1;
  config.num_pages = 40;
  config.chunked_prefill_size = 64;
  config.conservativeness = 0;
  config.clip_max_new_tokens = 1;
  config.enable_priority = true;
  config.retract_by_priority = true;
  Bench b(config);
  ASSERT_TRUE(b.add(1, iota(10), 25, -1).ok());
  b.step();
  ASSERT_TRUE(b.add(2, iota(10, 100), 25, 1).ok());
  while (b.scheduler->stats().retractions == 0) b.step();
  EXPECT_EQ(b.scheduler->retractions(1), 1) << "though it has more outputs";
  b.order_of_admission();
}

SchedulerConfig with_priority() {
  SchedulerConfig config = one_at_a_time(Policy::kFcfs);
  config.enable_priority = true;
  config.disable_priority_preemption = true;
  return config;
}

TEST(Priority, HigherFirstAndLowFirstWhenAsked) {
  for (const bool low_first : {false, true}) {
    SchedulerConfig config = with_priority();
    config.low_priority_values_first = low_first;
    Bench b(config);
    ASSERT_TRUE(b.add(1, iota(5), 2, 0).ok());
    ASSERT_TRUE(b.add(2, iota(5), 2, 5).ok());
    ASSERT_TRUE(b.add(3, iota(5), 2, -5).ok());
    ASSERT_TRUE(b.add(4, iota(5), 2, 5).ok());
    EXPECT_EQ(b.order_of_admission(), low_first ? (Ids{3, 1, 2, 4}) : (Ids{2, 4, 1, 3}));
  }
}

TEST(Priority, IsIgnoredWhenNotEnabled) {
  Bench b(one_at_a_time(Policy::kFcfs));
  ASSERT_TRUE(b.add(1, iota(5), 2, 0).ok());
  ASSERT_TRUE(b.add(2, iota(5), 2, 5).ok());
  EXPECT_EQ(b.order_of_admission(), (Ids{1, 2}));
}

TEST(Priority, AgeingLiftsThoseWhoWaited) {
  SchedulerConfig config = with_priority();
  config.priority_ageing_per_second = 1;
  Bench b(config);
  ASSERT_TRUE(b.add(1, iota(5), 2, 0, 0, 0.0).ok());
  ASSERT_TRUE(b.add(2, iota(5), 2, 5, 0, 4.0).ok());  // 5 above, 4 s later: first
  ASSERT_TRUE(b.add(3, iota(5), 2, 5, 0, 6.0).ok());  // 5 above, 6 s later: after
  EXPECT_EQ(b.order_of_admission(), (Ids{2, 1, 3}));
}

TEST(Priority, FullQueuePushesOutTheLowest) {
  SchedulerConfig config = with_priority();
  config.max_queued_requests = 2;
  Bench b(config);
  ASSERT_TRUE(b.add(1, iota(5), 9, 1).ok());
  ASSERT_TRUE(b.add(2, iota(5), 9, 2).ok());
  EXPECT_FALSE(b.add(3, iota(5), 9, 1).ok()) << "not higher than the lowest";
  ASSERT_TRUE(b.add(4, iota(5), 9, 3).ok());
  b.step();
  ASSERT_EQ(b.ended.size(), 1u);
  EXPECT_EQ(b.ended[0].id, 1u);
  EXPECT_EQ(b.ended[0].kind, FinishKind::kAbort);
  EXPECT_NE(b.ended[0].message.find("The request queue is full."), std::string::npos);
  b.order_of_admission();
}

TEST(Priority, PreemptsOnlyBeyondTheThresholdAndOutputsGoOn) {
  SchedulerConfig config = with_priority();
  config.disable_priority_preemption = false;
  config.priority_preemption_threshold = 10;
  Bench b(config);
  ASSERT_TRUE(b.add(1, iota(40), 8, 0).ok());
  b.step();
  b.step();
  ASSERT_TRUE(b.add(2, iota(40, 100), 3, 10).ok());
  EXPECT_EQ(b.step(), (Ids{1})) << "10 above is not more than 10";
  ASSERT_TRUE(b.add(3, iota(40, 200), 3, 11).ok());
  EXPECT_EQ(b.step(), (Ids{3}));
  EXPECT_EQ(b.scheduler->retractions(1), 1);
  b.step();
  b.step();
  EXPECT_EQ(b.step(), (Ids{2}));
  b.step();
  b.step();
  EXPECT_EQ(b.step(), (Ids{1}));
  EXPECT_EQ(b.item(1)->cached_tokens, 32) << "its pages were kept";
  EXPECT_EQ(b.item(1)->start + b.item(1)->count, 43) << "prompt and three outputs, none lost";
  b.order_of_admission();
  EXPECT_EQ(b.ended.size(), 3u);
}

TEST(Priority, PreemptsForMemoryAndNotInVain) {
  SchedulerConfig config = with_priority();
  config.disable_priority_preemption = false;
  config.priority_preemption_threshold = 0;
  config.max_running_requests = 8;
  config.page_size = 1;
  config.num_pages = 100;
  Bench b(config);
  ASSERT_TRUE(b.add(1, iota(30), 10, 5).ok());
  ASSERT_TRUE(b.add(2, iota(30, 100), 10, 0).ok());
  b.step();
  ASSERT_TRUE(b.add(3, iota(70, 200), 10, 3).ok());
  b.step();
  EXPECT_EQ(b.scheduler->stats().retractions, 0u) << "pushing back 2 alone would not make room";
  b.scheduler->cancel(3, FinishKind::kAbort);
  ASSERT_TRUE(b.add(4, iota(45, 300), 10, 3).ok());
  b.step();
  EXPECT_EQ(b.scheduler->retractions(2), 1);
  EXPECT_EQ(b.scheduler->retractions(1), 0);
  EXPECT_NE(b.item(4), nullptr);
  b.order_of_admission();
}

TEST(Admission, HoldsBackWhatWouldNotFitWithItsOutput) {
  SchedulerConfig config;
  config.page_size = 1;
  config.num_pages = 100;
  Bench b(config);
  ASSERT_TRUE(b.add(1, iota(30), 60).ok());
  ASSERT_TRUE(b.add(2, iota(30, 100), 60).ok());
  EXPECT_EQ(b.step(), (Ids{1})) << "30 + 60 * 0.7 + 30 + 60 > 100";
  b.order_of_admission();
  EXPECT_EQ(b.scheduler->stats().retractions, 0u);

  config.clip_max_new_tokens = 10;
  Bench clipped(config);
  ASSERT_TRUE(clipped.add(1, iota(30), 60).ok());
  ASSERT_TRUE(clipped.add(2, iota(30, 100), 60).ok());
  EXPECT_EQ(clipped.step(), (Ids{1, 2}));
}

TEST(Admission, ProbesPassAFullQueue) {
  SchedulerConfig config = one_at_a_time(Policy::kFcfs);
  config.max_queued_requests = 1;
  Bench b(config);
  ASSERT_TRUE(b.add(1, iota(5)).ok());
  EXPECT_FALSE(b.add(2, iota(5)).ok());
  RequestSpec probe;
  probe.id = 3;
  probe.prompt = {1};
  probe.max_new_tokens = 1;
  probe.bypass_queue_limit = true;
  probe.no_cache = true;
  EXPECT_TRUE(b.scheduler->add(probe).ok());
  b.order_of_admission();
  EXPECT_EQ(b.ended.size(), 2u);
}

TEST(Mixed, AFixedBudgetBoundsPrefillBesideDecodes) {
  SchedulerConfig config;
  config.num_pages = 1000;
  config.chunked_prefill_size = 512;
  config.mixed_prefill_tokens = 64;
  Bench b(config);
  ASSERT_TRUE(b.add(1, iota(512), 100).ok());
  b.step();
  EXPECT_EQ(b.last.prefill_tokens, 512) << "nobody waits: the whole chunk";
  ASSERT_TRUE(b.add(2, iota(1000, 5000), 4).ok());
  for (int i = 0; i < 15; ++i) {
    EXPECT_EQ(b.step(), (Ids{1, 2}));
    EXPECT_EQ(b.last.prefill_tokens, 64);
    EXPECT_EQ(b.last.decode_tokens, 1);
  }
}

}  // namespace
}  // namespace capstan::scheduler
