// Steps on several nodes: cases small enough to work out by hand, and published measurements.
#include "scheduler/cluster_cost.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "scheduler/traces.h"

namespace capstan::scheduler {
namespace {

Cluster cluster(int nodes, int ranks) {
  Cluster c;
  c.nodes = nodes;
  c.ranks_per_node = ranks;
  c.memory_bandwidth = 100;
  c.flops = 1000;
  c.inside = {1, 10};
  c.between = {5, 2};
  return c;
}

ModelWork model() {
  ModelWork m;
  m.layers = 3;
  m.moe_layers = 2;
  m.hidden = 4;
  m.vocabulary = 8;
  m.undivided_bytes = 10;
  m.attention_bytes = 40;
  m.dense_bytes = 80;
  m.expert_bytes = 6;
  m.experts = 4;
  m.experts_per_token = 2;
  m.kv_bytes = 5;
  m.flops_per_token = 100;
  m.flops_per_pair = 2;
  return m;
}

StepTime decode(const Cluster& c, Split split, int64_t batch, int64_t context) {
  const auto t = decode_step(c, model(), split, batch, context);
  EXPECT_TRUE(t.ok());
  return t.ok() ? *t : StepTime{};
}

TEST(ClusterCost, AllReduceInsideANodeTakesTheCheaperWay) {
  // Everything at once: 1 + 3 * bytes / 10; in parts: 2 + 2 * 3/4 * bytes / 10. Equal at 6.67.
  EXPECT_DOUBLE_EQ(all_reduce_seconds(cluster(1, 4), 4), 1 + 1.2);
  EXPECT_DOUBLE_EQ(all_reduce_seconds(cluster(1, 4), 40), 2 + 6);
  EXPECT_DOUBLE_EQ(all_reduce_seconds(cluster(1, 1), 40), 0);
}

TEST(ClusterCost, AllReduceBetweenNodesCarriesOnePart) {
  // Of 8 bytes each of 4 ranks carries 2. Inside: 2 + 1.5 * 8 / 10; two rounds of 5 + 2 / 2.
  EXPECT_DOUBLE_EQ(all_reduce_seconds(cluster(4, 4), 8), 2 + 1.2 + 12);
  // Of 400 each carries 100: four times 5, and 1.5 * 100 / 2, are less than 2 * (5 + 50).
  EXPECT_DOUBLE_EQ(all_reduce_seconds(cluster(4, 4), 400), 2 + 60 + 20 + 75);
  // One rank per node: nothing inside. Three nodes need two rounds as well.
  EXPECT_DOUBLE_EQ(all_reduce_seconds(cluster(2, 1), 4), 5 + 2);
  EXPECT_DOUBLE_EQ(all_reduce_seconds(cluster(3, 1), 4), 10 + 4);
}

TEST(ClusterCost, ExchangesInsideAndBetweenGoSideBySide) {
  EXPECT_DOUBLE_EQ(exchange_seconds(cluster(1, 4), 20, 0), 3);
  EXPECT_DOUBLE_EQ(exchange_seconds(cluster(2, 4), 20, 4), 7);
  EXPECT_DOUBLE_EQ(exchange_seconds(cluster(2, 4), 100, 4), 11);
}

TEST(ClusterCost, ExpertsUsed) {
  EXPECT_DOUBLE_EQ(model().experts_used(0), 0);
  EXPECT_DOUBLE_EQ(model().experts_used(1), 2);
  EXPECT_DOUBLE_EQ(model().experts_used(2), 3);
  EXPECT_DOUBLE_EQ(ModelWork{}.experts_used(5), 0);
}

TEST(ClusterCost, DecodeOnOneRank) {
  // 10 + 40 + 80 of weights, 3 experts of 6 bytes in 2 layers, 2 * 7 keys of 5 bytes.
  const StepTime t = decode(cluster(1, 1), Split::kTensor, 2, 7);
  EXPECT_DOUBLE_EQ(t.memory, (130 + 36 + 70) / 100.0);
  EXPECT_DOUBLE_EQ(t.arithmetic, (200 + 28) / 1000.0);
  EXPECT_DOUBLE_EQ(t.communication, 0);
  EXPECT_DOUBLE_EQ(t.total(), 2.36);
}

TEST(ClusterCost, TensorParallelDecodeDividesWhatItCan) {
  const StepTime t = decode(cluster(1, 4), Split::kTensor, 2, 7);
  EXPECT_DOUBLE_EQ(t.memory, (10 + 120 / 4.0 + 36 / 4.0 + 70) / 100);
  EXPECT_DOUBLE_EQ(t.arithmetic, 228 / 4.0 / 1000);
  // Seven sums of 2 * 4 * 2 bytes (in parts: 2 + 2.4), and logits of 2 * 8 * 4, 3/4 from others.
  EXPECT_DOUBLE_EQ(t.communication, 7 * 4.4 + 1 + 48 / 10.0);
  EXPECT_DOUBLE_EQ(t.communication_share(), t.communication / t.total());
}

TEST(ClusterCost, DataParallelAttentionDividesRequests) {
  const StepTime t = decode(cluster(2, 2), Split::kDataAttention, 8, 7);
  const double experts = 4 * (1 - std::pow(0.5, 8)) * 6 * 2;
  EXPECT_DOUBLE_EQ(t.memory, (130 + experts / 4 + 8 * 7 * 5 / 4.0) / 100);
  // 2 tokens a rank. Away: to 2 nodes, half of it to the other: 2 * 2 / 2 * 4 = 8 bytes, then 16
  // back; inside: 2 experts, half of them on the other rank: 8, then 16.
  EXPECT_DOUBLE_EQ(t.communication, 2 * ((5 + 4) + (5 + 8)));
}

TEST(ClusterCost, PrefillReadsEveryPairOnce) {
  const auto t = prefill_step(cluster(1, 2), model(), Split::kTensor, 6, 3);
  ASSERT_TRUE(t.ok());
  // Pairs: two prompts of 1 + 2 + 3. Projections of every rank: half of them beside its share.
  EXPECT_DOUBLE_EQ(t->arithmetic, (600 + 12 * 2) / 2.0 / 1000 + 6 * 2 * 10 * 0.5 / 1000);
  // Sums of 48 bytes: 1 + 48 / 10 at once; logits of two prompts, half of them from the other.
  EXPECT_DOUBLE_EQ(t->communication, 7 * 5.8 + 1 + 32 / 10.0);
}

TEST(ClusterCost, RefusesNonsense) {
  for (const auto& change : std::vector<std::function<void(Cluster&)>>{
           [](Cluster& c) { c.nodes = 0; }, [](Cluster& c) { c.ranks_per_node = 0; },
           [](Cluster& c) { c.memory_bandwidth = 0; }, [](Cluster& c) { c.flops = -1; },
           [](Cluster& c) { c.between.bandwidth = 0; },
           [](Cluster& c) { c.inside.bandwidth = 0; }}) {
    Cluster c = cluster(2, 2);
    change(c);
    EXPECT_EQ(decode_step(c, model(), Split::kTensor, 1, 1).error().code,
              ErrorCode::kInvalidArgument);
  }
  EXPECT_FALSE(decode_step(cluster(1, 1), ModelWork{}, Split::kTensor, 1, 1).ok());
  EXPECT_FALSE(accelerator_cluster("abacus", 1).ok());
  EXPECT_FALSE(linear_cost(cluster(1, 1), model(), Split::kTensor, 0, 1, 1).ok());
}

TEST(ClusterCost, The671BShapeHasItsSize) {
  const ModelWork m = deepseek_671b();
  // Without the head in BF16 and the embedding: 671,026,419,200 parameters less two tables.
  const double table = 129280.0 * 7168;
  const double weights = m.undivided_bytes + m.attention_bytes + m.dense_bytes - 2 * table +
                         m.moe_layers * m.experts * m.expert_bytes;
  EXPECT_NEAR(weights, 671026419200 - 2 * table, 2e8) << "router and norms apart";
  EXPECT_NEAR(m.flops_per_token / 2, 37e9, 1e9);  // activated parameters, as published
  EXPECT_EQ(m.kv_bytes, 70272);
}

double milliseconds(const char* hardware, int nodes, Split split, int64_t batch, int64_t context) {
  const auto c = accelerator_cluster(hardware, nodes);
  const auto t = decode_step(*c, deepseek_671b(), split, batch, context);
  return t->total() * 1e3;
}

TEST(ClusterCost, MeetsPublishedMeasurements) {
  // These two fix the overhead of a layer and the latency between nodes.
  EXPECT_NEAR(milliseconds("h200", 1, Split::kTensor, 8, 1500), 12.8, 0.2);
  EXPECT_NEAR(milliseconds("h100", 2, Split::kTensor, 1, 1000), 1000 / 43.0, 0.4);
  // These do not. 64 streams on 8 H200: 34.6 ms, with prefill of the next prompts between.
  EXPECT_NEAR(milliseconds("h200", 1, Split::kTensor, 64, 1500), 34.6, 0.25 * 34.6);
}

TEST(ClusterCost, LinearCostAgreesWhereItIsFitted) {
  const Cluster c = *accelerator_cluster("h200", 4);
  const ModelWork m = deepseek_671b();
  const auto cost = linear_cost(c, m, Split::kTensor, 128, 2000, 4096);
  ASSERT_TRUE(cost.ok());
  StepPlan plan;
  for (int i = 0; i < 128; ++i) {
    PlanItem item;
    item.is_decode = true;
    item.count = 1;
    item.start = 1999;
    plan.items.push_back(item);
  }
  plan.decode_tokens = 128;
  const auto exact = decode_step(c, m, Split::kTensor, 128, 2000);
  EXPECT_NEAR(cost->seconds(plan), exact->total(), 1e-9);
  EXPECT_NEAR(cost->communication_seconds(plan), exact->communication, 1e-12);
  StepPlan chunk;
  chunk.prefill_tokens = 4096;
  const auto prompt = prefill_step(c, m, Split::kTensor, 4096, 1);
  EXPECT_NEAR(cost->seconds(chunk), prompt->total(), 1e-9);
}

TEST(ClusterCost, TheSimulatorCountsCommunication) {
  CostModel cost{.step = 1, .decode_token = 0.5};
  cost.communication = {.step = 2, .prefill_token = 0.1, .decode_token = 0.25};
  SchedulerConfig config;
  config.num_pages = 100;
  Arrival a;
  a.spec.prompt = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
  a.spec.max_new_tokens = a.output_tokens = 3;
  const auto result = simulate(config, cost, std::vector{a});
  ASSERT_TRUE(result.ok());
  // One prefill of 10 tokens, two decodes.
  EXPECT_DOUBLE_EQ(result->communication, (2 + 1) + 2 * 2.25);
  EXPECT_DOUBLE_EQ(result->busy, result->communication + 1 + 2 * 1.5);
  cost.communication.step = -1;
  EXPECT_EQ(simulate(config, cost, std::vector{a}).error().param, "cost");
}

}  // namespace
}  // namespace capstan::scheduler
