// Real weights: SmolLM2-135M-Instruct in Q4_1 against transformers on the widened weights. Runs
// where the GGUF file lies in the model cache, whose place is the one that `capstan pull` uses.
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

#include "golden.h"
#include "model/describe.h"
#include "session.h"

namespace capstan::model {
namespace {

/// The Q4_1 file of the model cache, or an empty string.
std::string cached_gguf() {
  namespace fs = std::filesystem;
  const char* cache = std::getenv("XDG_CACHE_HOME");
  const char* home = std::getenv("HOME");
  fs::path root =
      cache != nullptr && *cache != '\0' ? fs::path(cache) : fs::path(home ? home : "/") / ".cache";
  std::error_code ec;
  for (fs::directory_iterator it(root / "capstan/models/SmolLM2-135M-Instruct", ec), end;
       !ec && it != end; it.increment(ec)) {
    if (it->path().filename().string().ends_with("Q4_1.gguf")) return it->path().string();
  }
  return {};
}

/// 1 - 2 <x, y> / (|x|^2 + |y|^2)
double cosine_difference(const std::vector<float>& x, const std::vector<float>& y) {
  double xy = 0, squares = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    xy += double{x[i]} * y[i];
    squares += double{x[i]} * x[i] + double{y[i]} * y[i];
  }
  return 1.0 - 2.0 * xy / squares;
}

class SmolLm2 : public testing::Test {
 protected:
  void SetUp() override {
    path_ = cached_gguf();
    if (path_.empty()) GTEST_SKIP() << "no SmolLM2-135M-Instruct Q4_1 GGUF in the model cache";
  }
  std::string path_;
  Golden golden_{testdata("smollm2-q4_1/golden")};
};

TEST_F(SmolLm2, FloatActivationsMatchTheReference) {
  const GoldenCase golden = golden_.get("short");
  const LoadedModel m = load(path_, {.quantise_activations = false}, /*threads=*/2);
  ASSERT_NE(m.model, nullptr);
  EXPECT_EQ(m.model->config().eos_token_ids, (std::vector<int32_t>{2}));
  EXPECT_TRUE(m.model->config().tie_word_embeddings);
  EXPECT_EQ(m.model->config().weight_dtype, DType::kQ4_1);
  EXPECT_TRUE(describe(*m.checkpoint)
                  .starts_with("LlamaForCausalLM, 134.5M parameters, 30 layers, hidden 576, 9/3 "
                               "heads of 64, vocabulary 49152 (tied), context 8192; 96.6 MB of"))
      << describe(*m.checkpoint);

  Session session(*m.model, 16);
  const Session::Rows rows = session.prefill(golden.prompt, 32);
  ASSERT_EQ(golden.logit_positions.size(), 1u);
  EXPECT_LE(relative_difference(rows.back(), golden.logits[0]), 1e-4);
  RecordProperty("prompt_relative_difference",
                 std::to_string(relative_difference(rows.back(), golden.logits[0])));
  for (const boost::json::value& top :
       golden_.json().at("cases").at("short").at("top").as_array()) {
    const auto& row = rows[boost::json::value_to<size_t>(top.at("position"))];
    const auto ids = boost::json::value_to<std::vector<size_t>>(top.at("ids"));
    const auto values = boost::json::value_to<std::vector<double>>(top.at("values"));
    double sum = 0;
    for (const float v : row) sum += v;
    EXPECT_NEAR(sum / static_cast<double>(row.size()),
                boost::json::value_to<double>(top.at("mean")), 2e-3);
    for (size_t i = 0; i < ids.size(); ++i) EXPECT_NEAR(row[ids[i]], values[i], 3e-3);
  }
  Session::Rows decode;
  EXPECT_EQ(session.greedy(rows.back(), golden.greedy.size(), &decode), golden.greedy);
  EXPECT_LE(relative_difference(decode.back(), golden.decode_logits[0]), 1e-4);
}

/// The default path rounds activations to int8 blocks: other bits, the same opinion.
TEST_F(SmolLm2, QuantisedActivationsAgree) {
  const GoldenCase golden = golden_.get("short");
  const auto margins = boost::json::value_to<std::vector<double>>(
      golden_.json().at("cases").at("short").at("margins"));
  const LoadedModel m = load(path_, {}, /*threads=*/2);
  ASSERT_NE(m.model, nullptr);
  Session session(*m.model, 16, DType::kF16);
  std::vector<int32_t> tokens = golden.prompt;
  tokens.insert(tokens.end(), golden.greedy.begin(), golden.greedy.end() - 1);
  const Session::Rows rows = session.prefill(tokens, 32);
  const size_t first = golden.prompt.size() - 1;
  const double difference = cosine_difference(rows[first], golden.logits[0]);
  EXPECT_LE(difference, 1e-3);
  size_t agree = 0;
  for (size_t i = 0; i < golden.greedy.size(); ++i) {
    const auto& row = rows[first + i];
    const auto best = std::max_element(row.begin(), row.end()) - row.begin();
    agree += best == golden.greedy[i] ? 1 : 0;
    if (margins[i] > 0.5) {
      EXPECT_EQ(best, golden.greedy[i]) << "step " << i << " with margin " << margins[i];
    }
  }
  RecordProperty("cosine_difference", std::to_string(difference));
  RecordProperty("top1_agreement",
                 std::to_string(agree) + " of " + std::to_string(golden.greedy.size()));
  EXPECT_GE(agree * 100, golden.greedy.size() * 90);
}

}  // namespace
}  // namespace capstan::model
