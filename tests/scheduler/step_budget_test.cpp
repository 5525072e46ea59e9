#include "scheduler/step_budget.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace capstan::scheduler {
namespace {

SchedulerConfig base() {
  SchedulerConfig config;
  config.page_size = 16;
  config.num_pages = 1000;
  config.chunked_prefill_size = 2048;
  config.max_prefill_tokens = 16384;
  return config;
}

StepWork decode(int rows, int context = 0) {
  StepWork work;
  work.decode_rows = rows;
  work.decode_context = context;
  return work;
}

StepWork prefill(int start, int count, StepWork work = {}) {
  work.add_prefill(start, count);
  return work;
}

/// Tokens of a prompt of any length, from `start` on, in a step with these decodes.
int tokens(StepBudget& budget, const StepWork& decodes, int joining = 0, int start = 0) {
  budget.begin(decodes, joining);
  return budget.fits(start, 1'000'000);
}

TEST(StepBudget, WithoutDecodesTheSmallerOfChunkAndPrefillBound) {
  SchedulerConfig config = base();
  const auto full = [&] {
    StepBudget budget(config);
    return tokens(budget, {});
  };
  EXPECT_EQ(full(), 2048);
  config.max_prefill_tokens = 1000;
  EXPECT_EQ(full(), 992) << "whole pages";
  config.context_length = 1500;
  EXPECT_EQ(full(), 1488) << "the context is allowed at least";
  config.chunked_prefill_size = -1;
  StepBudget whole(config);
  EXPECT_TRUE(whole.whole_prompts());
  whole.begin(decode(1), 0);
  EXPECT_EQ(whole.fits(0, 5000), 5000) << "never cut";
  whole.take(0, 1000);
  EXPECT_EQ(whole.fits(0, 488), 488);
  EXPECT_EQ(whole.fits(0, 489), 0) << "the next step's";
}

TEST(StepBudget, FixedBesideDecodes) {
  SchedulerConfig config = base();
  config.mixed_prefill_tokens = 100;
  StepBudget some(config);
  EXPECT_EQ(tokens(some, decode(1)), 96);
  EXPECT_EQ(tokens(some, {}), 2048);
  config.mixed_prefill_tokens = 3;
  StepBudget least(config);
  EXPECT_EQ(tokens(least, decode(1)), 16) << "never less than a page";
  config.mixed_prefill_tokens = -1;
  StepBudget full(config);
  EXPECT_EQ(tokens(full, decode(1)), 2048);
}

TEST(StepBudget, ManyShortPromptsShareAStep) {
  SchedulerConfig config = base();
  config.mixed_prefill_tokens = 64;
  StepBudget budget(config);
  budget.begin(decode(4), 9);
  for (int i = 0; i < 4; ++i) {
    EXPECT_FALSE(budget.spent());
    EXPECT_EQ(budget.fits(0, 15), 15);
    budget.take(0, 15);
  }
  EXPECT_EQ(budget.fits(0, 4), 4);
  budget.take(0, 4);
  EXPECT_TRUE(budget.spent());
  EXPECT_EQ(budget.fits(0, 1), 0);
}

// A machine on which 4 decodes of 100 keys each take 8 ms, a prompt token 1 ms and attention to
// 2,000 keys as much again.
double truth(const StepWork& w) {
  return 0.0028 + 0.0012 * w.decode_rows + 1e-6 * w.decode_context + 0.001 * w.prefill_tokens +
         5e-7 * w.prefill_pairs;
}

class Learnt : public ::testing::Test {
 protected:
  void SetUp() override {
    observe(prefill(0, 8));
    observe(decode(1, 10));
    for (int i = 0; i < 20; ++i) observe(decode(4, 400 + 4 * i));
    for (int i = 0; i < 20; ++i) observe(prefill(100 * i, 6, decode(4, 480 + 4 * i)));
    observe(decode(4, 560));
  }
  void observe(const StepWork& work) { budget.observe(work, truth(work)); }
  StepBudget budget{base()};
};

TEST(StepBudget, IsCautiousBeforeItKnows) {
  StepBudget budget(base());
  EXPECT_EQ(budget.mixed_tokens(), 64);
  EXPECT_EQ(tokens(budget, decode(1)), 64) << "nothing known";
  budget.observe(prefill(0, 500), 0.5);
  EXPECT_EQ(tokens(budget, decode(1)), 16) << "half known";
  budget.observe(decode(8), 1.0);
  EXPECT_EQ(tokens(budget, decode(8)), 16) << "an estimate, but steps grow by and by";
  EXPECT_EQ(tokens(budget, {}), 2048);
}

TEST_F(Learnt, AStepTakesTwiceAStepThatOnlyDecodes) {
  EXPECT_NEAR(tokens(budget, decode(4, 600)), 8, 1);
  EXPECT_NEAR(tokens(budget, decode(4, 600), 0, 2000), 4, 1) << "attention counts";
  EXPECT_NEAR(tokens(budget, decode(4, 600), 1, 6000), 2, 1) << "even for parts of a page";
  EXPECT_GE(tokens(budget, decode(4, 600), 1, 1'000'000), 1) << "nobody starves";
  EXPECT_NEAR(tokens(budget, decode(16, 2400)), 20, 8) << "more streams are slower by themselves";
}

TEST_F(Learnt, StreamsMayAlreadyBeAsSlowAsTheyWillBeSoon) {
  // 32 of them take 44 ms and more, 4 take 8.
  observe(prefill(0, 32, decode(8, 1200)));
  EXPECT_NEAR(tokens(budget, decode(4, 600), 28), 35, 10);
  EXPECT_EQ(tokens(budget, decode(4, 600), 3), tokens(budget, decode(4, 600))) << "below twice 8";
}

TEST_F(Learnt, ChunksEndOnPageBordersWhereThatCostsLittle) {
  for (int i = 0; i < 8; ++i) observe(prefill(0, 200, decode(128, 12800)));
  const StepWork many = decode(128, 12800);
  const int chunk = tokens(budget, many, 0, 5);
  EXPECT_GT(chunk, 128);
  EXPECT_EQ((5 + chunk) % 16, 0);
  EXPECT_EQ(tokens(budget, decode(4, 600), 0, 5) % 16, tokens(budget, decode(4, 600), 0, 5))
      << "less than a page need not wait for its border";
  // What is left goes to the next, but not in crumbs.
  budget.begin(many, 0);
  budget.take(5, chunk);
  for (int rounds = 0; budget.fits(0, 100) > 0; ++rounds) {
    ASSERT_LT(rounds, 10);
    ASSERT_GE(budget.fits(0, 100), 4);
    budget.take(0, 3);
  }
}

TEST_F(Learnt, MeasuresTheDecodesAloneWhenMixedStepsHideThem) {
  int without = 0, most_in_a_row = 0, in_a_row = 0;
  for (int i = 0; i < 400; ++i) {
    const StepWork decodes = decode(4 + i / 50, 600 + 4 * i);  // a stream joins now and then
    const int count = tokens(budget, decodes, 1, i);
    observe(count == 0 ? decodes : prefill(i, count, decodes));
    in_a_row = count == 0 ? in_a_row + 1 : 0;
    most_in_a_row = std::max(most_in_a_row, in_a_row);
    without += count == 0;
  }
  EXPECT_LE(most_in_a_row, 1);
  EXPECT_LE(without, 400 / 16);
  observe(decode(12, 4000));
  EXPECT_NEAR(tokens(budget, decode(12, 4000)), 20, 3);
}

TEST_F(Learnt, OneStallDoesNotUpsetIt) {
  const int before = tokens(budget, decode(4, 600));
  budget.observe(prefill(100, before, decode(4, 600)), 60.0);
  EXPECT_GE(tokens(budget, decode(4, 600)), before / 2);
  budget.observe(decode(4, 600), 60.0);
  EXPECT_LE(tokens(budget, decode(4, 600)), 2 * before);
  budget.observe(prefill(100, 8, decode(4, 600)), 0.0);
  budget.observe(decode(4, 600), -1.0);
  EXPECT_GE(tokens(budget, decode(4, 600)), before / 2);
}

TEST_F(Learnt, FollowsAMachineThatSlowsDown) {
  for (int i = 0; i < 40; ++i) budget.observe(decode(4, 700), 2 * truth(decode(4, 700)));
  for (int i = 0; i < 40; ++i) {
    const StepWork work = prefill(10 * i, 1 + i % 6, decode(4, 700));
    budget.observe(work, 2 * truth(work));
  }
  EXPECT_NEAR(tokens(budget, decode(4, 700)), 8, 2) << "everything twice as slow";
}

TEST(StepCost, LongSilenceDoesNotMakePromptsFree) {
  StepCost cost;
  cost.observe(prefill(0, 512), truth(prefill(0, 512)));
  cost.observe(prefill(0, 64), truth(prefill(0, 64)));
  for (int i = 0; i < 100'000; ++i) cost.observe(decode(4, 400 + i % 1000), truth(decode(4, 900)));
  EXPECT_NEAR(cost.prefill_seconds(0, 100), 0.1, 0.05);
  EXPECT_NEAR(cost.seconds(decode(4, 900)), truth(decode(4, 900)), 1e-3);
}

TEST(StepCost, AnyScale) {
  for (const double scale : {1e-6, 1.0, 1e4}) {
    StepCost cost;
    for (int i = 0; i < 300; ++i) {
      const StepWork work = i % 3 == 0   ? decode(1 + i % 7, 100 * i)
                            : i % 3 == 1 ? prefill(13 * i, 1 + i % 11, decode(1 + i % 7, 100 * i))
                                         : prefill(0, 16 * (i % 13 + 1));
      cost.observe(work, scale * truth(work));
    }
    const StepWork work = prefill(3000, 5, decode(4, 4000));
    EXPECT_NEAR(cost.seconds(work) / (scale * truth(work)), 1, 0.1) << scale;
    EXPECT_EQ(cost.tokens_within(scale * 0.010, 0, 1000), 9);
    EXPECT_EQ(cost.tokens_within(0, 0, 1000), 0);
    EXPECT_EQ(cost.tokens_within(1e9, 0, 1000), 1000);
  }
}

TEST(NewTokenRatio, FallsAndRisesAgain) {
  NewTokenRatio ratio(1.0);
  EXPECT_DOUBLE_EQ(ratio.value(), 0.7);
  for (int i = 0; i < 300; ++i) ratio.decode_step();
  EXPECT_NEAR(ratio.value(), 0.7 * (1 + 0.14) / 2, 1e-9);
  for (int i = 0; i < 600; ++i) ratio.decode_step();
  EXPECT_NEAR(ratio.value(), 0.7 * 0.14, 1e-9);
  ratio.retraction(500, 999, 5);  // (500 + 20 * 5) / (999 + 1)
  EXPECT_NEAR(ratio.value(), 0.6, 1e-9);
  ratio.retraction(0, 999, 1);
  EXPECT_NEAR(ratio.value(), 0.6, 1e-9) << "a retraction never lowers it";
  ratio.retraction(999, 999, 50);
  EXPECT_DOUBLE_EQ(ratio.value(), 1.0);
  for (int i = 0; i < 600; ++i) ratio.decode_step();
  EXPECT_NEAR(ratio.value(), 0.7 * 0.14, 1e-9);
  ratio.idle();
  EXPECT_DOUBLE_EQ(ratio.value(), 0.7);
  EXPECT_DOUBLE_EQ(NewTokenRatio(5.0).value(), 1.0);
  EXPECT_DOUBLE_EQ(NewTokenRatio(0.0).value(), 0.0);
}

}  // namespace
}  // namespace capstan::scheduler
