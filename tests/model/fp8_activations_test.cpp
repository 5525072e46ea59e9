// A block-FP8 model with the activations that are the default (BF16 where the CPU gains by it)
// against float32 ones.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "deepseek_models.h"

namespace capstan::model {
namespace {

LoadedModel load_fp8(bool quantise_activations, int threads = 1) {
  return load(
      deepseek_checkpoint("tiny-v3-fp8"),
      {.isa = kernels::supported_isas().back(), .quantise_activations = quantise_activations},
      threads, {.mla_form = kernels::MlaForm::kAbsorbed});
}

using Loads = std::vector<std::vector<uint64_t>>;

/// Logits of each token, and the experts it chose: what is new in the counters.
struct Steps {
  explicit Steps(const LoadedModel& m, std::span<const int32_t> prompt) {
    Session session(*m.model, 16);
    Loads before = m.model->expert_load();
    for (size_t t = 0; t < prompt.size(); ++t) {
      logits.push_back(session.step({{0, prompt.subspan(t, 1)}}).front());
      Loads after = m.model->expert_load();
      Loads chosen = after;
      for (size_t l = 0; l < after.size(); ++l) {
        for (size_t e = 0; e < after[l].size(); ++e) chosen[l][e] -= before[l][e];
      }
      experts.push_back(std::move(chosen));
      before = std::move(after);
    }
  }
  Session::Rows logits;
  std::vector<Loads> experts;
};

double cosine_difference(const std::vector<float>& x, const std::vector<float>& y) {
  double dot = 0, norm = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double a = x[i], b = y[i];
    dot += a * b;
    norm += a * a + b * b;
  }
  return 1 - 2 * dot / norm;
}

size_t top(const std::vector<float>& v) {
  return static_cast<size_t>(std::max_element(v.begin(), v.end()) - v.begin());
}

// Texts of 16 tokens, each as far as both models choose the same experts: another choice is another
// function, for all tokens that attend to it. A cosine difference below 1e-3, and the same first
// token in 99% of positions whose margin is above 0.1.
TEST(Fp8Activations, LogitsStayNearThoseOfFloat32) {
  constexpr size_t kLength = 16;
  const std::vector<int32_t> tokens = deepseek_golden("tiny-v3-fp8").get("long").prompt;
  const LoadedModel exact_model = load_fp8(false), rounded_model = load_fp8(true);
  size_t positions = 0, clear = 0, other_token = 0;
  double worst = 0;
  for (size_t first = 0; first + kLength <= tokens.size(); first += kLength) {
    const auto text = std::span(tokens).subspan(first, kLength);
    const Steps exact(exact_model, text), rounded(rounded_model, text);
    for (size_t t = 0; t < kLength && exact.experts[t] == rounded.experts[t]; ++t) {
      ++positions;
      const std::vector<float>& want = exact.logits[t];
      worst = std::max(worst, cosine_difference(want, rounded.logits[t]));
      std::vector<float> sorted = want;
      std::partial_sort(sorted.begin(), sorted.begin() + 2, sorted.end(), std::greater<>());
      if (sorted[0] - sorted[1] <= 0.1f) continue;
      ++clear;
      other_token += top(want) != top(rounded.logits[t]) ? 1 : 0;
    }
  }
  EXPECT_GE(positions * 2, tokens.size());
  EXPECT_LT(worst, 1e-3);
  EXPECT_LE(other_token * 100, clear) << other_token << " of " << clear;
  RecordProperty("worst_cosine_difference", std::to_string(worst));
}

TEST(Fp8Activations, ChunksAndThreadsDoNotMatter) {
  const GoldenCase golden = deepseek_golden("tiny-v3-fp8").get("short");
  const LoadedModel one = load_fp8(true, 1), two = load_fp8(true, 2);
  Session whole(*one.model, 16);
  const Session::Rows want = whole.prefill(golden.prompt, 512);
  for (const int chunk : {1, 3, 5, 14}) {
    for (const LoadedModel* m : {&one, &two}) {
      Session session(*m->model, 16);
      EXPECT_EQ(want, session.prefill(golden.prompt, chunk)) << "chunk " << chunk;
    }
  }
}

}  // namespace
}  // namespace capstan::model
