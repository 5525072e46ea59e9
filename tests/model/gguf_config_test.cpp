#include "model/gguf_config.h"

#include <gtest/gtest.h>

#include "checkpoint_files.h"
#include "model/checkpoint.h"
#include "model/weights.h"
#include "tiny_model.h"

namespace capstan::model {
namespace {

/// Metadata of tiny_config() as the converter writes it.
GgufWriter tiny_gguf(const std::string& arch = "llama") {
  GgufWriter w;
  w.string("general.architecture", arch).string("general.name", "Tiny");
  w.u32(arch + ".embedding_length", 32).u32(arch + ".feed_forward_length", 48);
  w.u32(arch + ".block_count", 2).u32(arch + ".attention.head_count", 4);
  w.u32(arch + ".attention.head_count_kv", 2).u32(arch + ".context_length", 64);
  w.u32(arch + ".rope.dimension_count", 8).f32(arch + ".rope.freq_base", 5000);
  w.f32(arch + ".attention.layer_norm_rms_epsilon", 1e-5F);
  std::vector<std::string> tokens(40, "t");
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] += std::to_string(i);
  w.string("tokenizer.ggml.model", "gpt2").string("tokenizer.ggml.pre", "smollm");
  w.strings("tokenizer.ggml.tokens", tokens);
  w.i32s("tokenizer.ggml.token_type", std::vector<int32_t>(40, 1));
  w.strings("tokenizer.ggml.merges", {"t 1", "t 2"});
  w.u32("tokenizer.ggml.bos_token_id", 1).u32("tokenizer.ggml.eos_token_id", 2);
  w.u32("tokenizer.ggml.padding_token_id", 3).boolean("tokenizer.ggml.add_bos_token", false);
  w.string("tokenizer.chat_template", "{{ x }}");
  return w;
}

std::string gguf_name(const std::string& hf_name) {
  const std::vector<std::pair<std::string, std::string>> names = {
      {"model.embed_tokens.", "token_embd."},
      {"model.norm.", "output_norm."},
      {"lm_head.", "output."},
      {"model.layers.", "blk."},
      {"input_layernorm", "attn_norm"},
      {"post_attention_layernorm", "ffn_norm"},
      {"self_attn.q_proj", "attn_q"},
      {"self_attn.k_proj", "attn_k"},
      {"self_attn.v_proj", "attn_v"},
      {"self_attn.o_proj", "attn_output"},
      {"mlp.gate_proj", "ffn_gate"},
      {"mlp.up_proj", "ffn_up"},
      {"mlp.down_proj", "ffn_down"},
      {"self_attn.q_norm", "attn_q_norm"},
      {"self_attn.k_norm", "attn_k_norm"}};
  std::string name = hf_name;
  for (const auto& [from, to] : names) {
    const size_t at = name.find(from);
    if (at != std::string::npos) name.replace(at, from.size(), to);
  }
  return name;
}

void add_tensors(GgufWriter& w, bool tied = false) {
  for (FileTensor t : tiny_tensors()) {
    if (tied && t.name == "lm_head.weight") continue;
    t.name = gguf_name(t.name);
    w.tensor(t, 0);
  }
}

Result<std::unique_ptr<Checkpoint>> open(const GgufWriter& w, const std::string& overrides = "{}") {
  const TempDir dir;  // the mapping outlives the file's name
  return Checkpoint::open(dir.write("m.gguf", w.bytes()), overrides);
}

TEST(GgufConfig, ReadsConfigVocabularyAndTensors) {
  GgufWriter w = tiny_gguf();
  add_tensors(w);
  const auto opened = open(w);
  ASSERT_TRUE(opened.ok()) << opened.error().message;
  const Checkpoint& c = **opened;
  const ModelConfig& m = c.config();
  EXPECT_EQ(m.architecture, Architecture::kLlama);
  EXPECT_EQ(m.hidden_size, 32);
  EXPECT_EQ(m.head_dim, 8);
  EXPECT_EQ(m.vocab_size, 40);
  EXPECT_EQ(m.rope.theta, 5000);
  EXPECT_FLOAT_EQ(static_cast<float>(m.rms_norm_eps), 1e-5F);
  EXPECT_EQ(m.rope.style, kernels::RopeStyle::kInterleaved);
  EXPECT_EQ(m.rope.scaling, RopeScaling::kNone);
  EXPECT_FALSE(m.tie_word_embeddings);
  EXPECT_EQ(m.eos_token_ids, (std::vector<int32_t>{2}));
  EXPECT_EQ(m.bos_token_id, 1);
  EXPECT_EQ(c.general_name(), "Tiny");
  EXPECT_TRUE(check_weights(c).ok());

  const text::GgufVocabulary* v = c.gguf_vocabulary();
  ASSERT_NE(v, nullptr);
  EXPECT_EQ(v->model, "gpt2");
  EXPECT_EQ(v->pre, "smollm");
  EXPECT_EQ(v->tokens.size(), 40u);
  EXPECT_EQ(v->tokens[39], "t39");
  EXPECT_EQ(v->token_types.size(), 40u);
  EXPECT_EQ(v->merges, (std::vector<std::string>{"t 1", "t 2"}));
  EXPECT_EQ(v->bos_id, 1);
  EXPECT_EQ(v->eos_id, 2);
  EXPECT_EQ(v->pad_id, 3);
  EXPECT_EQ(v->add_bos, false);
  EXPECT_FALSE(v->add_eos.has_value());
  EXPECT_EQ(v->chat_template, "{{ x }}");
}

TEST(GgufConfig, TiedWhenTheOutputIsMissing) {
  GgufWriter w = tiny_gguf();
  add_tensors(w, /*tied=*/true);
  const auto c = open(w);
  ASSERT_TRUE(c.ok()) << c.error().message;
  EXPECT_TRUE((*c)->config().tie_word_embeddings);
  EXPECT_TRUE(check_weights(**c).ok());
}

TEST(GgufConfig, QwenKeepsHalfSplitRope) {
  for (const std::string arch : {"qwen2", "qwen3"}) {
    const auto c = open(tiny_gguf(arch));
    ASSERT_TRUE(c.ok()) << c.error().message;
    EXPECT_EQ((*c)->config().rope.style, kernels::RopeStyle::kHalfSplit);
    EXPECT_EQ((*c)->config().qkv_bias, arch == "qwen2");
    EXPECT_EQ((*c)->config().qk_norm, arch == "qwen3");
  }
}

TEST(GgufConfig, FrequencyFactorsAreRead) {
  GgufWriter w = tiny_gguf();
  w.tensor(float_tensor("rope_freqs.weight", {4}, [](int64_t i) { return i + 1.0; }), 0);
  const auto c = open(w);
  ASSERT_TRUE(c.ok()) << c.error().message;
  EXPECT_EQ((*c)->config().rope.scaling, RopeScaling::kFactors);
  EXPECT_EQ((*c)->config().rope.factors, (std::vector<float>{1, 2, 3, 4}));

  GgufWriter wrong_size = tiny_gguf();
  wrong_size.tensor(float_tensor("rope_freqs.weight", {5}, [](int64_t) { return 1.0; }), 0);
  expect_error(open(wrong_size), ErrorCode::kDataLoss, {"rope_freqs.weight", "[5]", "[4]"});
  GgufWriter zero = tiny_gguf();
  zero.tensor(float_tensor("rope_freqs.weight", {4}, [](int64_t i) { return i; }), 0);
  expect_error(open(zero), ErrorCode::kDataLoss, {"rope_freqs.weight", "above 0"});
}

TEST(GgufConfig, MoreEndTokensAndSamplingDefaults) {
  GgufWriter w = tiny_gguf();
  w.u32("tokenizer.ggml.eot_token_id", 7).u32("tokenizer.ggml.eom_token_id", UINT32_MAX);
  w.f32("general.sampling.temp", 0.5F).u32("general.sampling.top_k", 0);
  const auto c = open(w);
  ASSERT_TRUE(c.ok()) << c.error().message;
  EXPECT_EQ((*c)->config().eos_token_ids, (std::vector<int32_t>{2, 7}));
  EXPECT_EQ((*c)->generation_defaults().temperature, 0.5);
  EXPECT_EQ((*c)->generation_defaults().top_k, -1);
  EXPECT_FALSE((*c)->generation_defaults().top_p.has_value());
}

TEST(GgufConfig, PerLayerArraysMustAgree) {
  const auto with = [](const std::vector<int32_t>& heads) {
    GgufWriter w;
    w.string("general.architecture", "llama").u32("llama.embedding_length", 32);
    w.u32("llama.feed_forward_length", 48).u32("llama.block_count", 2);
    w.u32("llama.attention.head_count", 4).i32s("llama.attention.head_count_kv", heads);
    w.u32("llama.context_length", 64).u32("llama.vocab_size", 40);
    w.f32("llama.attention.layer_norm_rms_epsilon", 1e-5F);
    return w;
  };
  const auto c = open(with({2, 2}));
  ASSERT_TRUE(c.ok()) << c.error().message;
  EXPECT_EQ((*c)->config().num_kv_heads, 2);
  EXPECT_EQ((*c)->gguf_vocabulary(), nullptr);
  expect_error(open(with({2, 4})), ErrorCode::kInvalidArgument, {"head_count_kv", "differs"});
}

TEST(GgufConfig, OverridesApplyToTheEquivalentConfig) {
  const auto c = open(tiny_gguf(), R"({"rope_theta":77,"max_position_embeddings":9})");
  ASSERT_TRUE(c.ok()) << c.error().message;
  EXPECT_EQ((*c)->config().rope.theta, 77);
  EXPECT_EQ((*c)->config().max_position_embeddings, 9);
}

TEST(GgufConfig, RefusesWhatIsNotSupported) {
  expect_error(open(tiny_gguf("gemma")), ErrorCode::kInvalidArgument,
               {"'gemma'", "llama, qwen2, qwen3, qwen3moe, deepseek2", "m.gguf"});
  expect_error(open(GgufWriter().u32("x", 1)), ErrorCode::kDataLoss, {"general.architecture"});
  expect_error(open(GgufWriter().string("general.architecture", "llama")), ErrorCode::kDataLoss,
               {"llama.attention.layer_norm_rms_epsilon", "missing"});
  expect_error(open(GgufWriter()
                        .string("general.architecture", "llama")
                        .f32("llama.attention.layer_norm_rms_epsilon", 1e-5F)),
               ErrorCode::kInvalidArgument, {"hidden_size", "missing"});
  const std::vector<std::pair<GgufWriter, std::vector<std::string>>> cases = {
      {tiny_gguf().u32("split.count", 3), {"split", "3"}},
      {tiny_gguf().u32("llama.expert_count", 8), {"expert_count", "8"}},
      {tiny_gguf().u32("llama.attention.sliding_window", 128), {"use_sliding_window"}},
      {tiny_gguf().string("llama.rope.scaling.type", "longrope"), {"'longrope'"}},
      {tiny_gguf().string("llama.rope.scaling.type", "yarn"),
       {"original_max_position_embeddings", "missing"}},
      {tiny_gguf()
           .string("llama.rope.scaling.type", "yarn")
           .f32("llama.rope.scaling.attn_factor", 2),
       {"attn_factor is 2"}},
      {tiny_gguf().u32("llama.attention.key_length", 8).u32("llama.attention.value_length", 16),
       {"key_length is 8", "16"}},
      {tiny_gguf().u32("llama.attention.key_length", 16), {"partial_rotary_factor"}},
  };
  for (const auto& [w, parts] : cases) {
    SCOPED_TRACE(parts[0]);
    expect_error(open(w), ErrorCode::kInvalidArgument, parts);
  }
  EXPECT_TRUE(open(tiny_gguf().string("llama.rope.scaling.type", "none")).ok());
}

TEST(GgufConfig, RefusesDamagedVocabularies) {
  const auto with = [](auto&& change) {
    GgufWriter w;
    w.string("general.architecture", "llama").u32("llama.embedding_length", 32);
    w.u32("llama.feed_forward_length", 48).u32("llama.block_count", 2);
    w.u32("llama.attention.head_count", 4).u32("llama.context_length", 64);
    w.u32("llama.vocab_size", 3).string("tokenizer.ggml.model", "gpt2");
    w.f32("llama.attention.layer_norm_rms_epsilon", 1e-5F);
    change(w);
    return w;
  };
  const std::vector<std::string> tokens = {"a", "b", "c"};
  const char* key = "tokenizer.ggml.tokens";
  expect_error(open(with([](GgufWriter&) {})), ErrorCode::kDataLoss, {key});
  expect_error(open(with([&](GgufWriter& w) { w.i32s(key, {1}); })), ErrorCode::kDataLoss, {key});
  expect_error(open(with([&](GgufWriter& w) {
                 w.strings(key, tokens).i32s("tokenizer.ggml.token_type", {1, 1});
               })),
               ErrorCode::kDataLoss, {"token_type", "2", "3"});
  expect_error(open(with([&](GgufWriter& w) {
                 w.strings(key, tokens).i32s("tokenizer.ggml.token_type", {1, 1, 9});
               })),
               ErrorCode::kDataLoss, {"token_type", "token 2"});
  expect_error(
      open(with([&](GgufWriter& w) { w.strings(key, tokens).i32s("tokenizer.ggml.merges", {1}); })),
      ErrorCode::kDataLoss, {"merges"});
  expect_error(open(with([&](GgufWriter& w) {
                 w.strings(key, tokens).u32("tokenizer.ggml.padding_token_id", 3);
               })),
               ErrorCode::kDataLoss, {"padding_token_id is 3"});
}

TEST(GgufNames, AreMappedToHuggingFace) {
  for (const WeightSpec& w : required_weights(tiny_config())) {
    EXPECT_EQ(hf_tensor_name(gguf_name(w.name)), w.name);
  }
  EXPECT_EQ(hf_tensor_name("blk.17.attn_q.bias"), "model.layers.17.self_attn.q_proj.bias");
  EXPECT_EQ(hf_tensor_name("blk.0.attn_k_norm.weight"), "model.layers.0.self_attn.k_norm.weight");
  for (const char* other :
       {"rope_freqs.weight", "blk.", "blk.x", "blk.0.weight", "", "blk.0.a.b"}) {
    EXPECT_EQ(hf_tensor_name(other), other);
  }
}

}  // namespace
}  // namespace capstan::model
