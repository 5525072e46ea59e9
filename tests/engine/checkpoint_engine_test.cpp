// The engine over real (tiny) checkpoints, against what transformers generates
// from them.
#include <gtest/gtest.h>

#include <algorithm>

#include "engine/engine_harness.h"
#include "model/golden.h"

namespace capstan::engine {
namespace {

// One compute thread: that results do not depend on their number is the kernels' own test, and
// spinning threads crawl on a machine that is busy. ThreadSanitizer slows the kernels a
// hundredfold; there one configuration is enough.
struct Shape {
  int page_size, chunk;
};
#ifdef CAPSTAN_TSAN
constexpr Shape kShapes[] = {{16, 16}};
#else
constexpr Shape kShapes[] = {{1, 16}, {16, 48}, {16, -1}};
#endif

/// An engine over a checkpoint of tests/testdata/model.
struct Served {
  model::LoadedModel loaded;
  std::unique_ptr<Engine> engine;
  std::deque<Output> outputs;

  Served(const std::string& name, EngineConfig config) {
    kernels::CpuOpsOptions options;
    options.isa = kernels::supported_isas().back();
    loaded = model::load(model::testdata(name), options, /*threads=*/1);
    config.scheduler.context_length =
        static_cast<int>(loaded.checkpoint->config().max_position_embeddings);
    config.kv_dtype = DType::kF32;
    config.pool = loaded.pool.get();
    auto created = Engine::create(std::move(loaded.model), config);
    EXPECT_TRUE(created.ok()) << created.error().message;
    engine = std::move(created).value();
  }
  ~Served() { engine.reset(); }  // before the threads it computes on, and before the outputs

  Output& submit(EngineRequest request) {
    Output& out = outputs.emplace_back();
    out.request = request;
    const auto id = engine->submit(std::move(request), out.sink());
    EXPECT_TRUE(id.ok()) << id.error().message;
    return out;
  }
};

class CheckpointEngine : public ::testing::TestWithParam<const char*> {};

TEST_P(CheckpointEngine, GreedyEqualsTransformersInAnyCompany) {
  const model::Golden golden(std::string(CAPSTAN_TESTDATA) + "/model/" + GetParam() + "/golden");
  const auto cases = {golden.get("short"), golden.get("long")};
  for (const auto& [page_size, chunk] : kShapes) {
    EngineConfig config = small_config();
    config.scheduler.page_size = page_size;
    config.scheduler.num_pages = 4096 / page_size;
    config.scheduler.chunked_prefill_size = chunk;
    Served served(GetParam(), config);
    for (int round = 0; round < 2; ++round) {  // cold, then warm
      std::vector<Output*> outs;
      for (const auto& c : cases) {
        EngineRequest r = greedy(c.prompt, static_cast<int32_t>(c.greedy.size()));
        r.sampling.ignore_eos = true;
        outs.push_back(&served.submit(r));
        r.prompt = prompt_of(30 + round, 7, 200);  // somebody else in the batch
        r.sampling.temperature = 1;
        served.submit(r);
      }
      size_t i = 0;
      for (const auto& c : cases) {
        EXPECT_EQ(outs[i++]->wait().tokens(), c.greedy)
            << "page " << page_size << ", chunk " << chunk << ", round " << round;
      }
      EXPECT_EQ(outs[0]->last().cached_tokens > 0, round == 1);
    }
    for (Output& out : served.outputs) out.wait();
  }
}

TEST_P(CheckpointEngine, SpeculationChangesNothing) {
  EngineConfig plain = small_config();
  EngineConfig drafted = plain;
  drafted.speculation.source = SpeculationConfig::Source::kNgram;
  drafted.speculation.adaptive = false;
  Served a(GetParam(), plain), b(GetParam(), drafted);
  std::vector<std::pair<Output*, Output*>> pairs;
  for (uint32_t i = 0; i < 6; ++i) {
    std::vector<int32_t> prompt = prompt_of(12, 40 + i, 200);
    for (int copy = 0; copy < 3; ++copy)
      prompt.insert(prompt.end(), prompt.begin(), prompt.begin() + 12);
    EngineRequest r = greedy(prompt, 48);
    r.sampling.ignore_eos = true;
    r.sampling.logprobs = true;
    r.sampling.seed = 5;
    if (i % 2 == 1) r.sampling.temperature = 0.3;
    if (i % 3 == 1) r.sampling.repetition_penalty = 1.2;
    pairs.emplace_back(&a.submit(r), &b.submit(r));
  }
  for (const auto& [x, y] : pairs) {
    EXPECT_EQ(x->wait().tokens(), y->wait().tokens());
    EXPECT_EQ(x->last().tokens.back().logprob, y->last().tokens.back().logprob);
  }
  EXPECT_GT(b.engine->stats().spec_draft_tokens, 50u);
}

INSTANTIATE_TEST_SUITE_P(Families, CheckpointEngine,
                         ::testing::Values("tiny-llama3-f32", "tiny-smol-bf16", "tiny-qwen2-bf16",
                                           "tiny-qwen3-f32"));

}  // namespace
}  // namespace capstan::engine
