// Data-parallel attention: several schedulers, one model, and the texts of one engine alone.
#include "engine/dp_engine.h"

#include <gtest/gtest.h>

#include <set>

#include "engine/nextn_checkpoint.h"
#include "engine/split_engine.h"

namespace capstan::engine {
namespace {

EngineConfig config() { return split_config(64); }

model::LoadOptions groups(int n, int ep = 1) {
  model::LoadOptions load;
  load.shard.dp_size = n;
  load.shard.ep_size = ep;
  load.mla_form = kernels::MlaForm::kAbsorbed;
  return load;
}

std::string llama() { return model::testdata("tiny-llama3-f32"); }

EngineRequest request(int length, uint32_t seed, int tokens) {
  EngineRequest r = greedy(prompt_of(length, seed, 100), tokens);
  r.sampling.ignore_eos = true;
  return r;
}

/// Two rounds of greedy continuations, the second with its prompts cached.
std::vector<std::vector<int32_t>> texts(const std::string& path, int ranks, EngineConfig c,
                                        const model::LoadOptions& load) {
  SplitEngine split(path, ranks, c, load);
  std::vector<std::vector<int32_t>> out;
  for (int round = 0; round < 2; ++round) {
    std::vector<Output*> outs;
    for (const int length : {3, 40, 17, 90, 61}) {
      // Of different lengths, so that groups come to have nothing to do while others go on.
      outs.push_back(&split.submit(request(length, static_cast<uint32_t>(length), 8 + length / 3)));
    }
    for (Output* o : outs) {
      EXPECT_EQ(o->wait().finish(), FinishKind::kLength) << o->last().message;
      out.push_back(o->tokens());
    }
  }
  split.stop();
  EXPECT_TRUE(split.failures().empty());
  for (int r = 1; r < ranks; ++r) EXPECT_EQ(split.steps(r), split.steps(0)) << r;
  return out;
}

TEST(DpEngine, GreedyTextsDoNotDependOnGroups) {
  const auto one = texts(llama(), 1, config(), groups(1));
  EXPECT_EQ(texts(llama(), 2, config(), groups(2)), one);
  EXPECT_EQ(texts(llama(), 4, config(), groups(2)), one);
  EXPECT_EQ(texts(llama(), 4, config(), groups(4)), one);
}

TEST(DpEngine, LatentAttentionExpertsAndDrafts) {
  const auto one = texts(nextn_checkpoint(), 1, config(), groups(1));
  EXPECT_EQ(texts(nextn_checkpoint(), 2, config(), groups(2, 2)), one);
  EngineConfig c = config();
  c.speculation.source = SpeculationConfig::Source::kNextn;
  c.speculation.adaptive = false;
  c.speculation.max_drafts = 2;
  EXPECT_EQ(texts(nextn_checkpoint(), 2, c, groups(2)), one);
  c.speculation.adaptive = true;  // each group decides for itself when the layer runs
  EXPECT_EQ(texts(nextn_checkpoint(), 2, c, groups(2)), one);
  c.speculation.adaptive = false;
  c.speculation.source = SpeculationConfig::Source::kNgram;
  EXPECT_EQ(texts(nextn_checkpoint(), 4, c, groups(2, 4)), one);
}

TEST(DpEngine, PrefixesAreSharedWithinAGroup) {
  SplitEngine split(llama(), 2, config(), groups(2));
  std::vector<std::vector<int32_t>> seen;
  int cached = 0;
  for (int i = 0; i < 6; ++i) {
    std::vector<Output*> both;  // one in each group
    for (int k = 0; k < 2; ++k) both.push_back(&split.submit(greedy(prompt_of(60, 5, 100), 8)));
    for (Output* out : both) {
      seen.push_back(out->wait().tokens());
      cached += out->last().cached_tokens > 0 ? 1 : 0;
    }
  }
  for (const auto& tokens : seen) EXPECT_EQ(tokens, seen[0]);
  EXPECT_GE(cached, 8);
}

TEST(DpEngine, RoomForSequencesGrowsWithTheGroups) {
  SplitEngine one(llama(), 2, config(), groups(1)), two(llama(), 2, config(), groups(2));
  const auto total = one.engine().stats().scheduler.total_tokens;
  EXPECT_EQ(two.engine().stats().scheduler.total_tokens, 2 * total);
  // Requests that fill a pool each: neither waits nor is pushed back.
  EngineConfig small = config();
  small.scheduler.num_pages = 14;
  small.scheduler.context_length = 200;
  SplitEngine split(llama(), 2, small, groups(2));
  Output& a = split.submit(request(90, 1, 100));
  Output& b = split.submit(request(90, 2, 100));
  EXPECT_EQ(a.wait().tokens().size(), 100u);
  EXPECT_EQ(b.wait().tokens().size(), 100u);
  EXPECT_EQ(a.last().retractions + b.last().retractions, 0);
}

TEST(DpEngine, RequestsSpreadAndSiblingsStay) {
  SplitEngine split(llama(), 2, config(), groups(2));
  split.engine().set_paused(true);
  std::vector<Output*> outs;
  std::set<RequestId> parities;
  for (uint32_t i = 0; i < 4; ++i) {
    outs.push_back(&split.submit(request(20, i, 4)));
    parities.insert(outs.back()->id % 2);
  }
  EXPECT_EQ(parities.size(), 2u);
  for (int c = 0; c < 3; ++c) {
    EngineRequest r = request(64, 9, 4);
    r.sibling_group = 7;
    r.choice_index = c;
    outs.push_back(&split.submit(r));
    EXPECT_EQ(outs.back()->id % 2, 7u % 2);
  }
  EXPECT_FALSE(split.engine().flush_cache());
  std::set<RequestId> ids;
  for (const Output* o : outs) ids.insert(o->id);
  EXPECT_EQ(ids.size(), outs.size());
  split.engine().set_paused(false);
  for (Output* o : outs) EXPECT_EQ(o->wait().tokens().size(), 4u);
  EXPECT_GT(outs.back()->last().cached_tokens, 0) << "its siblings' prompt";
  while (!split.engine().idle()) std::this_thread::yield();
  EXPECT_TRUE(split.engine().flush_cache());
  const EngineStats stats = split.engine().stats();
  EXPECT_EQ(stats.finished_requests, outs.size());
  EXPECT_EQ(stats.scheduler.used_tokens, 0);
}

TEST(DpEngine, AFullQueueIsNotTheLastWord) {
  EngineConfig c = config();
  c.scheduler.max_running_requests = 2;
  c.scheduler.max_queued_requests = 2;
  SplitEngine split(llama(), 2, c, groups(2));
  Engine& engine = split.engine();
  EXPECT_EQ(engine.config().scheduler.max_queued_requests, 2);
  engine.set_paused(true);
  // Siblings belong to one group, whose queue has one place; the other one's takes the second.
  std::deque<Output> outs(3);
  for (int i = 0; i < 3; ++i) {
    EngineRequest r = request(10, 1, 2);
    r.sibling_group = 4;
    r.choice_index = i;
    const auto id = engine.submit(r, outs[static_cast<size_t>(i)].sink());
    ASSERT_EQ(id.ok(), i < 2) << i;
    if (!id.ok()) {
      EXPECT_EQ(id.error().code, ErrorCode::kResourceExhausted);
    }
  }
  engine.set_paused(false);
  outs[0].wait();
  outs[1].wait();
  split.stop();
}

TEST(DpEngine, CancelReachesTheRightGroup) {
  SplitEngine split(llama(), 2, config(), groups(2));
  Output& kept = split.submit(request(10, 1, 200));
  Output& gone = split.submit(request(10, 2, 400));
  split.engine().cancel(gone.id);
  EXPECT_EQ(gone.wait().finish(), FinishKind::kAbort);
  EXPECT_EQ(kept.wait().tokens().size(), 200u);
  Output& all = split.submit(request(10, 3, 400));
  split.engine().cancel_all("enough");
  EXPECT_EQ(all.wait().last().message, "enough");
}

TEST(DpEngine, StopsWhileRequestsRun) {
  SplitEngine split(llama(), 4, config(), groups(2));
  std::vector<Output*> outs;
  for (uint32_t i = 0; i < 6; ++i) outs.push_back(&split.submit(request(30, i, 450)));
  split.stop();
  for (Output* o : outs) EXPECT_EQ(o->wait().finish(), FinishKind::kAbort);
}

}  // namespace
}  // namespace capstan::engine
