// Speculation changes how many steps a text takes, never the text: tokens, log-probabilities, stop
// reasons and counts equal those without, whatever is asked for and whoever else is there.
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "engine/engine_harness.h"

namespace capstan::engine {
namespace {

/// A model that mostly goes on as it began, so that drafts hold often: (3 t + 1) mod vocabulary
/// after t, unless the hash of the whole prefix wants something else much more.
NullModelOptions habitual(float habit = 5, int64_t vocab = 16) {
  NullModelOptions options;
  options.vocab_size = vocab;
  options.after_forward = [habit, vocab](const model::ForwardBatch& batch, MatrixView logits) {
    for (size_t i = 0; i < batch.logit_rows.size(); ++i) {
      const int32_t token = batch.tokens[static_cast<size_t>(batch.logit_rows[i])];
      logits.row(static_cast<int64_t>(i))[(3 * token + 1) % vocab] += habit;
    }
  };
  return options;
}

EngineConfig drafting(EngineConfig config, bool adaptive = false, int drafts = 7) {
  config.speculation.source = SpeculationConfig::Source::kNgram;
  config.speculation.max_drafts = drafts;
  config.speculation.adaptive = adaptive;
  return config;
}

/// Requests of every kind, some alike so that they share prefixes.
std::vector<EngineRequest> everything(int count) {
  std::mt19937 random(11);
  std::vector<EngineRequest> requests;
  for (int i = 0; i < count; ++i) {
    EngineRequest r;
    r.prompt = prompt_of(3 + static_cast<int>(random() % 60), 1 + random() % 5, 16);
    SamplingParams& s = r.sampling;
    s.max_new_tokens = 1 + static_cast<int32_t>(random() % 120);
    s.temperature = random() % 2 == 0 ? 0 : 0.7;
    s.seed = static_cast<int64_t>(random() % 1000);
    if (random() % 4 == 0) s.top_k = 3;
    if (random() % 4 == 0) s.top_p = 0.8;
    if (random() % 4 == 0) s.min_p = 0.1;
    if (random() % 4 == 0) s.frequency_penalty = 0.2;
    if (random() % 4 == 0) s.presence_penalty = 0.5;
    if (random() % 4 == 0) s.repetition_penalty = 1.1;
    if (random() % 3 == 0) s.stop_token_ids = {static_cast<int32_t>(random() % 16)};
    if (random() % 3 == 0)
      s.min_new_tokens = std::min(s.max_new_tokens, static_cast<int32_t>(random() % 30));
    if (random() % 5 == 0) s.logit_bias = {{3, 2.0f}};
    if (random() % 3 == 0) s.logprobs = true;
    if (random() % 4 == 0) s.top_logprobs = 2;
    if (random() % 6 == 0) s.logprob_start = 1;
    r.choice_index = static_cast<int>(random() % 2);
    requests.push_back(std::move(r));
  }
  return requests;
}

void expect_same(Output& a, Output& b, size_t number) {
  a.wait();
  b.wait();
  ASSERT_EQ(a.tokens(), b.tokens()) << "request " << number;
  EXPECT_EQ(a.finish(), b.finish()) << "request " << number;
  EXPECT_EQ(a.last().matched_token, b.last().matched_token);
  const auto entries = [](const Output& output) {
    std::vector<OutputToken> all;
    for (const OutputEvent& event : output.events()) {
      all.insert(all.end(), event.tokens.begin(), event.tokens.end());
    }
    return all;
  };
  const std::vector<OutputToken> x = entries(a), y = entries(b);
  for (size_t i = 0; i < x.size(); ++i) {
    EXPECT_EQ(x[i].logprob, y[i].logprob) << "request " << number << ", token " << i;
    ASSERT_EQ(x[i].top.size(), y[i].top.size());
    for (size_t j = 0; j < x[i].top.size(); ++j) {
      EXPECT_EQ(x[i].top[j].token, y[i].top[j].token);
      EXPECT_EQ(x[i].top[j].logprob, y[i].top[j].logprob);
    }
  }
}

void expect_same_texts(const EngineConfig& plain, const EngineConfig& drafted) {
  Harness a(plain, habitual()), b(drafted, habitual());
  for (int round = 0; round < 2; ++round) {  // cold, then with a cache
    std::vector<std::pair<Output*, Output*>> pairs;
    for (const EngineRequest& request : everything(40)) {
      pairs.emplace_back(&a.submit(request), &b.submit(request));
    }
    for (size_t i = 0; i < pairs.size(); ++i) {
      expect_same(*pairs[i].first, *pairs[i].second, i);
      if (::testing::Test::HasFailure()) return;
    }
  }
  const EngineStats stats = b.engine().stats();
  if (!drafted.speculation.adaptive) {
    EXPECT_GT(stats.spec_accepted_tokens, stats.spec_verify_count / 8) << "too easy";
    EXPECT_GT(stats.spec_draft_tokens, stats.spec_accepted_tokens + 100) << "too easy";
  }
  a.expect_clean();
  b.expect_clean();
}

TEST(Speculation, TextsAreTheSame) { expect_same_texts(small_config(), drafting(small_config())); }

TEST(Speculation, TextsAreTheSameWithDraftsByMeasurement) {
  expect_same_texts(small_config(), drafting(small_config(), true));
}

TEST(Speculation, TextsAreTheSameInATinyPool) {
  EngineConfig config = small_config();
  config.scheduler.page_size = 4;
  config.scheduler.num_pages = 60;
  config.scheduler.conservativeness = 0;
  config.scheduler.chunked_prefill_size = 16;
  expect_same_texts(config, drafting(config));
}

TEST(Speculation, TextsAreTheSameWithPagesOfOneToken) {
  EngineConfig config = small_config();
  config.scheduler.page_size = 1;
  config.scheduler.num_pages = 700;
  config.scheduler.disable_radix_cache = true;
  expect_same_texts(config, drafting(config, false, 3));
}

TEST(Speculation, SavesSteps) {
  NullModelOptions always = habitual(100);  // a pure habit
  Harness h(drafting(small_config()), always);
  EngineRequest r = greedy({1, 4, 13, 8, 9, 12, 5, 0, 1, 4}, 200);
  Output& output = h.submit(r).wait();
  EXPECT_EQ(output.tokens().size(), 200u);
  EXPECT_LE(output.last().decode_steps, 30) << "eight tokens a step";
  h.expect_clean();  // the step's figures are published after its tokens
  const EngineStats stats = h.engine().stats();
  EXPECT_EQ(stats.spec_verify_count, static_cast<uint64_t>(output.last().decode_steps));
  EXPECT_GT(stats.spec_accept_length, 6);
  EXPECT_LE(stats.spec_accept_length, 8);
  EXPECT_GT(stats.spec_accept_rate, 0.9);
}

TEST(Speculation, AnEndIdAmongDraftsEndsTheText) {
  Harness h(drafting(small_config()), habitual(100));
  EngineRequest r = greedy({1, 4, 13, 8, 9, 12, 5, 0, 1, 4}, 200);
  r.sampling.stop_token_ids = {5};
  Output& output = h.submit(r).wait();
  const std::vector<int32_t> tokens = output.tokens();
  EXPECT_EQ(output.finish(), FinishKind::kStop);
  EXPECT_EQ(output.last().matched_token, 5);
  EXPECT_EQ(tokens, (std::vector<int32_t>{13, 8, 9, 12, 5}));
  EXPECT_EQ(output.last().decode_steps, 1) << "one token of the prefill, four of one step";
}

TEST(Speculation, CancelledRequestsLeaveNothing) {
  Harness h(drafting(small_config()), habitual());
  std::mt19937 random(3);
  std::vector<Output*> outputs;
  for (int i = 0; i < 60; ++i) {
    EngineRequest r = greedy(prompt_of(20, 1 + random() % 4, 16), 1000);
    r.sampling.ignore_eos = true;
    outputs.push_back(&h.submit(std::move(r)));
    if (random() % 2 == 0) {
      const FinishKind kind = random() % 2 == 0 ? FinishKind::kStop : FinishKind::kAbort;
      h.engine().cancel(outputs[random() % outputs.size()]->id, kind);
    }
  }
  for (Output* output : outputs) h.engine().cancel(output->id);
  for (Output* output : outputs) output->wait();
  h.expect_clean();
}

TEST(Speculation, AFailedStepHurtsOnlyItsRequests) {
  NullModelOptions options = habitual();
  std::atomic<bool> fail{false};
  options.before_forward = [&](const model::ForwardBatch& batch) -> Status {
    if (fail && batch.tokens.size() > 1 && batch.sequences.size() == 1 && fail.exchange(false)) {
      return internal_error("broken");
    }
    return {};
  };
  Harness h(drafting(small_config()), options);
  const std::vector<int32_t> expected = h.submit(greedy(prompt_of(20, 1, 16), 50)).wait().tokens();
  fail = true;
  EXPECT_EQ(h.submit(greedy(prompt_of(20, 2, 16), 500)).wait().finish(), FinishKind::kAbort);
  EXPECT_EQ(h.submit(greedy(prompt_of(20, 1, 16), 50)).wait().tokens(), expected);
  h.expect_clean();
}

EngineConfig predicting(EngineConfig config, bool adaptive = false) {
  config.speculation.source = SpeculationConfig::Source::kNextn;
  config.speculation.max_drafts = 3;
  config.speculation.adaptive = adaptive;
  return config;
}

NullModelOptions with_draft_layer() {
  NullModelOptions options;
  options.draft = true;
  options.vocab_size = 16;
  return options;
}

// The null model's draft layer is always right if rows, tokens and hidden states are: anything
// rejected would show an error in the wiring.
TEST(Speculation, ThePredictionLayerGetsTheRightStates) {
  for (const int page_size : {1, 4, 16}) {
    for (const int chunk : {16, -1}) {
      EngineConfig config = predicting(small_config());
      config.scheduler.page_size = page_size;
      config.scheduler.num_pages = 4096 / page_size;
      config.scheduler.chunked_prefill_size = chunk;
      Harness h(config, with_draft_layer());
      std::vector<Output*> outputs;
      for (uint32_t i = 0; i < 8; ++i) {
        const int length = 5 + 9 * static_cast<int>(i % 5);
        // Different from the first token on: the last row of a shared prefix was made with the
        // token that followed elsewhere.
        std::vector<int32_t> prompt = prompt_of(length, 1 + i % 5, 16);
        prompt[0] = static_cast<int32_t>(i % 5);
        outputs.push_back(&h.submit(greedy(std::move(prompt), 60)));
      }
      for (Output* output : outputs) {
        EXPECT_EQ(output->wait().tokens(), h.expected_greedy(output->request.prompt, 60));
      }
      h.expect_clean();
      const EngineStats stats = h.engine().stats();
      EXPECT_GT(stats.spec_draft_tokens, 0u);
      EXPECT_EQ(stats.spec_accepted_tokens, stats.spec_draft_tokens)
          << "page " << page_size << ", chunk " << chunk;
      // A page of one token leaves no place for the second draft's row when all is accepted.
      if (page_size == 16) {
        // Over the whole run: the last window may hold no more than the ends of texts.
        const auto accepted = static_cast<double>(stats.spec_accepted_tokens);
        EXPECT_GT(1 + accepted / static_cast<double>(stats.spec_verify_count), 3);
      }
    }
  }
}

TEST(Speculation, TextsAreTheSameWithAPredictionLayer) {
  for (const bool adaptive : {false, true}) {
    EngineConfig plain = small_config();
    plain.scheduler.num_pages = 40;
    plain.scheduler.conservativeness = 0;
    plain.scheduler.chunked_prefill_size = 32;
    Harness a(plain, with_draft_layer()), b(predicting(plain, adaptive), with_draft_layer());
    std::vector<std::pair<Output*, Output*>> pairs;
    for (const EngineRequest& request : everything(40)) {
      pairs.emplace_back(&a.submit(request), &b.submit(request));
    }
    for (size_t i = 0; i < pairs.size(); ++i) expect_same(*pairs[i].first, *pairs[i].second, i);
    b.expect_clean();
  }
}

TEST(Speculation, APredictionLayerIsNeeded) {
  const auto engine =
      Engine::create(std::make_unique<NullModel>(NullModelOptions{}), predicting(small_config()));
  ASSERT_FALSE(engine.ok());
  EXPECT_EQ(engine.error().param, "speculative-algorithm");
}

// Three sampled tokens after a prompt that invites drafts: frequencies of all 64 outcomes against
// the model's probabilities. 103.44: chi-square of 63 degrees of freedom at p = 1e-3.
TEST(Speculation, SampledTextsHaveTheModelsDistribution) {
  NullModelOptions options;
  options.vocab_size = 4;
  options.logit_range = 2;
  options.seed = 9;
  EngineConfig config = drafting(small_config(), false, 3);
  Harness h(config, options);
  const std::vector<int32_t> prompt = {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 0, 2, 1, 3, 3, 2, 0, 0, 1};
  const auto probabilities = [&](const std::vector<int32_t>& tokens) {
    std::vector<double> p;
    double total = 0;
    for (const float logit : h.model().expected_logits(tokens)) {
      p.push_back(std::exp(static_cast<double>(logit)));
      total += p.back();
    }
    for (double& value : p) value /= total;
    return p;
  };
  constexpr int kTexts = 6000;
  std::map<std::vector<int32_t>, int> counts;
  std::vector<Output*> outputs;
  for (int i = 0; i < kTexts; ++i) {
    EngineRequest r;
    r.prompt = prompt;
    r.sampling.temperature = 1;
    // One more than is counted: the last of a text is never drafted for.
    r.sampling.max_new_tokens = 4;
    r.sampling.seed = i;
    outputs.push_back(&h.submit(std::move(r)));
  }
  for (Output* output : outputs) {
    std::vector<int32_t> tokens = output->wait().tokens();
    tokens.resize(3);
    ++counts[tokens];
  }
  const EngineStats stats = h.engine().stats();
  EXPECT_GT(stats.spec_accepted_tokens, kTexts / 10u);
  EXPECT_GT(stats.spec_draft_tokens, stats.spec_accepted_tokens + kTexts / 10u);
  double chi_square = 0;
  for (int code = 0; code < 64; ++code) {
    const std::vector<int32_t> text = {code / 16, code / 4 % 4, code % 4};
    std::vector<int32_t> context = prompt;
    double p = 1;
    for (const int32_t token : text) {
      p *= probabilities(context)[static_cast<size_t>(token)];
      context.push_back(token);
    }
    const double expected = kTexts * p;
    ASSERT_GT(expected, 5);
    chi_square += (counts[text] - expected) * (counts[text] - expected) / expected;
  }
  EXPECT_LT(chi_square, 103.44);
}

}  // namespace
}  // namespace capstan::engine
