#include "model/config_json.h"

#include <gtest/gtest.h>

#include "checkpoint_files.h"
#include "model/json.h"

namespace capstan::model {
namespace {

const std::string kLlama = R"("architectures":["LlamaForCausalLM"],"model_type":"llama",
  "hidden_size":64,"intermediate_size":96,"num_hidden_layers":2,"num_attention_heads":4,
  "num_key_value_heads":2,"vocab_size":100,"max_position_embeddings":128)";

/// The config of {base, extra}; a key of `extra` replaces that of the base.
Result<ModelConfig> config(const std::string& extra, const std::string& base = kLlama) {
  auto object = parse_json_object("{" + base + "}", "config.json");
  EXPECT_TRUE(object.ok());
  EXPECT_TRUE(merge_overrides(*object, "{" + extra + "}").ok()) << extra;
  return config_from_json(*object, "dir/config.json");
}

TEST(ConfigJson, ReadsTheOldSpelling) {
  const auto c = config(R"("torch_dtype":"bfloat16","rope_theta":500000,"rms_norm_eps":1e-05,
    "rope_scaling":{"type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,
    "original_max_position_embeddings":8192},"bos_token_id":1,"eos_token_id":[2,7,2],
    "tie_word_embeddings":true)");
  ASSERT_TRUE(c.ok()) << c.error().message;
  EXPECT_EQ(c->architecture, Architecture::kLlama);
  EXPECT_EQ(c->weight_dtype, DType::kBF16);
  EXPECT_EQ(c->rope.theta, 500000);
  EXPECT_EQ(c->rope.scaling, RopeScaling::kLlama3);
  EXPECT_EQ(c->rope.factor, 8);
  EXPECT_EQ(c->rope.original_max_position, 8192);
  EXPECT_EQ(c->rope.style, kernels::RopeStyle::kHalfSplit);
  EXPECT_EQ(c->rms_norm_eps, 1e-5);
  EXPECT_EQ(c->head_dim, 16);
  EXPECT_EQ(c->rope.dim, 16);
  EXPECT_EQ(c->bos_token_id, 1);
  EXPECT_EQ(c->eos_token_ids, (std::vector<int32_t>{2, 7}));
  EXPECT_TRUE(c->tie_word_embeddings);
  EXPECT_FALSE(c->qkv_bias);
  EXPECT_FALSE(c->qk_norm);
}

TEST(ConfigJson, ReadsTheNewSpelling) {
  const auto c = config(R"("dtype":"float16","head_dim":32,"eos_token_id":5,
    "rope_parameters":{"rope_theta":10000.5,"rope_type":"default"},"rope_scaling":null)");
  ASSERT_TRUE(c.ok()) << c.error().message;
  EXPECT_EQ(c->weight_dtype, DType::kF16);
  EXPECT_EQ(c->rope.theta, 10000.5);
  EXPECT_EQ(c->rope.scaling, RopeScaling::kNone);
  EXPECT_EQ(c->head_dim, 32);
  EXPECT_EQ(c->eos_token_ids, (std::vector<int32_t>{5}));
}

TEST(ConfigJson, AbsentFieldsHaveTheLibrarysDefaults) {
  const auto c = config("\"num_key_value_heads\":null,\"head_dim\":null,\"eos_token_id\":null");
  ASSERT_TRUE(c.ok()) << c.error().message;
  EXPECT_EQ(c->num_kv_heads, 4);
  EXPECT_EQ(c->head_dim, 16);
  EXPECT_EQ(c->rope.theta, 10000);
  EXPECT_EQ(c->rms_norm_eps, 1e-6);
  EXPECT_FALSE(c->tie_word_embeddings);
  EXPECT_TRUE(c->eos_token_ids.empty());
  EXPECT_EQ(c->bos_token_id, -1);
}

TEST(ConfigJson, QwenArchitecturesDifferInBiasAndNorm) {
  const auto two = config(R"("architectures":["Qwen2ForCausalLM"],"model_type":"qwen2")");
  ASSERT_TRUE(two.ok()) << two.error().message;
  EXPECT_TRUE(two->qkv_bias);
  EXPECT_FALSE(two->qk_norm);
  const auto three = config(R"("architectures":null,"model_type":"qwen3")");
  ASSERT_TRUE(three.ok()) << three.error().message;
  EXPECT_EQ(three->architecture_name, "Qwen3ForCausalLM");
  EXPECT_FALSE(three->qkv_bias);
  EXPECT_TRUE(three->qk_norm);
  EXPECT_EQ(three->head_dim, 128);  // not 64 / 4
}

TEST(ConfigJson, UnknownArchitecturesAreAnsweredWithTheList) {
  const std::vector<std::string> list = {
      "LlamaForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Qwen3MoeForCausalLM, "
      "DeepseekV2ForCausalLM, DeepseekV3ForCausalLM",
      "dir/config.json"};
  auto parts = list;
  parts.push_back("'MambaForCausalLM'");
  expect_error(config(R"("architectures":["MambaForCausalLM"])"), ErrorCode::kInvalidArgument,
               parts);
  parts.back() = "'gpt2'";
  expect_error(config(R"("architectures":null,"model_type":"gpt2")"), ErrorCode::kInvalidArgument,
               parts);
  parts.back() = "model_type";
  expect_error(config(R"("architectures":null,"model_type":null)"), ErrorCode::kInvalidArgument,
               parts);
  expect_error(config(R"("architectures":[])"), ErrorCode::kInvalidArgument, {"architectures"});
}

TEST(ConfigJson, RefusesWhatWouldComputeSomethingElse) {
  const std::vector<std::pair<std::string, std::vector<std::string>>> cases = {
      {R"("attention_bias":true)", {"attention_bias", "true"}},
      {R"("mlp_bias":true)", {"mlp_bias", "true"}},
      {R"("use_sliding_window":true)", {"use_sliding_window"}},
      {R"("layer_types":["full_attention","sliding_attention"])", {"layer_types", "sliding"}},
      {R"("hidden_act":"gelu")", {"hidden_act", "gelu", "silu"}},
      {R"("partial_rotary_factor":0.5)", {"partial_rotary_factor", "5E-1"}},
      {R"("rope_scaling":{"type":"yarn","factor":4})",
       {"rope_scaling", "original_max_position_embeddings", "missing"}},
      {R"("rope_scaling":{"type":"longrope","factor":4})", {"rope_scaling", "'longrope'", "yarn"}},
      {R"("rope_parameters":{"rope_type":"linear"})", {"rope_parameters", "'linear'"}},
      {R"("rope_scaling":{"type":"llama3"})", {"original_max_position_embeddings", "missing"}},
      {R"("rope_scaling":{"type":"llama3","original_max_position_embeddings":64,
          "low_freq_factor":4,"high_freq_factor":4})",
       {"high_freq_factor"}},
      {R"("quantization_config":{"quant_method":"awq"})", {"quantization_config", "awq"}},
      {R"("torch_dtype":"float64")", {"torch_dtype", "float64"}},
  };
  for (const auto& [extra, parts] : cases) {
    SCOPED_TRACE(extra);
    expect_error(config(extra), ErrorCode::kInvalidArgument, parts);
  }
  // Qwen2 always has these biases, so that saying so is no contradiction.
  EXPECT_TRUE(config(R"("architectures":["Qwen2ForCausalLM"],"attention_bias":true)").ok());
  expect_error(config(R"("architectures":["Qwen3ForCausalLM"],"attention_bias":true)"),
               ErrorCode::kInvalidArgument, {"attention_bias"});
}

TEST(ConfigJson, RefusesBadValuesNamingKeyAndValue) {
  const std::vector<std::pair<std::string, std::vector<std::string>>> cases = {
      {R"("hidden_size":null)", {"hidden_size", "missing"}},
      {R"("hidden_size":0)", {"hidden_size is 0"}},
      {R"("hidden_size":-64)", {"hidden_size is -64"}},
      {R"("hidden_size":64.5)", {"hidden_size"}},
      {R"("hidden_size":"64")", {"hidden_size", "\"64\""}},
      {R"("hidden_size":9223372036854775807)", {"hidden_size", "9223372036854775807"}},
      {R"("hidden_size":18446744073709551615)", {"hidden_size", "18446744073709551615"}},
      {R"("hidden_size":65)", {"hidden_size 65", "num_attention_heads 4"}},
      {R"("num_hidden_layers":1000000)", {"num_hidden_layers"}},
      {R"("num_attention_heads":3,"head_dim":16)", {"num_attention_heads 3", "2"}},
      {R"("head_dim":15)", {"head_dim 15", "even"}},
      {R"("head_dim":65536,"num_attention_heads":65536)", {"head_dim 65536"}},
      {R"("vocab_size":4294967296)", {"vocab_size"}},
      {R"("rms_norm_eps":0)", {"rms_norm_eps"}},
      {R"("rms_norm_eps":"tiny")", {"rms_norm_eps", "tiny"}},
      {R"("rope_theta":-1)", {"rope_theta"}},
      {R"("rope_scaling":5)", {"rope_scaling is 5"}},
      {R"("tie_word_embeddings":1)", {"tie_word_embeddings is 1"}},
      {R"("eos_token_id":"<eos>")", {"eos_token_id"}},
      {R"("eos_token_id":[1,-1])", {"eos_token_id", "-1"}},
      {R"("eos_token_id":4294967296)", {"eos_token_id"}},
  };
  for (const auto& [extra, parts] : cases) {
    SCOPED_TRACE(extra);
    auto all = parts;
    all.push_back("dir/config.json");
    expect_error(config(extra), ErrorCode::kInvalidArgument, all);
  }
}

TEST(ConfigJson, BadOverridesBlameTheFlag) {
  boost::json::object object;
  const Status status = merge_overrides(object, "{\"rope_theta\":");
  expect_error(status, ErrorCode::kInvalidArgument, {"JSON"});
  EXPECT_EQ(status.error().param, "json_model_override_args");
  EXPECT_FALSE(merge_overrides(object, "[1]").ok());
  EXPECT_TRUE(merge_overrides(object, "{}").ok());
}

Result<GenerationDefaults> generation(const std::string& text, ModelConfig& c) {
  auto object = parse_json_object(text, "g");
  EXPECT_TRUE(object.ok());
  return generation_defaults_from_json(*object, "generation_config.json", c);
}

TEST(GenerationConfig, ReadsDefaultsAndAddsEndTokens) {
  ModelConfig c;
  c.eos_token_ids = {2};
  const auto d = generation(R"({"eos_token_id":[2,9],"temperature":0.6,"top_p":0.95,"top_k":50,
      "min_p":0.1,"repetition_penalty":1.05,"do_sample":true})",
                            c);
  ASSERT_TRUE(d.ok()) << d.error().message;
  EXPECT_EQ(d->temperature, 0.6);
  EXPECT_EQ(d->top_p, 0.95);
  EXPECT_EQ(d->top_k, 50);
  EXPECT_EQ(d->min_p, 0.1);
  EXPECT_EQ(d->repetition_penalty, 1.05);
  EXPECT_EQ(c.eos_token_ids, (std::vector<int32_t>{2, 9}));
  const auto none = generation(R"({"eos_token_id":4,"top_k":0})", c);
  ASSERT_TRUE(none.ok());
  EXPECT_FALSE(none->temperature || none->top_p || none->min_p || none->repetition_penalty);
  EXPECT_EQ(none->top_k, -1);  // transformers' 0 means all
  EXPECT_EQ(c.eos_token_ids, (std::vector<int32_t>{2, 9, 4}));
}

TEST(GenerationConfig, RefusesValuesOutOfRange) {
  for (const auto& [text, key] : std::vector<std::pair<std::string, std::string>>{
           {R"({"temperature":-0.5})", "temperature"},
           {R"({"top_p":0})", "top_p"},
           {R"({"top_p":1.5})", "top_p"},
           {R"({"min_p":2})", "min_p"},
           {R"({"top_k":-7})", "top_k"},
           {R"({"top_k":"many"})", "top_k"},
           {R"({"repetition_penalty":0})", "repetition_penalty"}}) {
    SCOPED_TRACE(text);
    ModelConfig c;
    expect_error(generation(text, c), ErrorCode::kInvalidArgument, {key, "generation_config.json"});
  }
}

}  // namespace
}  // namespace capstan::model
