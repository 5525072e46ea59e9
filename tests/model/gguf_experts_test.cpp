// GGUF metadata and tensors of deepseek2 and qwen3moe.
#include <gtest/gtest.h>

#include "deepseek_models.h"
#include "model/checkpoint.h"
#include "model/gguf_config.h"

namespace capstan::model {
namespace {

namespace json = boost::json;

/// The recipe opened after `edit` has changed its metadata, given as key -> value.
template <class Edit>
Result<std::unique_ptr<Checkpoint>> open(const std::string& name, Edit&& edit) {
  const TempDir dir;
  return Checkpoint::open(write_recipe(recipe_path(name), dir, [&](json::object& r) {
    // Tensors are not needed to read metadata but for their names: keep them small.
    edit(r);
  }));
}

void set(json::object& recipe, std::string_view key, std::string_view type, json::value value) {
  for (json::value& entry : recipe.at("metadata").as_array()) {
    if (entry.at(0).as_string() == json::string_view(key)) {
      entry = {key, type, std::move(value)};
      return;
    }
  }
  recipe.at("metadata").as_array().push_back({key, type, std::move(value)});
}

void erase(json::object& recipe, std::string_view key) {
  json::array& all = recipe.at("metadata").as_array();
  for (auto it = all.begin(); it != all.end(); ++it) {
    if (it->at(0).as_string() == json::string_view(key)) {
      all.erase(it);
      return;
    }
  }
}

/// Without tensors the experts can be any number.
void drop_tensors(json::object& recipe) {
  json::array keep;
  for (json::value& t : recipe.at("tensors").as_array()) {
    if (t.at("name").as_string() == "token_embd.weight") keep.push_back(t);
  }
  recipe["tensors"] = std::move(keep);
}

TEST(GgufExperts, BothGenerationsSayTheSame) {
  const auto fresh = open("tiny-v3-new-q8_0", [](json::object&) {});
  ASSERT_TRUE(fresh.ok()) << fresh.error().message;
  const ModelConfig& c = (*fresh)->config();
  EXPECT_EQ(c.architecture, Architecture::kDeepseekV3);
  EXPECT_EQ(c.num_heads, 8);
  EXPECT_EQ(c.mla.q_lora_rank, 128);
  EXPECT_EQ(c.mla.qk_nope_head_dim, 32);
  EXPECT_EQ(c.mla.v_head_dim, 32);
  EXPECT_TRUE(c.mla.split_kv_b);
  EXPECT_EQ(c.rope.style, kernels::RopeStyle::kInterleaved);
  EXPECT_EQ(c.rope.attention_factor, 1.0);
  EXPECT_NEAR(c.rope.softmax_factor, 1.296476993, 1e-6);  // from a float32 log multiplier
  EXPECT_TRUE(c.moe.sigmoid && c.moe.normalise);
  EXPECT_EQ(c.moe.scale, 2.5);
  EXPECT_FALSE(c.is_moe_layer(0));
  EXPECT_TRUE(c.is_moe_layer(1));
  const TensorView* expert = (*fresh)->find("model.layers.2.mlp.experts.15.down_proj.weight");
  ASSERT_NE(expert, nullptr);
  EXPECT_EQ(expert->shape, (std::vector<int64_t>{256, 256}));
  EXPECT_EQ(expert->name, "blk.2.ffn_down_exps.weight[15]");

  const auto old = open("tiny-v2-old-f16", [](json::object&) {});
  ASSERT_TRUE(old.ok()) << old.error().message;
  const ModelConfig& v2 = (*old)->config();
  EXPECT_EQ(v2.architecture, Architecture::kDeepseekV2);
  EXPECT_EQ(v2.mla.q_lora_rank, 0);
  EXPECT_EQ(v2.mla.qk_nope_head_dim, 48);
  EXPECT_FALSE(v2.mla.split_kv_b);
  EXPECT_EQ(v2.moe.shared_experts, 2);
  EXPECT_FALSE(v2.moe.sigmoid);
  EXPECT_EQ(v2.moe.scale, 1.0);

  const auto qwen = open("tiny-qwen3-moe-q8_0", [](json::object&) {});
  ASSERT_TRUE(qwen.ok()) << qwen.error().message;
  EXPECT_EQ((*qwen)->config().architecture, Architecture::kQwen3Moe);
  EXPECT_TRUE((*qwen)->config().moe.normalise);  // unsaid
  EXPECT_TRUE((*qwen)->config().is_moe_layer(1));
}

TEST(GgufExperts, WhatOldFilesLeaveOut) {
  // The correction bias means sigmoid; no gating key and no bias means softmax.
  const auto implied =
      open("tiny-v3-new-q8_0", [](json::object& r) { erase(r, "deepseek2.expert_gating_func"); });
  ASSERT_TRUE(implied.ok()) << implied.error().message;
  EXPECT_EQ((*implied)->config().architecture, Architecture::kDeepseekV3);
  const auto softmax = open("tiny-v3-new-q8_0", [](json::object& r) {
    erase(r, "deepseek2.expert_gating_func");
    drop_tensors(r);
  });
  ASSERT_TRUE(softmax.ok()) << softmax.error().message;
  EXPECT_EQ((*softmax)->config().architecture, Architecture::kDeepseekV2);

  // Groups of the published models.
  const auto groups = [](int experts, int gating) {
    return open("tiny-v3-new-q8_0", [&](json::object& r) {
      drop_tensors(r);
      erase(r, "deepseek2.expert_group_count");
      erase(r, "deepseek2.expert_group_used_count");
      set(r, "deepseek2.expert_count", "u32", experts);
      set(r, "deepseek2.expert_gating_func", "u32", gating);
    });
  };
  const std::vector<std::array<int, 4>> expected = {
      {256, 2, 8, 4}, {160, 1, 8, 3}, {64, 1, 1, 1}, {64, 2, 1, 1}, {256, 1, 1, 1}};
  for (const auto& [experts, gating, count, kept] : expected) {
    const auto c = groups(experts, gating);
    ASSERT_TRUE(c.ok()) << c.error().message;
    EXPECT_EQ((*c)->config().moe.groups, count) << experts;
    EXPECT_EQ((*c)->config().moe.groups_kept, kept) << experts;
  }
}

TEST(GgufExperts, CountsDraftLayersApart) {
  const auto c = open("tiny-v3-new-q8_0",
                      [](json::object& r) { set(r, "deepseek2.nextn_predict_layers", "u32", 1); });
  ASSERT_TRUE(c.ok()) << c.error().message;
  EXPECT_EQ((*c)->config().num_layers, 2);
  EXPECT_EQ((*c)->config().num_nextn_predict_layers, 1);
}

TEST(GgufExperts, RefusesWhatMakesNoModel) {
  const std::vector<std::tuple<const char*, const char*, json::value, std::vector<std::string>>>
      cases = {
          {"deepseek2.expert_gating_func", "u32", 3, {"expert_gating_func is 3", "sigmoid"}},
          {"deepseek2.rope.dimension_count", "u32", 64, {"key_length", "64"}},
          {"deepseek2.rope.dimension_count", "u32", 0, {"key_length"}},
          {"deepseek2.nextn_predict_layers", "u32", 3, {"nextn_predict_layers is 3 of 3"}},
          {"deepseek2.expert_used_count", "u32", 0, {"num_experts_per_tok is 0"}},
          {"deepseek2.rope.scaling.type", "string", "linear", {"'linear'"}},
          {"deepseek2.attention.kv_lora_rank", "u32", 0, {"kv_lora_rank is 0"}},
      };
  for (const auto& [key, type, value, parts] : cases) {
    SCOPED_TRACE(key);
    expect_error(open("tiny-v3-new-q8_0",
                      [&, &k = key, &t = type, &v = value](json::object& r) { set(r, k, t, v); }),
                 ErrorCode::kInvalidArgument, parts);
  }
  expect_error(open("tiny-v3-new-q8_0",
                    [](json::object& r) {
                      for (json::value& t : r.at("tensors").as_array()) {
                        if (t.at("name").as_string() == "blk.1.ffn_up_exps.weight") {
                          t.as_object()["shape"] = {4096, 256};
                        }
                      }
                    }),
               ErrorCode::kDataLoss, {"blk.1.ffn_up_exps.weight", "[4096, 256]"});
  expect_error(open("tiny-qwen3-moe-q8_0",
                    [](json::object& r) { set(r, "qwen3moe.expert_weights_scale", "f32", 2.5); }),
               ErrorCode::kInvalidArgument, {"expert_weights_scale is 2.5"});
}

TEST(GgufExperts, NamesAreMappedToHuggingFace) {
  for (const auto& [gguf, hf] : std::vector<std::pair<std::string, std::string>>{
           {"blk.3.attn_q_a.weight", "model.layers.3.self_attn.q_a_proj.weight"},
           {"blk.3.attn_q_a_norm.weight", "model.layers.3.self_attn.q_a_layernorm.weight"},
           {"blk.3.attn_kv_a_mqa.weight", "model.layers.3.self_attn.kv_a_proj_with_mqa.weight"},
           {"blk.3.attn_kv_b.weight", "model.layers.3.self_attn.kv_b_proj.weight"},
           {"blk.3.ffn_gate_inp.weight", "model.layers.3.mlp.gate.weight"},
           {"blk.3.exp_probs_b.bias", "model.layers.3.mlp.gate.e_score_correction_bias"},
           {"blk.3.exp_probs_b", "model.layers.3.mlp.gate.e_score_correction_bias"},
           {"blk.3.ffn_up_shexp.weight", "model.layers.3.mlp.shared_experts.up_proj.weight"},
           {"blk.61.nextn.eh_proj.weight", "model.layers.61.eh_proj.weight"},
           {"blk.61.nextn.shared_head_norm.weight", "model.layers.61.shared_head.norm.weight"},
           {"blk..exp_probs_b", "blk..exp_probs_b"}}) {
    EXPECT_EQ(hf_tensor_name(gguf), hf);
  }
}

}  // namespace
}  // namespace capstan::model
