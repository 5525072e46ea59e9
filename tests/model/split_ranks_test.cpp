// Ranks of a split model: multi-token prediction, rounded activations, batches, loading, failure.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <string>
#include <vector>

#include "draft_session.h"
#include "split_runs.h"
#include "tiny_model.h"

namespace capstan::model {
namespace {

LoadOptions with_draft(int ep = 1) {
  LoadOptions options;
  options.draft = true;
  options.shard.ep_size = ep;
  return options;
}

TEST(SplitRanks, DraftLayerEqualsOneRanks) {
  struct Case {
    const char* name;
    int ranks, ep;
  };
  for (const Case& c :
       {Case{"tiny-v3-bf16", 2, 1}, {"tiny-v3-groups", 4, 2}, {"tiny-v3-fp8", 2, 2}}) {
    const LoadedModel one = load(deepseek_checkpoint(c.name), exact(), 1, with_draft());
    ASSERT_NE(one.model, nullptr);
    SplitModel split(deepseek_checkpoint(c.name), c.ranks, exact(), with_draft(c.ep));
    const std::vector<int32_t> prompt = prompt_of(one.model->config(), 40, 3);
    const Session::Rows expected = DraftSession(*one.model).run(prompt, 13);
    const Session::Rows actual = DraftSession(split).run(prompt, 13);
    EXPECT_EQ(expected.size(), 39u);
    EXPECT_LT(largest_difference(actual, expected), 1e-5) << c.name;
  }
}

/// Sums of parts differ from sums in one go by float32's rounding, about 1e-6 of the largest value.
/// Where activations are rounded to int8 in blocks of 32, that hardly ever moves one to the other
/// side of a rounding boundary: most rows stay as they are up to that. A value that moves does so
/// by 1/127 of its block's largest, which is the error that rounding makes anyway, and so is what
/// follows where a cut goes through blocks (half of a block is another rank's, and the scale of the
/// rest comes from fewer values). Hence split models are as far from the unrounded result as whole
/// ones.
TEST(SplitRanks, RoundedActivationsDifferByTheirRounding) {
  struct Case {
    const char* name;
    int ranks, ep;
    bool whole_blocks;
  };
  const kernels::CpuOpsOptions rounded{.isa = kernels::Isa::kAvx2};
  for (const Case& c : {Case{"gguf/tiny-llama3-q8_0.gguf", 2, 1, true},
                        {"gguf/tiny-llama3-q8_0.gguf", 4, 1, false},
                        {"deepseek/tiny-qwen3-moe-q8_0", 4, 2, true},
                        {"deepseek/tiny-v3-new-q8_0", 2, 1, true},
                        {"deepseek/tiny-v3-new-q4_k", 2, 2, true}}) {
    const std::string path = path_of(c.name);
    const LoadedModel one = load(path, rounded), unrounded = load(path, exact());
    ASSERT_NE(one.model, nullptr);
    LoadOptions options;
    options.shard.ep_size = c.ep;
    SplitModel split(path, c.ranks, rounded, options);
    const std::vector<int32_t> prompt = prompt_of(one.model->config(), 40, 4);
    const Session::Rows truth = Session(*unrounded.model, 16).prefill(prompt, 40);
    const Session::Rows expected = Session(*one.model, 16).prefill(prompt, 40);
    const Session::Rows actual = Session(split, 16).prefill(prompt, 40);
    std::vector<double> apart;
    double whole_error = 0, split_error = 0;
    for (size_t i = 0; i < truth.size(); ++i) {
      apart.push_back(cosine_difference(actual[i], expected[i]));
      whole_error += cosine_difference(expected[i], truth[i]) / 40;
      split_error += cosine_difference(actual[i], truth[i]) / 40;
    }
    std::nth_element(apart.begin(), apart.begin() + 20, apart.end());
    EXPECT_LT(split_error, 1.5 * whole_error) << c.name << " tp " << c.ranks;
    if (c.whole_blocks) {
      EXPECT_LT(apart[20], 1e-10) << c.name << " tp " << c.ranks;
    }
  }
}

TEST(SplitRanks, BitsOfARowDoNotDependOnTheBatch) {
  for (const char* name : {"tiny-qwen3-f32", "deepseek/tiny-v3-bf16"}) {
    LoadOptions options;
    options.mla_form = kernels::MlaForm::kAbsorbed;
    SplitModel split(path_of(name), 2, {.isa = kernels::Isa::kAvx2}, options);
    const auto first = prompt_of(split.config(), 23, 5), second = prompt_of(split.config(), 9, 6);
    Session alone(split, 16), together(split, 16);
    const Session::Rows expected = alone.prefill(first, 0);
    EXPECT_EQ(alone.prefill(first, 5, 1), expected) << name;
    const Session::Rows mixed = together.step({{0, second, true}, {1, first, true}});
    EXPECT_EQ(Session::Rows(mixed.begin() + 9, mixed.end()), expected) << name;
  }
}

TEST(SplitRanks, EachReadsAndHoldsItsPartOnly) {
  struct Case {
    const char* name;
    int ranks, ep;
  };
  for (const Case& c : {Case{"tiny-llama3-bf16", 2, 1},
                        {"tiny-qwen3-f32", 4, 1},
                        {"deepseek/tiny-v2-bf16", 4, 1},
                        {"deepseek/tiny-v3-bf16", 4, 4},
                        {"deepseek/tiny-v3-fp8", 2, 1},
                        {"deepseek/tiny-qwen3-moe-q8_0", 2, 2}}) {
    const std::string path = path_of(c.name);
    auto checkpoint = Checkpoint::open(path);
    ASSERT_TRUE(checkpoint.ok());
    const ModelConfig& config = (*checkpoint)->config();
    // What every rank has, and what is read twice where key and value heads are fewer than ranks.
    size_t whole = 0, split_once = 0;
    for (const WeightSpec& w : required_weights(config)) {
      if (w.shape.size() == 1) continue;
      const size_t bytes = (*checkpoint)->find(w.name)->bytes();
      if (w.name == embedding_spec(config).name && !config.tie_word_embeddings) continue;
      const bool everywhere = w.name.ends_with("q_a_proj.weight") ||
                              w.name.ends_with("mlp.gate.weight") ||
                              w.name.ends_with("kv_a_proj_with_mqa.weight");
      const bool keys = w.name.ends_with("k_proj.weight") || w.name.ends_with("v_proj.weight");
      const int copies = keys && c.ranks > config.num_kv_heads ? c.ranks / config.num_kv_heads : 1;
      (everywhere ? whole : split_once) += bytes * static_cast<size_t>(copies);
    }
    LoadOptions options;
    options.shard.ep_size = c.ep;
    SplitModel split(path, c.ranks, exact(), options);
    size_t sum = 0, held = 0;
    const auto ranks = static_cast<size_t>(c.ranks);
    for (size_t r = 0; r < ranks; ++r) {
      const size_t bytes = split.bytes_read()[r];
      sum += bytes;
      EXPECT_NEAR(static_cast<double>(bytes), static_cast<double>(whole + split_once / ranks),
                  0.03 * static_cast<double>(split_once / ranks))
          << c.name << " rank " << r;
      held += split.rank(static_cast<int>(r)).weight_bytes();
    }
    EXPECT_EQ(sum, split_once + ranks * whole) << c.name;
    const LoadedModel one = load(path, exact());
    EXPECT_LT(split.rank(0).weight_bytes(), one.model->weight_bytes());
    EXPECT_LT(split.rank(0).weight_bytes_per_token(), one.model->weight_bytes_per_token());
    EXPECT_GE(held, one.model->weight_bytes());
  }
}

TEST(SplitRanks, RandomWeightsAreThoseOfOneRank) {
  const TempDir dir;
  dir.write("config.json", kTinyConfig);
  LoadOptions options;
  options.dummy_weights = true;
  options.dummy_seed = 11;
  const LoadedModel one = load(dir.path(), exact(), 1, options);
  SplitModel split(dir.path(), 2, exact(), options);
  const std::vector<int32_t> prompt = prompt_of(one.model->config(), 20, 7);
  EXPECT_LT(largest_difference(Session(split, 4).prefill(prompt, 6),
                               Session(*one.model, 4).prefill(prompt, 6)),
            1e-5);
}

TEST(SplitRanks, LoadingRefusesWhatCanNotBeSplit) {
  platform::ThreadPool pool(1, /*pin=*/false);
  const auto ops = kernels::make_cpu_ops({.isa = kernels::Isa::kAvx2}, pool);
  ASSERT_TRUE(ops.ok());
  const auto group = comm::make_local_group(4);
  const auto try_load = [&](const std::string& name, Shard shard, comm::Communicator* ranks) {
    auto checkpoint = Checkpoint::open(path_of(name));
    EXPECT_TRUE(checkpoint.ok());
    LoadOptions options;
    options.shard = shard;
    options.communicator = ranks;
    return load_model(std::move(*checkpoint), *ops, pool, options).status();
  };
  expect_error(try_load("tiny-smol-f32", {.size = 4}, group[0].get()), ErrorCode::kInvalidArgument,
               {"--tp-size 4", "9 attention heads"});
  expect_error(try_load("deepseek/tiny-v3-fp8", {.size = 4}, group[0].get()),
               ErrorCode::kInvalidArgument, {"o_proj.weight", "128"});
  expect_error(try_load("tiny-qwen3-f32", {.size = 4}, nullptr), ErrorCode::kInternal,
               {"rank 0 of 4 without a communicator"});
  expect_error(try_load("tiny-qwen3-f32", {.rank = 1, .size = 4}, group[0].get()),
               ErrorCode::kInternal, {"rank 1 of 4", "rank 0 of 4"});
}

TEST(SplitRanks, AStepFailsWhenTheRanksLoseEachOther) {
  SplitModel split(path_of("tiny-qwen3-f32"), 2, exact());
  const std::vector<int32_t> prompt = prompt_of(split.config(), 8, 8);
  auto kv = KvStore::create(split.local_config(), 1, 16, DType::kF32);
  ASSERT_TRUE(kv.ok());
  std::vector<int32_t> positions(8), page = {0}, rows = {7};
  std::vector<int64_t> slots(8);
  std::iota(positions.begin(), positions.end(), 0);
  std::iota(slots.begin(), slots.end(), 0);
  const kernels::SequenceSlice slice{0, 8, 8, page.data()};
  std::vector<float> logits(static_cast<size_t>(split.config().vocab_size));
  split.communicator(1).abort(unavailable("rank 1 on host b died"));
  // Rank 0 alone: nobody answers it.
  expect_error(split.rank(0).forward(
                   {prompt, positions, slots, {&slice, 1}, rows}, *kv,
                   {logits.data(), 1, split.config().vocab_size, split.config().vocab_size}),
               ErrorCode::kUnavailable, {"rank 1 on host b died"});
}

}  // namespace
}  // namespace capstan::model
