// What requests generate: independent of company, cache, chunks and retraction.
#include "engine/engine.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "engine/engine_harness.h"
#include "engine/reference_sampling.h"

namespace capstan::engine {
namespace {

TEST(Engine, GreedyFollowsTheModel) {
  Harness h;
  const auto prompt = prompt_of(37, 1);
  Output& out = h.submit(greedy(prompt, 50));
  out.wait();
  EXPECT_EQ(out.tokens(), h.expected_greedy(prompt, 50));
  EXPECT_EQ(out.finish(), FinishKind::kLength);
  EXPECT_EQ(out.last().prompt_tokens, 37);
}

// Case 66 of server-api.md: alone, in a batch, cold, warm, any chunk, any page.
TEST(Engine, GreedyDoesNotDependOnCompany) {
  for (const int page_size : {1, 4, 16}) {
    for (const int chunk : {16, 48, -1}) {
      EngineConfig config = small_config();
      config.scheduler.page_size = page_size;
      config.scheduler.num_pages = 4096 / page_size;
      config.scheduler.chunked_prefill_size = chunk;
      Harness h(config);
      for (int round = 0; round < 2; ++round) {  // second round: warm
        std::vector<Output*> outs;
        for (uint32_t i = 0; i < 8; ++i) {
          // Three prompts share a long prefix.
          auto prompt =
              prompt_of(i % 3 == 0 ? 90 : 20 + static_cast<int>(i) * 13, i % 3 == 0 ? 5 : i);
          if (i % 3 == 0) prompt.push_back(static_cast<int32_t>(i));
          outs.push_back(&h.submit(greedy(prompt, 30)));
        }
        for (Output* out : outs) {
          out->wait();
          EXPECT_EQ(out->tokens(), h.expected_greedy(out->request.prompt, 30))
              << "page " << page_size << ", chunk " << chunk << ", round " << round;
        }
        if (round == 1) {
          EXPECT_GT(outs[0]->last().cached_tokens, 0);
        }
      }
      h.expect_clean();
    }
  }
}

TEST(Engine, SeedsReproduceUnderLoad) {
  EngineRequest sampled;
  sampled.prompt = prompt_of(20, 3);
  sampled.sampling.max_new_tokens = 40;
  sampled.sampling.seed = 1;
  std::vector<int32_t> alone;
  {
    Harness h;
    alone = h.submit(sampled).wait().tokens();
  }
  EngineConfig config = small_config();
  config.scheduler.chunked_prefill_size = 16;
  config.random_seed = 77;  // must not matter for a seeded request
  Harness h(config);
  std::vector<Output*> others;
  for (uint32_t i = 0; i < 6; ++i) {
    EngineRequest noise;
    noise.prompt = prompt_of(50 + static_cast<int>(i), i + 10);
    noise.sampling.max_new_tokens = 60;
    others.push_back(&h.submit(noise));
  }
  EXPECT_EQ(h.submit(sampled).wait().tokens(), alone);
  sampled.sampling.seed = 2;
  EXPECT_NE(h.submit(sampled).wait().tokens(), alone);
  sampled.sampling.seed = 1;
  sampled.choice_index = 1;
  EXPECT_NE(h.submit(sampled).wait().tokens(), alone);
  for (Output* o : others) o->wait();
}

TEST(Engine, UnseededRequestsDifferButRepeatWithTheProcessSeed) {
  const auto run = [](uint64_t process_seed) {
    EngineConfig config = small_config();
    config.random_seed = process_seed;
    Harness h(config);
    EngineRequest r;
    r.prompt = prompt_of(10, 1);
    r.sampling.max_new_tokens = 30;
    auto first = h.submit(r).wait().tokens();
    auto second = h.submit(r).wait().tokens();
    EXPECT_NE(first, second);
    first.insert(first.end(), second.begin(), second.end());
    return first;
  };
  EXPECT_EQ(run(5), run(5));
  EXPECT_NE(run(5), run(6));
}

TEST(Engine, EosAndStopIdsEndTheRequest) {
  NullModelOptions model;
  model.vocab_size = 12;
  model.eos_token_ids = {3};
  Harness h(small_config(), model);
  for (uint32_t seed = 0; seed < 12; ++seed) {
    EngineRequest r = greedy(prompt_of(9, seed, 12), 60);
    r.sampling.stop_token_ids = {7};
    const auto free_run = h.expected_greedy(r.prompt, 60);
    auto stop =
        std::find_if(free_run.begin(), free_run.end(), [](int32_t t) { return t == 3 || t == 7; });
    Output& out = h.submit(r).wait();
    if (stop == free_run.end()) {
      EXPECT_EQ(out.finish(), FinishKind::kLength);
      EXPECT_EQ(out.tokens(), free_run);
      continue;
    }
    const std::vector<int32_t> until(free_run.begin(), stop + 1);
    EXPECT_EQ(out.tokens(), until);  // the stop token is counted
    // On the last permitted token length comes first.
    const bool last = until.size() == 60;
    EXPECT_EQ(out.finish(), last ? FinishKind::kLength : FinishKind::kStop);
    if (!last) {
      EXPECT_EQ(out.last().matched_token, *stop);
    }

    r.sampling.ignore_eos = true;
    EXPECT_EQ(h.submit(r).wait().tokens(), free_run);

    r.sampling.ignore_eos = false;
    r.sampling.min_new_tokens = 40;
    Output& longer = h.submit(r).wait();
    EXPECT_GE(longer.tokens().size(), 40u);
    for (size_t i = 0; i < 40; ++i) {
      EXPECT_NE(longer.tokens()[i], 3);
      EXPECT_NE(longer.tokens()[i], 7);
    }
  }
}

TEST(Engine, ContextEndIsLength) {
  EngineConfig config = small_config();
  config.scheduler.context_length = 50;
  Harness h(config);
  Output& out = h.submit(greedy(prompt_of(40, 1), 1000)).wait();
  EXPECT_EQ(out.tokens().size(), 10u);
  EXPECT_EQ(out.finish(), FinishKind::kLength);
}

TEST(Engine, PrefillOnlyRequestFillsTheCache) {
  Harness h;
  const auto prompt = prompt_of(100, 4);
  Output& out = h.submit(greedy(prompt, 0)).wait();
  EXPECT_TRUE(out.tokens().empty());
  EXPECT_EQ(out.finish(), FinishKind::kLength);
  Output& second = h.submit(greedy(prompt, 5)).wait();
  EXPECT_GT(second.last().cached_tokens, 0);
  EXPECT_EQ(second.tokens(), h.expected_greedy(prompt, 5));
}

TEST(Engine, PenaltiesChangeWhatIsGenerated) {
  Harness h;
  EngineRequest r = greedy(prompt_of(12, 2), 40);
  r.sampling.frequency_penalty = 1.1;
  r.sampling.presence_penalty = 0.6;
  r.sampling.repetition_penalty = 1.4;
  r.sampling.logit_bias = {{5, 0.9f}};
  Output& out = h.submit(r).wait();
  std::vector<int32_t> context = r.prompt, generated;
  for (int step = 0; step < 40; ++step) {
    const auto x = reference::adjust(h.model().expected_logits(context), r.sampling, generated);
    const auto best = static_cast<int32_t>(std::max_element(x.begin(), x.end()) - x.begin());
    generated.push_back(best);
    context.push_back(best);
  }
  EXPECT_EQ(out.tokens(), generated);
  EXPECT_NE(generated, h.expected_greedy(r.prompt, 40));
}

TEST(Engine, PromptLogprobsAcrossChunksAndCache) {
  EngineConfig config = small_config();
  config.scheduler.chunked_prefill_size = 16;
  Harness h(config);
  EngineRequest r = greedy(prompt_of(75, 6), 3);
  h.submit(r).wait();  // warms the cache, which must not swallow rows
  for (const int32_t start : {0, 20, 74}) {
    r.sampling.logprob_start = start;
    r.sampling.logprobs = true;
    r.sampling.top_logprobs = 2;
    Output& out = h.submit(r).wait();
    const auto& entries = out.events().front().prompt_logprobs;
    ASSERT_EQ(entries.size(), 75u - static_cast<size_t>(start));
    EXPECT_TRUE(std::isnan(entries[0].logprob));
    for (size_t i = 0; i < entries.size(); ++i) {
      const auto position = static_cast<size_t>(start) + i;
      EXPECT_EQ(entries[i].token, r.prompt[position]);
      if (i == 0) continue;
      const auto logits = h.model().expected_logits(std::span(r.prompt).first(position));
      const auto p = reference::softmax({logits.begin(), logits.end()}, 1);
      EXPECT_NEAR(entries[i].logprob, std::log(p[static_cast<size_t>(entries[i].token)]), 2e-5);
      EXPECT_EQ(entries[i].top.size(), 2u);
    }
    EXPECT_EQ(out.tokens(), h.expected_greedy(r.prompt, 3));
  }
}

TEST(Engine, RefusalsNameTheFieldAndTheNumbers) {
  EngineConfig config = small_config();
  config.scheduler.context_length = 100;
  Harness h(config);
  const auto refused = [&](EngineRequest r, const char* param, const char* text) {
    const auto result = h.engine().submit(std::move(r), [](OutputEvent&&) { FAIL(); });
    ASSERT_FALSE(result.ok());
    EXPECT_EQ(result.error().param, param);
    EXPECT_NE(result.error().message.find(text), std::string::npos) << result.error().message;
  };
  refused(greedy({}, 5), "input_ids", "empty");
  refused(greedy(prompt_of(100, 1), 5), "input_ids", "is longer than the model's context length");
  refused(greedy({1, 64}, 5), "input_ids", "64");
  refused(greedy({1, -1}, 5), "input_ids", "-1");
  EngineRequest r = greedy({1}, 5);
  r.sampling.top_p = 0;
  refused(r, "top_p", "0");
}

TEST(Engine, PromptBeyondThePoolIsRefusedAtOnce) {
  EngineConfig config = small_config();
  config.scheduler.num_pages = 8;
  config.scheduler.page_size = 4;
  Harness h(config);
  const auto result = h.engine().submit(greedy(prompt_of(40, 1), 5), [](OutputEvent&&) {});
  ASSERT_FALSE(result.ok());
  EXPECT_NE(result.error().message.find("40"), std::string::npos);
  EXPECT_NE(result.error().message.find("32"), std::string::npos);
  // A prompt that fits runs, and ends when the pool does.
  Output& out = h.submit(greedy(prompt_of(20, 1), 500)).wait();
  EXPECT_EQ(out.finish(), FinishKind::kLength);
  EXPECT_EQ(out.tokens().size(), 12u);
}

// Case 109: memory for a few of them only; outputs as if alone.
TEST(Engine, RetractionKeepsOutputs) {
  EngineConfig config = small_config();
  config.scheduler.page_size = 4;
  config.scheduler.num_pages = 40;
  config.scheduler.conservativeness = 0;  // admit more than fits
  config.scheduler.clip_max_new_tokens = 1;
  Harness h(config);
  h.engine().set_paused(true);  // all six meet in the pool, however slowly they are submitted
  std::vector<Output*> outs;
  for (uint32_t i = 0; i < 6; ++i) {
    EngineRequest r = greedy(prompt_of(15, i), 60);
    r.sampling.frequency_penalty = 0.5;  // counts must survive the recomputation
    if (i % 2 == 1) {
      r.sampling.temperature = 1;
      r.sampling.seed = 9;
    }
    outs.push_back(&h.submit(r));
  }
  h.engine().set_paused(false);
  int retractions = 0;
  for (Output* out : outs) {
    out->wait();
    EXPECT_EQ(out->finish(), FinishKind::kLength);
    EXPECT_EQ(out->tokens().size(), 60u);
    retractions += out->last().retractions;
  }
  EXPECT_GT(retractions, 0);
  for (Output* out : outs) {
    Harness alone;
    EXPECT_EQ(alone.submit(out->request).wait().tokens(), out->tokens());
  }
  h.expect_clean();
}

}  // namespace
}  // namespace capstan::engine
