// Data-parallel attention: groups of ranks attend for their own sequences.
#include <gtest/gtest.h>

#include <ostream>
#include <string>
#include <vector>

#include "draft_session.h"
#include "split_runs.h"
#include "tiny_model.h"

namespace capstan::model {
namespace {

struct GroupCase {
  std::string name;
  int ranks = 1, experts = 1, groups = 1;  // --tp-size, --ep-size, --dp-size
};

std::ostream& operator<<(std::ostream& out, const GroupCase& c) {
  return out << c.name << " tp " << c.ranks << " ep " << c.experts << " dp " << c.groups;
}

LoadOptions options_of(const GroupCase& c) {
  LoadOptions options;
  options.shard.ep_size = c.experts;
  options.shard.dp_size = c.groups;
  return options;
}

/// Steps in which groups are idle, prefill, decode, and have several sequences; `pools`: the caches
/// that pages are given of, one for each group or one for all.
Session::Rows run_groups(Model& model, int groups, int pools) {
  Session session(model, 16, DType::kF32, 600, pools);
  const int second = groups, last = groups - 1;  // another sequence of group 0, one of the last
  std::vector<std::vector<int32_t>> prompts;
  for (int i = 0; i < 4; ++i) prompts.push_back(prompt_of(model.config(), 9 + 7 * i, i));
  Session::Rows all;
  const auto step = [&](const std::vector<Session::Chunk>& chunks) {
    for (auto& row : session.step(chunks)) all.push_back(std::move(row));
  };
  step({{0, prompts[0], true}});
  step({{0, std::span(prompts[1]).first(1)}, {second, prompts[2], true}, {last, prompts[3], true}});
  for (size_t i = 0; i < 4; ++i) {
    step({{0, std::span(prompts[3]).subspan(i, 1)},
          {second, std::span(prompts[1]).subspan(i, 1)},
          {last, std::span(prompts[2]).subspan(i, 1)}});
  }
  step({{last, std::span(prompts[0]), true}});
  return all;
}

class SplitGroupsTest : public ::testing::TestWithParam<GroupCase> {};

TEST_P(SplitGroupsTest, EqualOneRank) {
  const GroupCase& c = GetParam();
  const std::string path = path_of(c.name);
  const LoadedModel one = load(path, exact());
  ASSERT_NE(one.model, nullptr);
  SplitModel split(path, c.ranks, exact(), options_of(c));
  const double difference = largest_difference(run_groups(split, c.groups, c.groups),
                                               run_groups(*one.model, c.groups, 1));
  EXPECT_LT(difference, 1e-5);
  RecordProperty("largest_difference", std::to_string(difference * 1e6) + "e-6");
}

INSTANTIATE_TEST_SUITE_P(All, SplitGroupsTest,
                         ::testing::Values(GroupCase{"tiny-llama3-f32", 2, 1, 2},
                                           GroupCase{"tiny-qwen2-f32", 4, 1, 2},
                                           GroupCase{"tiny-qwen3-f32", 4, 1, 4},
                                           GroupCase{"tiny-smol-f32", 6, 1, 2},
                                           GroupCase{"gguf/tiny-llama3-q8_0.gguf", 4, 1, 2},
                                           GroupCase{"deepseek/tiny-v2", 4, 4, 4},
                                           GroupCase{"deepseek/tiny-v3-bf16", 4, 2, 2},
                                           GroupCase{"deepseek/tiny-v3-fp8", 2, 2, 2},
                                           GroupCase{"deepseek/tiny-v3-new-q4_k", 4, 4, 2},
                                           GroupCase{"deepseek/tiny-qwen3-moe", 4, 4, 2}),
                         [](const auto& test) { return std::to_string(test.index); });

TEST(SplitGroups, DraftLayerEqualsOneRanks) {
  LoadOptions options;
  options.draft = true;
  const std::string path = deepseek_checkpoint("tiny-v3-bf16");
  const LoadedModel one = load(path, exact(), 1, options);
  ASSERT_NE(one.model, nullptr);
  const std::vector<int32_t> prompt = prompt_of(one.model->config(), 30, 3);
  const Session::Rows expected = DraftSession(*one.model).run(prompt, 13);
  options.shard.dp_size = 2;
  options.shard.ep_size = 4;
  SplitModel split(path, 4, exact(), options);
  // The sequence belongs to the first group, then to the second: rank 0 does not attend for it.
  for (const std::vector<int32_t>& groups : {std::vector<int32_t>{0, 1, 1}, {0, 0, 1}}) {
    EXPECT_LT(largest_difference(DraftSession(split, 16, 64, groups).run(prompt, 13), expected),
              1e-5);
  }
}

TEST(SplitGroups, KeepTheHeadsOfTheirRanks) {
  // 4 ranks, 2 groups: half of the heads each; latents are whole everywhere.
  const Shard shard{.rank = 3, .size = 4, .dp_size = 2};
  EXPECT_EQ(shard.attention_group(), 1);
  EXPECT_EQ(shard.attention_part(), 1);
  ModelConfig c = tiny_config();  // 4 heads, 2 of keys and values
  EXPECT_EQ(local_config(c, shard).num_heads, 2);
  EXPECT_EQ(local_config(c, shard).num_kv_heads, 1);
  // What heads forbid for all ranks may do for those of a group.
  c.num_heads = 2;
  EXPECT_FALSE(check_shard(c, {.size = 4}).ok());
  EXPECT_TRUE(check_shard(c, {.size = 4, .dp_size = 2}).ok());
  const Status uneven = check_shard(c, {.size = 4, .dp_size = 3});
  expect_error(uneven, ErrorCode::kInvalidArgument, {"--dp-size 3", "4 ranks of --tp-size"});
  c.num_heads = 3;
  expect_error(check_shard(c, {.size = 4, .dp_size = 2}), ErrorCode::kInvalidArgument,
               {"3 attention heads can not be divided by 2", "--tp-size / --dp-size"});
}

TEST(SplitGroups, StepsMustSayWhoseSequencesAre) {
  LoadOptions options;
  options.shard.dp_size = 2;
  SplitModel split(path_of("tiny-llama3-f32"), 2, exact(), options);
  auto kv = KvStore::create(split.local_config(), 2, 4, DType::kF32);
  ASSERT_TRUE(kv.ok());
  const std::vector<int32_t> tokens = {5, 6}, positions = {0, 0}, pages = {0, 1};
  const std::vector<int64_t> slots = {0, 4};
  const std::vector<kernels::SequenceSlice> sequences = {{0, 1, 1, &pages[0]},
                                                         {1, 1, 1, &pages[1]}};
  ForwardBatch batch{tokens, positions, slots, sequences, {}};
  for (const std::vector<int32_t>& groups :
       {std::vector<int32_t>{}, {0, 2}, {0, 1, 3}, {1, 1, 2}, {0, 3, 2}, {0, 1, 2, 2}}) {
    batch.groups = groups;
    expect_error(split.rank(0).forward(batch, *kv, {}), ErrorCode::kInternal,
                 {"2 sequences", "2 groups"});
  }
  const std::vector<int32_t> groups = {0, 1, 2};
  batch.groups = groups;
  EXPECT_TRUE(split.forward(batch, *kv, {}).ok());
}

}  // namespace
}  // namespace capstan::model
