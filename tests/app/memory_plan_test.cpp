#include "app/memory_plan.h"

#include <gtest/gtest.h>

#include "app/load_progress.h"

namespace capstan::app {
namespace {

constexpr uint64_t kGb = 1000000000;

MemoryPlanInput laptop() {
  MemoryPlanInput in;
  in.available_bytes = 10 * kGb;
  in.available_now_bytes = 9 * kGb;
  in.weight_bytes = 1 * kGb;
  in.bytes_per_token = 20000;
  in.context_length = 8192;
  in.page_size = 16;
  return in;
}

int64_t tokens(const MemoryPlan& plan, const MemoryPlanInput& in) {
  return static_cast<int64_t>(plan.num_pages) * in.page_size;
}

TEST(MemoryPlan, DefaultIsEightContexts) {
  const auto in = laptop();
  const auto plan = plan_memory(in);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(tokens(*plan, in), 8 * 8192);
  EXPECT_EQ(plan->kv_bytes, 8u * 8192 * 20000);
  EXPECT_TRUE(plan->warning.empty());
}

TEST(MemoryPlan, DefaultLeavesHalfOfTheMemory) {
  auto in = laptop();
  in.context_length = 131072;
  const auto plan = plan_memory(in);
  ASSERT_TRUE(plan.ok());
  EXPECT_LE(plan->kv_bytes, 9 * kGb / 2);
  EXPECT_GT(plan->kv_bytes, 9 * kGb / 2 - 16 * 20000);
}

TEST(MemoryPlan, FractionCountsWeights) {
  auto in = laptop();
  in.mem_fraction_static = 0.3;
  const auto plan = plan_memory(in);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(tokens(*plan, in), 2 * kGb / 20000 / 16 * 16);
  in.mem_fraction_static = 0.05;
  const auto none = plan_memory(in);
  ASSERT_FALSE(none.ok());
  EXPECT_EQ(none.error().param, "mem-fraction-static");
}

TEST(MemoryPlan, ExplicitTokens) {
  auto in = laptop();
  in.max_total_tokens = 1000;
  const auto plan = plan_memory(in);
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(tokens(*plan, in), 992);
  EXPECT_NE(plan->warning.find("992"), std::string::npos) << plan->warning;
  in.max_total_tokens = 10000000;
  const auto much = plan_memory(in);
  ASSERT_FALSE(much.ok());
  EXPECT_EQ(much.error().param, "max-total-tokens");
  EXPECT_NE(much.error().message.find("450000"), std::string::npos) << much.error().message;
  in.max_total_tokens = 15;
  EXPECT_FALSE(plan_memory(in).ok());
}

TEST(LoadProgress, Text) {
  EXPECT_EQ(progress_text({1200000000, 4800000000, 2.0}),
            "1.20 of 4.80 GB (25%), 0.60 GB/s, 6 s left");
  EXPECT_EQ(progress_text({4800000000, 4800000000, 8.0}), "4.80 of 4.80 GB (100%), 0.60 GB/s");
  EXPECT_EQ(progress_text({0, 4800000000, 0}), "0.00 of 4.80 GB (0%), 0.00 GB/s");
}

}  // namespace
}  // namespace capstan::app
