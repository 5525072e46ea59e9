// Configs of DeepSeek-V2, V3 and Qwen3-MoE.
#include <gtest/gtest.h>

#include <cmath>

#include "checkpoint_files.h"
#include "model/config_json.h"
#include "model/describe.h"
#include "model/json.h"
#include "model/weights.h"

namespace capstan::model {
namespace {

/// config.json of DeepSeek-R1.
const std::string kR1 = R"("architectures":["DeepseekV3ForCausalLM"],"model_type":"deepseek_v3",
  "attention_bias":false,"attention_dropout":0.0,"aux_loss_alpha":0.001,"bos_token_id":0,
  "eos_token_id":1,"ep_size":1,"first_k_dense_replace":3,"hidden_act":"silu","hidden_size":7168,
  "initializer_range":0.02,"intermediate_size":18432,"kv_lora_rank":512,
  "max_position_embeddings":163840,"moe_intermediate_size":2048,"moe_layer_freq":1,"n_group":8,
  "n_routed_experts":256,"n_shared_experts":1,"norm_topk_prob":true,"num_attention_heads":128,
  "num_experts_per_tok":8,"num_hidden_layers":61,"num_key_value_heads":128,
  "num_nextn_predict_layers":1,"pretraining_tp":1,"q_lora_rank":1536,"qk_nope_head_dim":128,
  "qk_rope_head_dim":64,"quantization_config":{"activation_scheme":"dynamic","fmt":"e4m3",
  "quant_method":"fp8","weight_block_size":[128,128]},"rms_norm_eps":1e-06,"rope_scaling":{
  "beta_fast":32,"beta_slow":1,"factor":40,"mscale":1.0,"mscale_all_dim":1.0,
  "original_max_position_embeddings":4096,"type":"yarn"},"rope_theta":10000,
  "routed_scaling_factor":2.5,"scoring_func":"sigmoid","seq_aux":true,"tie_word_embeddings":false,
  "topk_group":4,"topk_method":"noaux_tc","torch_dtype":"bfloat16","use_cache":true,
  "v_head_dim":128,"vocab_size":129280)";

/// config.json of DeepSeek-V2-Lite.
const std::string kV2Lite = R"("architectures":["DeepseekV2ForCausalLM"],
  "model_type":"deepseek_v2","bos_token_id":100000,"eos_token_id":100001,
  "first_k_dense_replace":1,"hidden_act":"silu","hidden_size":2048,"intermediate_size":10944,
  "kv_lora_rank":512,"max_position_embeddings":163840,"moe_intermediate_size":1408,
  "moe_layer_freq":1,"n_group":1,"n_routed_experts":64,"n_shared_experts":2,
  "norm_topk_prob":false,"num_attention_heads":16,"num_experts_per_tok":6,"num_hidden_layers":27,
  "num_key_value_heads":16,"q_lora_rank":null,"qk_nope_head_dim":128,"qk_rope_head_dim":64,
  "rms_norm_eps":1e-06,"rope_scaling":{"beta_fast":32,"beta_slow":1,"factor":40,"mscale":0.707,
  "mscale_all_dim":0.707,"original_max_position_embeddings":4096,"type":"yarn"},
  "rope_theta":10000,"routed_scaling_factor":1.0,"scoring_func":"softmax","topk_group":1,
  "topk_method":"greedy","torch_dtype":"bfloat16","v_head_dim":128,"vocab_size":102400)";

const std::string kQwen3Moe = R"("architectures":["Qwen3MoeForCausalLM"],
  "model_type":"qwen3_moe","hidden_size":2048,"intermediate_size":6144,"num_hidden_layers":48,
  "num_attention_heads":32,"num_key_value_heads":4,"head_dim":128,"vocab_size":151936,
  "max_position_embeddings":40960,"moe_intermediate_size":768,"num_experts":128,
  "num_experts_per_tok":8,"norm_topk_prob":true,"decoder_sparse_step":1,"mlp_only_layers":[],
  "rope_theta":1000000.0,"rms_norm_eps":1e-06,"torch_dtype":"bfloat16")";

Result<ModelConfig> config(const std::string& base, const std::string& extra = "",
                           const std::string& without = "") {
  auto object = parse_json_object("{" + base + "}", "config.json");
  EXPECT_TRUE(object.ok());
  EXPECT_TRUE(merge_overrides(*object, "{" + extra + "}").ok()) << extra;
  object->erase(without);
  return config_from_json(*object, "dir/config.json");
}

double softmax_scale(const ModelConfig& c) {
  return c.rope.softmax_factor / std::sqrt(static_cast<double>(c.head_dim));
}

TEST(DeepseekConfig, ReadsR1) {
  const auto c = config(kR1);
  ASSERT_TRUE(c.ok()) << c.error().message;
  EXPECT_EQ(c->architecture, Architecture::kDeepseekV3);
  EXPECT_TRUE(c->has_mla());
  EXPECT_EQ(c->mla.q_lora_rank, 1536);
  EXPECT_EQ(c->mla.kv_lora_rank, 512);
  EXPECT_EQ(c->head_dim, 192);
  EXPECT_EQ(c->rope.dim, 64);
  EXPECT_EQ(c->rope.style, kernels::RopeStyle::kInterleaved);
  EXPECT_EQ(c->rope.scaling, RopeScaling::kYarn);
  EXPECT_EQ(c->rope.attention_factor, 1.0);
  EXPECT_NEAR(softmax_scale(*c), 0.1352337789, 1e-10);
  EXPECT_EQ(c->num_nextn_predict_layers, 1);
  EXPECT_EQ(c->weight_dtype, DType::kF8E4M3);
  const MoeConfig& m = c->moe;
  EXPECT_EQ(m.experts, 256);
  EXPECT_EQ(m.top_k, 8);
  EXPECT_EQ(m.groups, 8);
  EXPECT_EQ(m.groups_kept, 4);
  EXPECT_TRUE(m.sigmoid && m.correction_bias && m.group_top2_sum && m.normalise && m.scale_always);
  EXPECT_FALSE(m.mask_with_zero);
  EXPECT_EQ(m.scale, 2.5);
  EXPECT_FALSE(c->is_moe_layer(2));
  EXPECT_TRUE(c->is_moe_layer(3));
  EXPECT_TRUE(c->is_moe_layer(61));  // multi-token prediction
  EXPECT_EQ(parameter_count(*c), 671026419200);
}

TEST(DeepseekConfig, ReadsV2Lite) {
  const auto c = config(kV2Lite);
  ASSERT_TRUE(c.ok()) << c.error().message;
  EXPECT_EQ(c->mla.q_lora_rank, 0);
  EXPECT_EQ(c->weight_dtype, DType::kBF16);
  EXPECT_NEAR(softmax_scale(*c), 0.1147213868, 1e-10);
  EXPECT_EQ(c->rope.attention_factor, 1.0);
  EXPECT_EQ(c->moe.shared_experts, 2);
  EXPECT_FALSE(c->moe.sigmoid || c->moe.correction_bias || c->moe.scale_always);
  EXPECT_TRUE(c->moe.mask_with_zero);
  EXPECT_EQ(c->num_nextn_predict_layers, 0);
  EXPECT_EQ(parameter_count(*c), 15706484224);
  const auto grouped =
      config(kV2Lite, R"("topk_method":"group_limited_greedy","n_group":8,"topk_group":3)");
  ASSERT_TRUE(grouped.ok()) << grouped.error().message;
  EXPECT_EQ(grouped->moe.groups, 8);
  EXPECT_EQ(grouped->moe.groups_kept, 3);
  // The plain method does not look at groups.
  const auto greedy = config(kV2Lite, R"("n_group":8,"topk_group":3)");
  ASSERT_TRUE(greedy.ok()) << greedy.error().message;
  EXPECT_EQ(greedy->moe.groups, 1);
}

TEST(DeepseekConfig, ReadsQwen3Moe) {
  const auto c = config(kQwen3Moe);
  ASSERT_TRUE(c.ok()) << c.error().message;
  EXPECT_TRUE(c->qk_norm);
  EXPECT_FALSE(c->has_mla());
  EXPECT_EQ(c->moe.experts, 128);
  EXPECT_FALSE(c->moe.sigmoid);
  EXPECT_TRUE(c->moe.normalise);
  EXPECT_EQ(parameter_count(*c), 30532122624);
  const auto sparse =
      config(kQwen3Moe, R"("num_experts":null,"num_local_experts":16,"decoder_sparse_step":2,
      "mlp_only_layers":[3],"head_dim":null)");
  ASSERT_TRUE(sparse.ok()) << sparse.error().message;
  EXPECT_EQ(sparse->moe.experts, 16);
  EXPECT_EQ(sparse->head_dim, 64);  // unlike Qwen3, hidden size over heads
  EXPECT_FALSE(sparse->is_moe_layer(0));
  EXPECT_TRUE(sparse->is_moe_layer(1));
  EXPECT_FALSE(sparse->is_moe_layer(3));
}

TEST(DeepseekConfig, YarnInEverySpelling) {
  const auto fresh = config(kR1, R"("rope_scaling":null,"rope_theta":null,"rope_parameters":{
      "rope_theta":5000,"rope_type":"yarn","factor":4,"original_max_position_embeddings":256,
      "mscale":1.0,"mscale_all_dim":0.5})");
  ASSERT_TRUE(fresh.ok()) << fresh.error().message;
  EXPECT_EQ(fresh->rope.theta, 5000);
  EXPECT_NEAR(fresh->rope.attention_factor, 1.064821625, 1e-9);
  EXPECT_NEAR(fresh->rope.softmax_factor, 1.143433966, 1e-9);
  // Without mscale_all_dim the softmax stays, and cos and sin take all of it.
  const auto plain = config(
      kR1, R"("rope_scaling":{"type":"yarn","factor":4,"original_max_position_embeddings":256})");
  ASSERT_TRUE(plain.ok()) << plain.error().message;
  EXPECT_EQ(plain->rope.softmax_factor, 1.0);
  EXPECT_NEAR(plain->rope.attention_factor, 1.138629436, 1e-9);
  const auto fixed = config(kQwen3Moe, R"("rope_scaling":{"rope_type":"yarn","factor":4.0,
      "original_max_position_embeddings":32768,"attention_factor":1.25,"mscale_all_dim":1.0})");
  ASSERT_TRUE(fixed.ok()) << fixed.error().message;
  EXPECT_EQ(fixed->rope.attention_factor, 1.25);
  EXPECT_EQ(fixed->rope.softmax_factor, 1.0);  // DeepSeek's alone
}

TEST(DeepseekConfig, TransformersFiveLeavesOutWhatV3Implies) {
  const auto c = config(kR1, R"("topk_method":null,"scoring_func":null,"moe_layer_freq":null,
      "num_nextn_predict_layers":null,"num_mtp_layers":1,"head_dim":64,"qk_head_dim":192)");
  ASSERT_TRUE(c.ok()) << c.error().message;
  EXPECT_TRUE(c->moe.sigmoid);
  EXPECT_EQ(c->num_nextn_predict_layers, 1);
  const auto half = config(kR1, R"("rope_interleave":false)");
  ASSERT_TRUE(half.ok());
  EXPECT_EQ(half->rope.style, kernels::RopeStyle::kHalfSplit);
}

TEST(DeepseekConfig, MissingFieldsOfV3AreErrorsThatNameThem) {
  for (const char* key :
       {"n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "first_k_dense_replace",
        "n_group", "topk_group", "norm_topk_prob", "routed_scaling_factor", "n_shared_experts",
        "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
        "num_attention_heads"}) {
    expect_error(config(kR1, "", key), ErrorCode::kInvalidArgument,
                 {key, "is missing", "dir/config.json"});
  }
  // Absent and null are the same for the query's rank, and there may be no shared expert.
  const auto plain = config(kR1, R"("n_shared_experts":null)", "q_lora_rank");
  ASSERT_TRUE(plain.ok()) << plain.error().message;
  EXPECT_EQ(plain->mla.q_lora_rank, 0);
  EXPECT_EQ(plain->moe.shared_experts, 0);
  expect_error(config(kQwen3Moe, "", "num_experts"), ErrorCode::kInvalidArgument,
               {"num_experts is missing"});
}

TEST(DeepseekConfig, RefusesWhatItWouldNotCompute) {
  const std::vector<std::pair<std::string, std::vector<std::string>>> cases = {
      {R"("scoring_func":"softmax")", {"scoring_func", "softmax", "sigmoid"}},
      {R"("topk_method":"greedy")", {"topk_method", "greedy", "noaux_tc"}},
      {R"("topk_method":"magic")", {"topk_method", "magic"}},
      {R"("scoring_func":7)", {"scoring_func is 7"}},
      {R"("attention_bias":true)", {"attention_bias"}},
      {R"("qk_rope_head_dim":63)", {"qk_rope_head_dim is 63", "even"}},
      {R"("num_key_value_heads":8)", {"num_key_value_heads 8", "128"}},
      {R"("n_group":7)", {"n_group 7", "256"}},
      {R"("topk_group":9)", {"topk_group 9", "n_group 8"}},
      {R"("num_experts_per_tok":257)", {"num_experts_per_tok 257", "256"}},
      {R"("num_experts_per_tok":129)", {"num_experts_per_tok 129", "128", "topk_group"}},
      {R"("n_routed_experts":65536)", {"65536 experts", "61 layers"}},
      {R"("moe_layer_freq":0)", {"moe_layer_freq is 0"}},
      {R"("q_lora_rank":0)", {"q_lora_rank is 0"}},
      {R"("kv_lora_rank":70000)", {"kv_lora_rank is 70000"}},
      {R"("routed_scaling_factor":-1)", {"routed_scaling_factor"}},
      {R"("n_shared_experts":65536,"moe_intermediate_size":65536)", {"n_shared_experts"}},
      {R"("rope_scaling":{"type":"yarn","factor":4,"original_max_position_embeddings":0})",
       {"original_max_position_embeddings is 0"}},
      {R"("rope_scaling":{"type":"yarn","factor":4,"original_max_position_embeddings":9,
          "mscale":-9,"mscale_all_dim":1})",
       {"mscale -9"}},
      {R"("rope_theta":1)", {"rope_theta", "YaRN"}},
  };
  for (const auto& [extra, parts] : cases) {
    SCOPED_TRACE(extra);
    expect_error(config(kR1, extra), ErrorCode::kInvalidArgument, parts);
  }
  expect_error(config(kV2Lite, R"("topk_method":"noaux_tc")"), ErrorCode::kInvalidArgument,
               {"topk_method", "noaux_tc", "group_limited_greedy"});
  expect_error(config(kV2Lite, R"("scoring_func":"sigmoid")"), ErrorCode::kInvalidArgument,
               {"scoring_func", "sigmoid"});
  expect_error(config(kQwen3Moe, R"("mlp_only_layers":[48])"), ErrorCode::kInvalidArgument,
               {"mlp_only_layers is 48"});
}

TEST(DeepseekConfig, QuantisationIsBlockFp8OrRefused) {
  const auto with = [](const std::string& q) {
    return config(kR1, "\"quantization_config\":" + q);
  };
  EXPECT_TRUE(with(R"({"quant_method":"fp8","fmt":"e4m3","activation_scheme":"dynamic",
      "weight_block_size":[128,128],"scale_fmt":"ue8m0"})")
                  .ok());
  EXPECT_TRUE(with(R"({"quant_method":"fp8","weight_block_size":[128,128],
      "modules_to_not_convert":["lm_head"]})")
                  .ok());
  const std::vector<std::pair<std::string, std::vector<std::string>>> cases = {
      {R"({"quant_method":"awq"})", {"quant_method", "awq", "GGUF"}},
      {R"({"quant_method":8})", {"quant_method is 8"}},
      {R"({})", {"quant_method is missing"}},
      {R"({"quant_method":"fp8"})", {"weight_block_size is missing"}},
      {R"({"quant_method":"fp8","weight_block_size":[64,128]})", {"weight_block_size", "[64,128]"}},
      {R"({"quant_method":"fp8","weight_block_size":[128,128],"fmt":"e5m2"})", {"fmt", "e5m2"}},
      {R"({"quant_method":"fp8","weight_block_size":[128,128],"activation_scheme":"static"})",
       {"activation_scheme", "static", "dynamic"}},
      {R"({"quant_method":"fp8","weight_block_size":[128,128],"scale_fmt":"e4m3"})",
       {"scale_fmt", "e4m3"}},
  };
  for (const auto& [q, parts] : cases) {
    SCOPED_TRACE(q);
    expect_error(with(q), ErrorCode::kInvalidArgument, parts);
  }
}

TEST(DeepseekConfig, InventoryIsThatOfThePublishedCheckpoint) {
  const auto c = config(kR1);
  ASSERT_TRUE(c.ok()) << c.error().message;
  // Tensors and bytes of DeepSeek-V3's index: FP8 matrices with float32 scales, the rest BF16 but
  // the correction bias.
  const auto count = [&](bool draft) {
    std::pair<size_t, int64_t> total;  // tensors, bytes
    for (const WeightSpec& w : required_weights(*c, draft)) {
      const auto elems = [](const WeightSpec& s) {
        int64_t n = 1;
        for (const int64_t d : s.shape) n *= d;
        return n;
      };
      total.first += w.quantised ? 2 : 1;
      if (w.quantised) {
        total.second += elems(w) + 4 * elems(scale_spec(w));
      } else {
        total.second += elems(w) * (w.name.ends_with("correction_bias") ? 4 : 2);
      }
    }
    return total;
  };
  EXPECT_EQ(count(false), (std::pair<size_t, int64_t>(90427, 673150611808)));
  // Less the copies of embedding and head, which are not loaded.
  EXPECT_EQ(count(true).first, 91991u - 2);
  EXPECT_EQ(count(true).second, 688574839360 - 2 * 2 * 129280LL * 7168);
  const WeightSpec kv_a{"w", {576, 7168}};
  EXPECT_EQ(scale_spec(kv_a).shape, (std::vector<int64_t>{5, 56}));
  EXPECT_NEAR(static_cast<double>(active_parameter_count(*c)) / 1e9, 36.6, 0.2);
}

}  // namespace
}  // namespace capstan::model
