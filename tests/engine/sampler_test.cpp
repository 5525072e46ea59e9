#include "engine/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "engine/philox.h"
#include "engine/reference_sampling.h"

namespace capstan::engine {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<float> random_row(int64_t n, uint32_t seed, float scale = 2) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> x(static_cast<size_t>(n));
  for (float& v : x) v = normal(rng);
  return x;
}

SampleOutput sample(std::vector<float> logits, const SamplingParams& params,
                    const TokenCounts* counts = nullptr, uint64_t seed = 1, int32_t step = 0,
                    SamplerOptions options = {}, std::vector<int32_t> end_ids = {}) {
  RowSampler sampler(options);
  SampleOutput out;
  sampler.sample(
      {logits.data(), static_cast<int64_t>(logits.size()), &params, counts, end_ids, step, seed, 0},
      out);
  return out;
}

SamplingParams greedy() {
  SamplingParams p;
  p.temperature = 0;
  return p;
}

TEST(Sampler, AssumedTokensCountLikeWrittenOnes) {
  std::mt19937 random(4);
  SamplingParams params;
  params.temperature = 0;
  params.logprobs = true;
  params.frequency_penalty = 0.7;
  params.presence_penalty = 0.4;
  params.repetition_penalty = 1.3;
  for (int round = 0; round < 50; ++round) {
    std::vector<float> row(12);
    for (float& x : row) x = static_cast<float>(random() % 1000) / 100 - 4;
    TokenCounts written, all;
    std::vector<int32_t> assumed;
    for (int i = 0; i < 10; ++i) {
      const auto token = static_cast<int32_t>(random() % 8);
      all.add(token);
      i < 5 ? written.add(token) : assumed.push_back(token);
    }
    RowSampler sampler({});
    std::vector<float> a = row, b = row;
    SampleOutput x, y;
    sampler.sample({a.data(), 12, &params, &all, {}, 10, 1, 0}, x);
    sampler.sample({b.data(), 12, &params, &written, {}, 10, 1, 0, assumed}, y);
    EXPECT_EQ(a, b);
    EXPECT_EQ(x.token.token, y.token.token);
    EXPECT_EQ(x.token.logprob, y.token.logprob);
  }
}

TEST(Sampler, GreedyTakesTheLowestIdOnTies) {
  EXPECT_EQ(sample({1, 3, 2, 3}, greedy()).token.token, 1);
  EXPECT_EQ(sample({-kInf, -kInf, -5, -5}, greedy()).token.token, 2);
  SamplingParams almost = greedy();
  almost.temperature = 9e-7;
  EXPECT_EQ(sample({1, 3, 2, 3}, almost).token.token, 1);
}

TEST(Sampler, TopKOneAndTinyTopPEqualGreedy) {
  for (uint32_t seed = 0; seed < 50; ++seed) {
    const auto x = random_row(3000, seed);
    const int32_t best = sample(x, greedy()).token.token;
    SamplingParams k;
    k.top_k = 1;
    SamplingParams p;
    p.top_p = 1e-9;
    SamplingParams m;
    m.min_p = 1;
    for (int32_t step = 0; step < 5; ++step) {
      EXPECT_EQ(sample(x, k, nullptr, seed, step).token.token, best);
      EXPECT_EQ(sample(x, p, nullptr, seed, step).token.token, best);
      EXPECT_EQ(sample(x, m, nullptr, seed, step).token.token, best);
    }
  }
  // Equal logits: top-k keeps the lowest id, as greedy does.
  SamplingParams k;
  k.top_k = 1;
  for (int32_t step = 0; step < 20; ++step) {
    EXPECT_EQ(sample({1, 3, 2, 3}, k, nullptr, 5, step).token.token, 1);
  }
}

struct Filters {
  double temperature, top_p;
  int32_t top_k;
  double min_p;
};

class SamplerDistribution : public ::testing::TestWithParam<Filters> {};

// Ten thousand draws against the distribution computed plainly (server-api.md, case 70).
TEST_P(SamplerDistribution, MatchesFilteredSoftmax) {
  const Filters f = GetParam();
  SamplingParams params;
  params.temperature = f.temperature;
  params.top_p = f.top_p;
  params.top_k = f.top_k;
  params.min_p = f.min_p;
  for (const int64_t vocab : {40, 1200}) {
    const auto x = random_row(vocab, 11);
    const auto expected = reference::filtered({x.begin(), x.end()}, params);
    std::vector<int> observed(static_cast<size_t>(vocab));
    RowSampler sampler({});
    std::vector<float> row;
    for (int32_t step = 0; step < 10000; ++step) {
      row = x;
      SampleOutput out;
      sampler.sample({row.data(), vocab, &params, nullptr, {}, step, 99, 0}, out);
      ++observed[static_cast<size_t>(out.token.token)];
    }
    const auto chi = reference::chi_square(expected, observed);
    EXPECT_TRUE(chi.fits()) << "chi2 " << chi.statistic << " with " << chi.freedom
                            << " degrees of freedom, vocabulary " << vocab;
  }
}

INSTANTIATE_TEST_SUITE_P(Filters, SamplerDistribution,
                         ::testing::Values(Filters{1, 1, -1, 0}, Filters{1, 0.9, -1, 0},
                                           Filters{1, 1, -1, 0.1}, Filters{1, 1, 20, 0},
                                           Filters{0.7, 0.95, 30, 0.05}, Filters{1.5, 0.5, -1, 0},
                                           Filters{3, 0.99, -1, 0}, Filters{1, 0.9, 300, 0},
                                           Filters{1, 1, 1000000, 0}));

// The support must be right to the token, also where candidates are gathered in several rounds.
TEST(Sampler, KeptSetIsExact) {
  for (const float scale : {0.01f, 1.0f, 4.0f}) {
    for (const auto& f : {Filters{1, 0.9, -1, 0}, Filters{1, 0.3, 500, 0}, Filters{2, 1, -1, 0.02},
                          Filters{1, 0.999, -1, 0}}) {
      SamplingParams params;
      params.temperature = f.temperature;
      params.top_p = f.top_p;
      params.top_k = f.top_k;
      params.min_p = f.min_p;
      const auto x = random_row(6000, 3, scale);
      const auto expected = reference::filtered({x.begin(), x.end()}, params);
      for (int32_t step = 0; step < 300; ++step) {
        const int32_t token = sample(x, params, nullptr, 17, step).token.token;
        EXPECT_GT(expected[static_cast<size_t>(token)], 0) << "step " << step;
      }
    }
  }
}

TEST(Sampler, DrawFollowsTheRandomStream) {
  // With two equal tokens the draw is the comparison of the uniform number with one half.
  SamplingParams params;
  for (int32_t step = 0; step < 200; ++step) {
    const int32_t expected = uniform_for(7, 0, static_cast<uint64_t>(step)) < 0.5 ? 0 : 1;
    EXPECT_EQ(sample({2, 2}, params, nullptr, 7, step).token.token, expected);
  }
}

TEST(Sampler, PenaltiesMatchThePlainFormula) {
  SamplingParams params;
  params.frequency_penalty = 0.7;
  params.presence_penalty = -0.4;
  params.repetition_penalty = 1.3;
  params.logit_bias = {{3, 1.5f}, {5, -2.0f}};
  params.temperature = 0.8;
  params.logprobs = true;
  for (int32_t id = 0; id < 12; ++id) params.token_ids_logprob.push_back(id);
  const auto x = random_row(12, 21);
  const std::vector<int32_t> generated = {1, 1, 1, 3, 8, 8, 11};
  TokenCounts counts;
  for (int32_t t : generated) counts.add(t);
  const SampleOutput out = sample(x, params, &counts);
  const auto p = reference::softmax(reference::adjust(x, params, generated), params.temperature);
  ASSERT_EQ(out.token.chosen.size(), 12u);
  for (int32_t id = 0; id < 12; ++id) {
    EXPECT_EQ(out.token.chosen[static_cast<size_t>(id)].token, id);
    EXPECT_NEAR(out.token.chosen[static_cast<size_t>(id)].logprob,
                std::log(p[static_cast<size_t>(id)]), 2e-5);
  }
  EXPECT_EQ(out.token.logprob, out.token.chosen[static_cast<size_t>(out.token.token)].logprob);
}

TEST(Sampler, EndIdsAreImpossibleBelowTheMinimum) {
  SamplingParams params = greedy();
  params.min_new_tokens = 3;
  params.logit_bias = {{2, 100.0f}};  // no bias brings them back
  EXPECT_EQ(sample({1, 2, 9, 8}, params, nullptr, 1, 2, {}, {2, 3}).token.token, 1);
  EXPECT_EQ(sample({1, 2, 9, 8}, params, nullptr, 1, 3, {}, {2, 3}).token.token, 2);
}

TEST(Sampler, TokenLimitMasksPaddingRows) {
  SamplingParams params = greedy();
  params.top_logprobs = 10;
  const SampleOutput out = sample({1, 2, 50, 60}, params, nullptr, 1, 0, {2, false});
  EXPECT_EQ(out.token.token, 1);
  EXPECT_EQ(out.token.top.size(), 2u);
  // The normaliser leaves them out as well.
  EXPECT_NEAR(out.token.top[0].logprob, -std::log(1 + std::exp(-1.0)), 1e-6);
}

TEST(Sampler, LogprobsAreSortedAndTakenBeforeFilters) {
  const auto x = random_row(2000, 31);
  SamplingParams params;
  params.temperature = 0.5;
  params.top_k = 3;
  params.top_logprobs = 20;
  params.logprobs = true;
  const SampleOutput out = sample(x, params);
  const auto p = reference::softmax({x.begin(), x.end()}, 0.5);
  ASSERT_EQ(out.token.top.size(), 20u);
  for (size_t i = 0; i < 20; ++i) {
    EXPECT_NEAR(out.token.top[i].logprob, std::log(p[static_cast<size_t>(out.token.top[i].token)]),
                2e-5);
    if (i > 0) {
      EXPECT_LE(out.token.top[i].logprob, out.token.top[i - 1].logprob);
    }
  }
  EXPECT_LE(out.token.logprob, 0);
}

TEST(Sampler, GreedyLogprobsUseTemperatureOne) {
  const auto x = random_row(500, 41);
  SamplingParams params = greedy();
  params.logprobs = true;
  params.top_logprobs = 5;
  const SampleOutput out = sample(x, params);
  const auto p = reference::softmax({x.begin(), x.end()}, 1);
  EXPECT_EQ(out.token.top[0].token, out.token.token);
  EXPECT_EQ(out.token.top[0].logprob, out.token.logprob);
  EXPECT_NEAR(out.token.logprob, std::log(p[static_cast<size_t>(out.token.token)]), 1e-5);
}

TEST(Sampler, OriginalLogprobsIgnoreTemperature) {
  const auto x = random_row(500, 43);
  SamplingParams params;
  params.temperature = 0.3;
  params.logprobs = true;
  const SampleOutput out = sample(x, params, nullptr, 1, 0, {0, true});
  const auto p = reference::softmax({x.begin(), x.end()}, 1);
  EXPECT_NEAR(out.token.logprob, std::log(p[static_cast<size_t>(out.token.token)]), 1e-5);
}

TEST(Sampler, LogprobsAreAlwaysFinite) {
  SamplingParams params = greedy();
  params.logprobs = true;
  params.token_ids_logprob = {0, 1};
  const SampleOutput out = sample({-kInf, 4}, params);
  EXPECT_EQ(out.token.chosen[0].logprob, kLogprobFloor);
  EXPECT_EQ(out.token.chosen[1].logprob, 0);
}

TEST(Sampler, NotANumberIsReplacedOrReported) {
  const float nan = std::nanf("");
  SampleOutput out = sample({1, nan, 3}, greedy());
  EXPECT_EQ(out.token.token, 2);
  EXPECT_EQ(out.replaced, 1);
  out = sample({1, kInf, 3}, greedy());
  EXPECT_EQ(out.token.token, 1);
  out = sample({nan, nan, nan}, {});
  EXPECT_EQ(out.token.token, -1);
  EXPECT_NE(out.error.find("3 of 3"), std::string::npos) << out.error;
  out = sample({-kInf, -kInf}, {});
  EXPECT_EQ(out.token.token, -1);
  EXPECT_NE(out.error.find("excluded"), std::string::npos) << out.error;
}

TEST(Sampler, PromptLogprobIsPlainSoftmax) {
  const auto x = random_row(300, 51);
  SamplingParams params;
  params.temperature = 0.1;
  params.top_logprobs = 2;
  params.logit_bias = {{7, 50.0f}};
  RowSampler sampler({});
  OutputToken out;
  sampler.prompt_logprob(x.data(), 300, 7, params, out);
  const auto p = reference::softmax({x.begin(), x.end()}, 1);
  EXPECT_EQ(out.token, 7);
  EXPECT_NEAR(out.logprob, std::log(p[7]), 1e-5);
  EXPECT_EQ(out.top.size(), 2u);
}

// Which thread, and which neighbours in the batch, must not show.
TEST(Sampler, BatchOnPoolEqualsRowsAlone) {
  platform::ThreadPool pool(3, false);
  constexpr int64_t kVocab = 60000;
  constexpr size_t kRows = 12;
  std::vector<SamplingParams> params(kRows);
  std::vector<std::vector<float>> rows;
  for (size_t i = 0; i < kRows; ++i) {
    rows.push_back(random_row(kVocab, static_cast<uint32_t>(i)));
    params[i].top_p = i % 3 == 0 ? 0.8 : 1.0;
    params[i].temperature = i % 4 == 0 ? 0.0 : 1.0;
    params[i].top_logprobs = static_cast<int32_t>(i % 5);
    params[i].logprobs = true;
  }
  std::vector<SampleOutput> alone;
  for (size_t i = 0; i < kRows; ++i) alone.push_back(sample(rows[i], params[i], nullptr, i, 4));
  Sampler sampler({}, &pool);
  std::vector<SampleInput> in;
  for (size_t i = 0; i < kRows; ++i) {
    in.push_back({rows[i].data(), kVocab, &params[i], nullptr, {}, 4, i, 0});
  }
  std::vector<SampleOutput> out(kRows);
  sampler.sample(in, out);
  for (size_t i = 0; i < kRows; ++i) {
    EXPECT_EQ(out[i].token.token, alone[i].token.token);
    EXPECT_EQ(out[i].token.logprob, alone[i].token.logprob);
    ASSERT_EQ(out[i].token.top.size(), alone[i].token.top.size());
  }
}

}  // namespace
}  // namespace capstan::engine
