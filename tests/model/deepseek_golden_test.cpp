// DeepSeek-V2, V3 and Qwen3-MoE against transformers in float32: logits, greedy paths, choice of
// experts and multi-token prediction, in both forms of latent attention.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <sstream>

#include "deepseek_models.h"
#include "draft_session.h"

namespace capstan::model {
namespace {

using kernels::Isa;
using kernels::MlaForm;

// Weights are widened exactly and multiplied in float32.
constexpr double kExact = 1e-4;

struct Variant {
  std::string name;
};
void PrintTo(const Variant& v, std::ostream* out) { *out << v.name; }

const Variant kVariants[] = {
    {"tiny-v3-fp8"},         {"tiny-v3-bf16"},     {"tiny-v3-mscale"},   {"tiny-v3-groups"},
    {"tiny-v3-long"},        {"tiny-v2"},          {"tiny-v2-bf16"},     {"tiny-v2-group"},
    {"tiny-qwen3-moe"},      {"tiny-v3-new-q8_0"}, {"tiny-v3-new-q4_k"}, {"tiny-v2-old-f16"},
    {"tiny-qwen3-moe-q8_0"},
};

const char* form_name(MlaForm form) {
  return form == MlaForm::kAuto ? "auto" : form == MlaForm::kNaive ? "naive" : "absorbed";
}

/// Compares rows with golden ones and reports the largest difference relative to a row's maximum.
class DeepseekGolden : public testing::TestWithParam<std::tuple<Variant, Isa>> {
 protected:
  const Variant& variant() const { return std::get<0>(GetParam()); }
  Isa isa() const { return std::get<1>(GetParam()); }
  bool latent() const { return variant().name.find("qwen") == std::string::npos; }
  /// The oracle takes long over the long prompts, which try nothing that is its own.
  std::vector<MlaForm> forms(const std::string& which) const {
    if (which == "long")
      return isa() == Isa::kRef ? std::vector<MlaForm>{} : std::vector{MlaForm::kAuto};
    if (!latent()) return {MlaForm::kAuto};
    return {MlaForm::kNaive, MlaForm::kAbsorbed};
  }
  void expect_close(const std::vector<float>& x, const std::vector<float>& y,
                    const std::string& what) {
    const double d = relative_difference(x, y);
    EXPECT_LE(d, kExact) << what;
    worst_ = std::max(worst_, d);
  }
  void TearDown() override {
    std::ostringstream text;
    text << worst_;
    if (worst_ > 0) RecordProperty("worst_relative_difference", text.str());
  }

  double worst_ = 0;
};

TEST_P(DeepseekGolden, GreedyTokensAndLogits) {
  for (const char* name : {"short", "long"}) {
    const GoldenCase golden = deepseek_golden(variant().name).get(name);
    for (const MlaForm form : forms(name)) {
      SCOPED_TRACE(std::string(form_name(form)) + " " + name);
      const LoadedModel m = load_deepseek(variant().name, isa(), {.mla_form = form});
      ASSERT_NE(m.model, nullptr);
      const auto tokens = static_cast<int>(golden.prompt.size() + golden.greedy.size());
      Session session(*m.model, 16, DType::kF32, tokens);
      const Session::Rows prompt = session.prefill(golden.prompt, 512);
      for (size_t i = 0; i < golden.logit_positions.size(); ++i) {
        const auto at = static_cast<size_t>(golden.logit_positions[i]);
        expect_close(prompt[at], golden.logits[i], "position " + std::to_string(at));
      }
      Session::Rows rows;
      EXPECT_EQ(session.greedy(prompt.back(), golden.greedy.size(), &rows), golden.greedy);
      for (size_t i = 0; i < golden.decode_steps.size(); ++i) {
        const auto at = static_cast<size_t>(golden.decode_steps[i]);
        expect_close(rows[at], golden.decode_logits[i], "decode step " + std::to_string(at));
      }
    }
  }
}

/// Token by token, so that what is new in the counters is what that token chose.
TEST_P(DeepseekGolden, ChoosesTheExpertsOfTheReference) {
  const Golden golden = deepseek_golden(variant().name);
  const boost::json::object& experts =
      golden.json().at("cases").at("short").at("experts").as_object();
  const std::vector<int32_t> prompt = golden.get("short").prompt;
  const LoadedModel m = load_deepseek(variant().name, isa());
  ASSERT_NE(m.model, nullptr);
  Session session(*m.model, 16);
  std::vector<std::vector<uint64_t>> before = m.model->expert_load();
  ASSERT_EQ(before.size(), static_cast<size_t>(m.model->config().num_layers));
  for (size_t t = 0; t < prompt.size(); ++t) {
    session.step({{0, std::span(prompt).subspan(t, 1)}});
    const std::vector<std::vector<uint64_t>> after = m.model->expert_load();
    for (size_t l = 0; l < after.size(); ++l) {
      std::vector<int> chosen, expected;
      for (size_t e = 0; e < after[l].size(); ++e) {
        EXPECT_LE(after[l][e], before[l][e] + 1);
        if (after[l][e] != before[l][e]) chosen.push_back(static_cast<int>(e));
      }
      if (const auto* layer = experts.if_contains(std::to_string(l))) {
        expected = boost::json::value_to<std::vector<int>>(layer->at(t));
      }
      EXPECT_EQ(chosen, expected) << "token " << t << ", layer " << l;
    }
    before = after;
  }
}

/// The checkpoints that have a layer of multi-token prediction, and one that has none.
class DeepseekDraft : public DeepseekGolden {};

TEST_P(DeepseekDraft, MultiTokenPrediction) {
  const Golden golden = deepseek_golden(variant().name);
  const boost::json::object& c = golden.json().at("cases").at("short").as_object();
  const LoadedModel plain = load_deepseek(variant().name, isa());
  ASSERT_NE(plain.model, nullptr);
  EXPECT_EQ(plain.model->draft(), nullptr);
  if (!c.contains("mtp_logits")) {
    EXPECT_EQ(variant().name, "tiny-v2");
    return;
  }
  const LoadedModel m = load_deepseek(variant().name, isa(), {.draft = true});
  ASSERT_NE(m.model, nullptr);
  ASSERT_NE(m.model->draft(), nullptr);
  EXPECT_GT(m.model->weight_bytes(), plain.model->weight_bytes());
  EXPECT_EQ(m.model->weight_bytes_per_token(), plain.model->weight_bytes_per_token());
  const std::vector<int32_t> prompt = golden.get("short").prompt;
  const auto positions = boost::json::value_to<std::vector<int32_t>>(c.at("mtp_positions"));
  const std::vector<std::vector<float>> expected = golden.tensor(c.at("mtp_logits"));

  DraftSession session(*m.model);
  // In one go, and in chunks beside the chunks of the model itself.
  const Session::Rows whole = session.run(prompt, prompt.size());
  ASSERT_EQ(whole.size(), prompt.size() - 1);
  for (size_t i = 0; i < positions.size(); ++i) {
    expect_close(whole[static_cast<size_t>(positions[i])], expected[i],
                 "position " + std::to_string(positions[i]));
  }
  EXPECT_EQ(m.model->expert_load().size(), 4u);
  for (const size_t chunk : {1, 7, 16}) {
    const Session::Rows rows = DraftSession(*m.model).run(prompt, chunk);
    ASSERT_EQ(rows.size(), whole.size());
    for (size_t i = 0; i < rows.size(); ++i) {
      EXPECT_LE(relative_difference(rows[i], whole[i]), 1e-5) << "chunk " << chunk << " row " << i;
    }
  }
}

std::string variant_name(const testing::TestParamInfo<DeepseekGolden::ParamType>& info) {
  std::string name =
      std::get<0>(info.param).name + "_" + std::string(kernels::isa_name(std::get<1>(info.param)));
  for (char& c : name) {
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
  }
  return name;
}

std::vector<Isa> vector_isas() {
  std::vector<Isa> isas = kernels::supported_isas();
  std::erase(isas, Isa::kRef);
  return isas;
}

INSTANTIATE_TEST_SUITE_P(All, DeepseekGolden,
                         testing::Combine(testing::ValuesIn(kVariants),
                                          testing::ValuesIn(vector_isas())),
                         variant_name);

INSTANTIATE_TEST_SUITE_P(
    All, DeepseekDraft,
    testing::Combine(testing::Values(Variant{"tiny-v3-fp8"}, Variant{"tiny-v3-bf16"},
                                     Variant{"tiny-v3-mscale"}, Variant{"tiny-v3-groups"},
                                     Variant{"tiny-v2"}),
                     testing::ValuesIn(vector_isas())),
    variant_name);
INSTANTIATE_TEST_SUITE_P(Oracle, DeepseekDraft,
                         testing::Combine(testing::Values(Variant{"tiny-v3-fp8"}),
                                          testing::Values(Isa::kRef)),
                         variant_name);

// One model of each kind is enough for the oracle, which takes seconds over each.
INSTANTIATE_TEST_SUITE_P(Oracle, DeepseekGolden,
                         testing::Combine(testing::Values(Variant{"tiny-v3-fp8"},
                                                          Variant{"tiny-v2-group"}),
                                          testing::Values(Isa::kRef)),
                         variant_name);

}  // namespace
}  // namespace capstan::model
