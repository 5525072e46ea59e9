// Proposed tokens: what a plan makes of them, what commit keeps, whose memory they may take.
#include <gtest/gtest.h>

#include <numeric>

#include "scheduler/scheduler.h"

namespace capstan::scheduler {
namespace {

class Drafts : public ::testing::Test {
 protected:
  void start(SchedulerConfig config) {
    auto scheduler = Scheduler::create(config);
    ASSERT_TRUE(scheduler.ok());
    scheduler_ = std::move(*scheduler);
  }

  static SchedulerConfig pool(int page_size, int num_pages) {
    SchedulerConfig config;
    config.page_size = page_size;
    config.num_pages = num_pages;
    config.conservativeness = 0;
    return config;
  }

  void add(RequestId id, int prompt, int max_new) {
    RequestSpec spec;
    spec.id = id;
    for (int i = 0; i < prompt; ++i) spec.prompt.push_back(static_cast<int32_t>(100 * id) + i);
    spec.max_new_tokens = max_new;
    ASSERT_TRUE(scheduler_->add(std::move(spec)).ok());
  }

  const StepPlan& plan() {
    plan_ = scheduler_->plan(0);
    check();
    return plan_;
  }

  /// Token 7 for every item, after `accepted` drafts.
  std::vector<Finished> commit(int32_t accepted = 0, FinishKind stop = FinishKind::kNone) {
    std::vector<SampledToken> sampled;
    for (const PlanItem& item : plan_.items) {
      sampled.push_back({7, stop, std::min(accepted, item.drafts)});
    }
    auto finished = scheduler_->commit(plan_, sampled, 0);
    check();
    return finished;
  }

  void check() {
    const Status status = scheduler_->check_invariants();
    ASSERT_TRUE(status.ok()) << status.error().message;
  }

  void propose(RequestId id, std::vector<int32_t> drafts) { scheduler_->propose(id, drafts); }

  static std::vector<int32_t> tokens(const PlanItem& item) {
    return {item.tokens.begin(), item.tokens.end()};
  }

  std::unique_ptr<Scheduler> scheduler_;
  StepPlan plan_;
};

TEST_F(Drafts, AreComputedAfterTheLastToken) {
  start(pool(4, 100));
  add(1, 5, 20);
  plan();
  commit();
  propose(1, {50, 51, 52});
  const StepPlan& p = plan();
  ASSERT_EQ(p.items.size(), 1u);
  const PlanItem& item = p.items[0];
  EXPECT_TRUE(item.is_decode);
  EXPECT_TRUE(item.samples);
  EXPECT_EQ(item.start, 5);
  EXPECT_EQ(item.count, 4);
  EXPECT_EQ(item.drafts, 3);
  EXPECT_EQ(tokens(item), (std::vector<int32_t>{7, 50, 51, 52}));
  EXPECT_EQ(item.pages.size(), 3u);  // positions 5 to 8
  EXPECT_EQ(p.decode_tokens, 4);
  EXPECT_EQ(p.draft_tokens, 3);
  commit(2);
  EXPECT_EQ(plan().items[0].start, 8);
  EXPECT_EQ(tokens(plan_.items[0]), (std::vector<int32_t>{7}));
  EXPECT_EQ(plan_.draft_tokens, 0) << "a proposal counts for one plan";
}

TEST_F(Drafts, EndWithTheOutputLimit) {
  start(pool(4, 100));
  add(1, 5, 4);
  plan();
  commit();
  propose(1, {50, 51, 52, 53, 54});
  EXPECT_EQ(plan().items[0].drafts, 2);  // 1 written, at most 3 more come of this step
  const auto finished = commit(2);
  ASSERT_EQ(finished.size(), 1u);
  EXPECT_EQ(finished[0].kind, FinishKind::kLength);
  EXPECT_TRUE(scheduler_->idle());
}

TEST_F(Drafts, AStopEndsAmongThem) {
  start(pool(4, 100));
  add(1, 5, 20);
  plan();
  commit();
  propose(1, {50, 51, 52});
  plan();
  const auto finished = commit(1, FinishKind::kStop);
  ASSERT_EQ(finished.size(), 1u);
  EXPECT_EQ(finished[0].kind, FinishKind::kStop);
  EXPECT_EQ(scheduler_->stats().used_tokens, 0);
}

TEST_F(Drafts, RejectedOnesAreNotCached) {
  start(pool(1, 100));
  add(1, 5, 20);
  plan();
  commit();
  propose(1, {50, 51, 52});
  plan();
  commit(1, FinishKind::kStop);
  // Prompt, 7 and 50 are computed; the last token never is.
  EXPECT_EQ(scheduler_->stats().evictable_tokens, 7);
}

TEST_F(Drafts, ACancelledStepLeavesNone) {
  start(pool(1, 100));
  add(1, 5, 20);
  plan();
  commit();
  propose(1, {50, 51, 52});
  plan();
  scheduler_->cancel(1);
  propose(1, {60});  // in flight: too late
  commit(3);
  EXPECT_EQ(scheduler_->stats().used_tokens, 0);
  EXPECT_EQ(scheduler_->stats().evictable_tokens, 6);
}

TEST_F(Drafts, AnAbandonedStepGivesTheirPagesBack) {
  start(pool(1, 100));
  add(1, 5, 20);
  plan();
  commit();
  propose(1, {50, 51, 52});
  plan();
  EXPECT_EQ(scheduler_->stats().used_tokens, 9);
  scheduler_->abandon(plan_);
  check();
  EXPECT_EQ(scheduler_->stats().used_tokens, 6);
  EXPECT_EQ(plan().items[0].count, 1);
  commit();
}

TEST_F(Drafts, RejectedOnesGiveTheirPagesBack) {
  start(pool(1, 100));
  add(1, 5, 20);
  plan();
  commit();
  propose(1, {50, 51, 52});
  plan();
  commit(1);
  EXPECT_EQ(scheduler_->stats().used_tokens, 8);  // 5 + 7, 50, and the place of the next token
}

TEST_F(Drafts, TakeWhatIsLeftAndPushNobodyBack) {
  start(pool(1, 14));
  add(1, 5, 4);
  add(2, 5, 4);
  plan();
  commit();
  propose(1, {50, 51, 52, 53});
  propose(2, {50, 51, 52, 53});
  plan();  // 12 pages for what must be computed, 2 left
  ASSERT_EQ(plan_.items.size(), 2u);
  EXPECT_EQ(plan_.items[0].drafts, 2);
  EXPECT_EQ(plan_.items[1].drafts, 0);
  EXPECT_EQ(plan_.retracted, 0);
  commit();
  EXPECT_EQ(plan().retracted, 0) << "their pages are free again";
  commit();
}

TEST_F(Drafts, EvictCachedPrefixes) {
  start(pool(1, 10));
  add(1, 4, 1);
  plan();
  commit();
  EXPECT_EQ(scheduler_->stats().evictable_tokens, 4);
  add(2, 4, 6);
  plan();
  commit();
  propose(2, {50, 51, 52, 53});
  EXPECT_EQ(plan().items[0].drafts, 4);
  commit(4);
}

TEST_F(Drafts, KeepNobodyOut) {
  start(pool(1, 20));
  add(1, 5, 14);
  plan();
  commit();
  propose(1, std::vector<int32_t>(12, 50));
  add(2, 10, 1);
  EXPECT_EQ(plan().admitted, 1);
  EXPECT_EQ(plan_.draft_tokens, 4);  // 20 - 6 - 10
  commit();
}

TEST_F(Drafts, OfPrefillsAndStrangersAreIgnored) {
  SchedulerConfig config = pool(4, 100);
  config.chunked_prefill_size = 4;
  start(config);
  add(1, 10, 5);
  propose(1, {50});
  propose(99, {50});
  EXPECT_EQ(plan().draft_tokens, 0);
  commit();
  propose(1, {50});  // still in its prefill
  EXPECT_EQ(plan().draft_tokens, 0);
  commit();
}

TEST_F(Drafts, MoreAcceptedThanPlannedAreNot) {
  start(pool(4, 100));
  add(1, 5, 20);
  plan();
  commit();
  propose(1, {50});
  plan();
  const SampledToken wild{7, FinishKind::kNone, 9};
  scheduler_->commit(plan_, std::span(&wild, 1), 0);
  check();
  EXPECT_EQ(plan().items[0].start, 7);
  commit();
}

}  // namespace
}  // namespace capstan::scheduler
