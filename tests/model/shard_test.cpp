// What ranks hold, and what can not be cut.
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "deepseek_models.h"
#include "model/sharded_weights.h"
#include "tiny_model.h"

namespace capstan::model {
namespace {

ModelConfig heads(int query, int kv) {
  ModelConfig c = tiny_config();
  c.architecture_name = "LlamaForCausalLM";
  c.num_heads = query;
  c.num_kv_heads = kv;
  return c;
}

ModelConfig experts(int count) {
  ModelConfig c = tiny_config();
  c.architecture_name = "Qwen3MoeForCausalLM";
  c.moe.experts = count;
  c.moe.top_k = 2;
  c.moe.intermediate_size = 48;
  c.moe.layers = {true, true};
  return c;
}

TEST(Shard, RefusesWhatHeadsAndExpertsDoNotAllow) {
  const auto refused = [](const ModelConfig& c, Shard s, const std::string& param,
                          const std::vector<std::string>& words) {
    const Status status = check_shard(c, s);
    expect_error(status, ErrorCode::kInvalidArgument, words);
    if (!status.ok()) {
      EXPECT_EQ(status.error().param, param);
    }
  };
  refused(heads(9, 3), {.size = 2}, "tp-size",
          {"--tp-size 2", "9 attention heads can not be divided by 2", "1, 3, 9 ranks"});
  refused(heads(28, 4), {.size = 7}, "tp-size",
          {"--tp-size 7", "4 key and value heads can not be divided by 7", "1, 2, 4, 28 ranks"});
  refused(heads(4, 2), {.rank = 4, .size = 4}, "tp-size", {"no rank 4"});
  refused(heads(4, 2), {.size = 0}, "tp-size", {"--tp-size 0"});
  refused(heads(64, 64), {.size = 64}, "tp-size", {"vocabulary of 40"});
  refused(heads(4, 2), {.size = 4, .ep_size = 2}, "ep-size",
          {"--ep-size 2", "LlamaForCausalLM", "no experts"});
  refused(experts(8), {.size = 4, .ep_size = 3}, "ep-size", {"--ep-size 3", "4 ranks"});
  refused(experts(8), {.size = 4, .ep_size = 0}, "ep-size", {"--ep-size 0"});
  refused(experts(2), {.size = 4, .ep_size = 4}, "ep-size", {"--ep-size 4", "2 experts"});
  EXPECT_TRUE(check_shard(heads(28, 4), {.size = 28}).ok());
  EXPECT_TRUE(check_shard(experts(2), {.size = 4, .ep_size = 2}).ok());
  ModelConfig latent = heads(6, 6);
  latent.mla.kv_lora_rank = 8;
  EXPECT_TRUE(check_shard(latent, {.size = 3}).ok());
}

TEST(Shard, LocalConfigHasTheRanksHeads) {
  EXPECT_EQ(local_config(heads(32, 8), {.size = 4}).num_heads, 8);
  EXPECT_EQ(local_config(heads(32, 8), {.size = 4}).num_kv_heads, 2);
  EXPECT_EQ(local_config(heads(32, 8), {.size = 16}).num_kv_heads, 1);
  EXPECT_EQ(local_config(heads(32, 8), {.size = 16}).vocab_size, tiny_config().vocab_size);
}

/// Slices of all ranks of a weight of layer 0, as [begin, end) pairs.
using Pairs = std::vector<std::pair<int64_t, int64_t>>;
template <class Pick>
Pairs slices(const ModelConfig& c, int ranks, DType dtype, Pick&& pick, int ep = 1) {
  Pairs out;
  for (int r = 0; r < ranks; ++r) {
    const ShardedWeights weights(c, {.rank = r, .size = ranks, .ep_size = ep},
                                 [dtype](const WeightSpec&) { return dtype; });
    const auto layer = weights.layer(0);
    EXPECT_TRUE(layer.ok()) << layer.error().message;
    if (!layer.ok()) return out;
    const WeightSpec* w = pick(*layer);
    if (w == nullptr) {
      out.emplace_back(0, 0);
    } else {
      out.emplace_back(w->slice.begin, w->slice.end);
    }
  }
  return out;
}

TEST(Shard, CutsHeadsAndRepeatsKeysAndValues) {
  const ModelConfig c = heads(4, 2);  // of 8 elements
  const auto q = [](const LayerSpec& l) { return &l.gqa->qkv[0]; };
  const auto k = [](const LayerSpec& l) { return &l.gqa->qkv[1]; };
  const auto v = [](const LayerSpec& l) { return &l.gqa->qkv[2]; };
  const auto o = [](const LayerSpec& l) { return &l.o; };
  EXPECT_EQ(slices(c, 2, DType::kF32, q), (Pairs{{0, 16}, {16, 32}}));
  EXPECT_EQ(slices(c, 2, DType::kF32, k), (Pairs{{0, 8}, {8, 16}}));
  EXPECT_EQ(slices(c, 4, DType::kF32, q), (Pairs{{0, 8}, {8, 16}, {16, 24}, {24, 32}}));
  EXPECT_EQ(slices(c, 4, DType::kF32, v), (Pairs{{0, 8}, {0, 8}, {8, 16}, {8, 16}}));
  EXPECT_EQ(slices(c, 4, DType::kF32, o), (Pairs{{0, 8}, {8, 16}, {16, 24}, {24, 32}}));
  // A block of the format is held by all whose heads it touches.
  ModelConfig wide = heads(6, 6);
  wide.head_dim = 128;
  EXPECT_EQ(slices(wide, 2, DType::kQ4_K, o), (Pairs{{0, 512}, {256, 768}}));
  EXPECT_EQ(slices(wide, 2, DType::kQ8_0, o), (Pairs{{0, 384}, {384, 768}}));
  const ShardedWeights second(wide, {.rank = 1, .size = 2},
                              [](const WeightSpec&) { return DType::kQ4_K; });
  EXPECT_EQ(second.layer(0).value().attention_offset, 128);
}

TEST(Shard, CutsFfnsAtBlocksOfTheFormat) {
  const auto gate = [](const LayerSpec& l) {
    return l.dense->gate_up.empty() ? nullptr : &l.dense->gate_up[0];
  };
  const auto down = [](const LayerSpec& l) {
    return l.dense->gate_up.empty() ? nullptr : &l.dense->down;
  };
  ModelConfig c = heads(4, 4);
  c.intermediate_size = 8960;
  EXPECT_EQ(slices(c, 2, DType::kQ4_K, down), (Pairs{{0, 4352}, {4352, 8960}}));  // 17 and 18
  EXPECT_EQ(slices(c, 2, DType::kQ4_K, gate), (Pairs{{0, 4352}, {4352, 8960}}));
  EXPECT_EQ(slices(c, 2, DType::kBF16, down), (Pairs{{0, 4480}, {4480, 8960}}));
  c.intermediate_size = 2050;
  EXPECT_EQ(slices(c, 2, DType::kF32, down), (Pairs{{0, 1024}, {1024, 2050}}));  // whole panels
  c.intermediate_size = 74;
  EXPECT_EQ(slices(c, 4, DType::kF32, down), (Pairs{{0, 18}, {18, 37}, {37, 55}, {55, 74}}));
  c.intermediate_size = 64;  // 2 blocks for 4 ranks
  EXPECT_EQ(slices(c, 4, DType::kQ8_0, down), (Pairs{{0, 0}, {0, 32}, {0, 0}, {32, 64}}));
}

TEST(Shard, GivesExpertsToGroupsOfRanks) {
  const ModelConfig c = experts(3);
  const auto expert = [](size_t e) {
    return [e](const LayerSpec& l) {
      return l.moe->experts[e].gate_up.empty() ? nullptr : &l.moe->experts[e].down;
    };
  };
  EXPECT_EQ(slices(c, 4, DType::kF32, expert(0)), (Pairs{{0, 12}, {12, 24}, {24, 36}, {36, 48}}));
  // Groups {0, 1} and {2, 3}; one expert for the first, two for the second.
  EXPECT_EQ(slices(c, 4, DType::kF32, expert(0), 2), (Pairs{{0, 24}, {24, 48}, {0, 0}, {0, 0}}));
  EXPECT_EQ(slices(c, 4, DType::kF32, expert(1), 2), (Pairs{{0, 0}, {0, 0}, {0, 24}, {24, 48}}));
  EXPECT_EQ(slices(c, 4, DType::kF32, expert(2), 2), (Pairs{{0, 0}, {0, 0}, {0, 24}, {24, 48}}));
}

TEST(Shard, CutsTheVocabularyInWholePanels) {
  ModelConfig c = heads(4, 4);
  c.vocab_size = 151936;
  EXPECT_EQ(vocabulary_parts(c, {.size = 2}), (std::vector<int64_t>{75968, 75968}));
  const std::vector<int64_t> three = vocabulary_parts(c, {.size = 3});
  EXPECT_EQ(three, (std::vector<int64_t>{50640, 50640, 50656}));
  c.vocab_size = 40;
  EXPECT_EQ(vocabulary_parts(c, {.size = 3}), (std::vector<int64_t>{13, 13, 14}));
}

TEST(Shard, BlockScaledWeightsAreCutAtTheirBlocksOnly) {
  const auto checked = [](const std::string& name, Shard shard) {
    auto c = Checkpoint::open(deepseek_checkpoint(name));
    EXPECT_TRUE(c.ok());
    LoadOptions options;
    options.shard = shard;
    return check_shard(**c, options);
  };
  EXPECT_TRUE(checked("tiny-v3-fp8", {.size = 2}).ok());
  EXPECT_TRUE(checked("tiny-v3-bf16", {.size = 4}).ok());
  expect_error(checked("tiny-v3-fp8", {.size = 4}), ErrorCode::kInvalidArgument,
               {"--tp-size 4", "model.layers.0.self_attn.o_proj.weight", "256 columns over 4 ranks",
                "64 each", "128"});
  const auto cut = [](int64_t width, int ranks, int ep) {
    ModelConfig c = experts(16);
    c.num_heads = c.num_kv_heads = 16;
    c.head_dim = 128;
    c.moe.intermediate_size = width;
    return ShardedWeights(c, {.size = ranks, .ep_size = ep},
                          [](const WeightSpec&) { return DType::kF8E4M3; })
        .layer(0)
        .status();
  };
  expect_error(cut(1408, 8, 1), ErrorCode::kInvalidArgument,
               {"--tp-size 8", "model.layers.0.mlp.experts.0.down_proj.weight",
                "1408 columns over 8 ranks", "176 each", "smaller --tp-size", "larger --ep-size"});
  EXPECT_TRUE(cut(1408, 8, 8).ok());
  EXPECT_TRUE(cut(2048, 16, 1).ok());
  expect_error(cut(1408, 8, 2), ErrorCode::kInvalidArgument, {"1408 columns over 4 ranks"});
  EXPECT_TRUE(cut(1536, 8, 2).ok());
}

}  // namespace
}  // namespace capstan::model
