#include "scheduler/step_budget.h"

#include <gtest/gtest.h>

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

TEST(StepBudget, WithoutDecodesTheSmallerOfChunkAndPrefillBound) {
  SchedulerConfig config = base();
  EXPECT_EQ(StepBudget(config).prefill_tokens(false), 2048);
  config.max_prefill_tokens = 1000;
  EXPECT_EQ(StepBudget(config).prefill_tokens(false), 992) << "whole pages";
  config.context_length = 1500;
  EXPECT_EQ(StepBudget(config).prefill_tokens(false), 1488) << "the context is allowed at least";
  config.chunked_prefill_size = -1;
  EXPECT_TRUE(StepBudget(config).whole_prompts());
  EXPECT_EQ(StepBudget(config).prefill_tokens(true), 1488);
}

TEST(StepBudget, FixedBesideDecodes) {
  SchedulerConfig config = base();
  config.mixed_prefill_tokens = 100;
  EXPECT_EQ(StepBudget(config).prefill_tokens(true), 96);
  EXPECT_EQ(StepBudget(config).prefill_tokens(false), 2048);
  config.mixed_prefill_tokens = 3;
  EXPECT_EQ(StepBudget(config).prefill_tokens(true), 16) << "never less than a page";
  config.mixed_prefill_tokens = -1;
  EXPECT_EQ(StepBudget(config).prefill_tokens(true), 2048);
}

TEST(StepBudget, LearnsFromSteps) {
  StepBudget budget(base());
  EXPECT_EQ(budget.prefill_tokens(true), 64) << "nothing known";
  budget.observe(0, 8, 0.020);
  EXPECT_EQ(budget.prefill_tokens(true), 64) << "half known";
  budget.observe(1000, 0, 0.100);  // 0.1 ms a token
  EXPECT_EQ(budget.prefill_tokens(true), 192) << "20 ms for 0.1 ms each, in whole pages";
  // Mixed steps show that a token costs four times as much there.
  for (int i = 0; i < 50; ++i) budget.observe(192, 8, 0.020 + 192 * 0.0004);
  EXPECT_EQ(budget.prefill_tokens(true), 48);
  for (int i = 0; i < 50; ++i) budget.observe(0, 64, 0.080);
  EXPECT_NEAR(budget.prefill_tokens(true), 200, 8) << "decode steps got longer";
  EXPECT_EQ(budget.prefill_tokens(false), 2048);
}

TEST(StepBudget, OneStallDoesNotUpsetIt) {
  StepBudget budget(base());
  for (int i = 0; i < 50; ++i) budget.observe(0, 8, 0.010);
  for (int i = 0; i < 50; ++i) budget.observe(100, 8, 0.020);
  const int before = budget.prefill_tokens(true);
  budget.observe(100, 8, 60.0);
  EXPECT_GE(budget.prefill_tokens(true), before / 2);
  EXPECT_GE(budget.prefill_tokens(true), 16);
  budget.observe(100, 8, 0.0);
  budget.observe(0, 8, -1.0);
  EXPECT_GE(budget.prefill_tokens(true), before / 2);
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
