// Drafts of a real (tiny) DeepSeek-V3's multi-token prediction layer: texts are those without it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>

#include "engine/engine_harness.h"
#include "engine/nextn_checkpoint.h"

namespace capstan::engine {
namespace {

struct Served {
  model::LoadedModel loaded;
  std::unique_ptr<Engine> engine;
  std::deque<Output> outputs;

  explicit Served(EngineConfig config) {
    model::LoadOptions load;
    load.draft = config.speculation.source == SpeculationConfig::Source::kNextn;
    load.mla_form = kernels::MlaForm::kAbsorbed;
    loaded = model::load(nextn_checkpoint(),
                         {.isa = kernels::supported_isas().back(), .quantise_activations = false},
                         /*threads=*/1, load);
    config.kv_dtype = DType::kF32;
    config.pool = loaded.pool.get();
    auto created = Engine::create(std::move(loaded.model), config);
    EXPECT_TRUE(created.ok()) << created.error().message;
    engine = std::move(created).value();
  }
  ~Served() { engine.reset(); }  // before the threads it computes on, and before the outputs

  Output& submit(EngineRequest request) {
    Output& out = outputs.emplace_back();
    const auto id = engine->submit(std::move(request), out.sink());
    EXPECT_TRUE(id.ok()) << id.error().message;
    if (id.ok()) out.id = *id;
    return out;
  }
  /// Nothing runs, waits or holds pages.
  void expect_clean() {
    while (!engine->idle()) std::this_thread::yield();
    EXPECT_TRUE(engine->flush_cache());
    EXPECT_EQ(engine->stats().scheduler.used_tokens, 0);
  }
};

EngineConfig config_of(int page_size, int chunk) {
  EngineConfig config = small_config();
  config.scheduler.context_length = 1024;
  config.scheduler.page_size = page_size;
  config.scheduler.num_pages = 4096 / page_size;
  config.scheduler.chunked_prefill_size = chunk;
  return config;
}

EngineConfig predicting(EngineConfig config, bool adaptive = false) {
  config.speculation.source = SpeculationConfig::Source::kNextn;
  config.speculation.max_drafts = 3;
  config.speculation.adaptive = adaptive;
  return config;
}

std::vector<EngineRequest> requests(int count, int32_t tokens) {
  std::vector<EngineRequest> out;
  for (uint32_t i = 0; i < static_cast<uint32_t>(count); ++i) {
    EngineRequest r =
        greedy(prompt_of(18 + 13 * static_cast<int>(i % 4), 40 + i % 5, 1024), tokens);
    r.sampling.ignore_eos = true;
    r.sampling.logprobs = true;
    r.sampling.seed = 5;
    if (i % 4 == 3) r.sampling.temperature = 0.3;
    if (i % 5 == 4) r.sampling.repetition_penalty = 1.1;
    out.push_back(std::move(r));
  }
  return out;
}

/// Twice, so that the second round finds its prompts cached.
void expect_same(Served& plain, Served& drafted, const std::vector<EngineRequest>& all) {
  for (int round = 0; round < 2; ++round) {
    std::vector<std::pair<Output*, Output*>> pairs;
    for (const EngineRequest& r : all) pairs.emplace_back(&plain.submit(r), &drafted.submit(r));
    for (size_t i = 0; i < pairs.size(); ++i) {
      Output &x = pairs[i].first->wait(), &y = pairs[i].second->wait();
      ASSERT_EQ(x.tokens(), y.tokens()) << "request " << i << ", round " << round;
      EXPECT_EQ(x.finish(), y.finish());
      EXPECT_EQ(x.last().tokens.back().logprob, y.last().tokens.back().logprob);
      if (round == 1) {
        EXPECT_GT(y.last().cached_tokens, 0) << "request " << i;
      }
    }
  }
}

void expect_good_drafts(const EngineStats& stats) {
  EXPECT_GT(stats.spec_draft_tokens, stats.spec_accepted_tokens) << "none was ever wrong";
  EXPECT_GT(stats.spec_accepted_tokens, stats.spec_draft_tokens / 4);
  EXPECT_GT(stats.spec_verify_count, 0u);
}

TEST(Nextn, TextsAreTheSame) {
  struct Shape {
    int page_size, chunk;
  };
#ifdef CAPSTAN_TSAN
  constexpr Shape kShapes[] = {{4, 16}};
#else
  constexpr Shape kShapes[] = {{4, 16}, {16, -1}};
#endif
  for (const auto& [page_size, chunk] : kShapes) {
    const EngineConfig config = config_of(page_size, chunk);
    Served plain(config), drafted(predicting(config));
    expect_same(plain, drafted, requests(10, 40));
    drafted.expect_clean();
    expect_good_drafts(drafted.engine->stats());
    EXPECT_EQ(plain.engine->stats().spec_draft_tokens, 0u);
    // The prediction layer's experts are counted behind the model's.
    EXPECT_EQ(drafted.engine->expert_load().size(), plain.engine->expert_load().size() + 1);
  }
}

TEST(Nextn, TextsAreTheSameWhenRequestsArePushedBack) {
  EngineConfig config = config_of(4, 16);
  config.scheduler.num_pages = 60;
  config.scheduler.conservativeness = 0;
  config.scheduler.disable_radix_cache = true;
  Served plain(config), drafted(predicting(config));
  std::vector<std::pair<Output*, Output*>> pairs;
  drafted.engine->set_paused(true);  // all ten meet in the pool
  for (const EngineRequest& r : requests(10, 60)) {
    pairs.emplace_back(&plain.submit(r), &drafted.submit(r));
  }
  drafted.engine->set_paused(false);
  for (const auto& [x, y] : pairs) EXPECT_EQ(x->wait().tokens(), y->wait().tokens());
  drafted.expect_clean();
  const EngineStats stats = drafted.engine->stats();
  EXPECT_GT(stats.scheduler.retractions, 0);
  expect_good_drafts(stats);
}

// The layer follows some texts, on some of their pages, as the times of this machine have it: which
// is another matter each time, and never one of the text.
TEST(Nextn, TextsAreTheSameWhereTheLayerComesAndGoes) {
  const EngineConfig config = config_of(4, 16);
  Served plain(config), drafted(predicting(config, true));
  expect_same(plain, drafted, requests(12, 60));
  expect_same(plain, drafted, requests(1, 200));
  expect_same(plain, drafted, requests(7, 30));
  drafted.expect_clean();
}

TEST(Nextn, CancelledRequestsLeaveNothing) {
  Served drafted(predicting(config_of(4, 16)));
  const std::vector<EngineRequest> all = requests(12, 400);
  for (size_t i = 0; i < all.size(); ++i) {
    drafted.submit(all[i]);
    if (i % 2 == 1) drafted.engine->cancel(drafted.outputs[i / 2].id);
  }
  for (Output& out : drafted.outputs) drafted.engine->cancel(out.id);
  for (Output& out : drafted.outputs) out.wait();
  drafted.expect_clean();
  // Whoever comes next is served as ever.
  Served plain(config_of(4, 16));
  const EngineRequest next = requests(1, 30)[0];
  EXPECT_EQ(drafted.submit(next).wait().tokens(), plain.submit(next).wait().tokens());
}

}  // namespace
}  // namespace capstan::engine
