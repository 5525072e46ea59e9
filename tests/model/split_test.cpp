// Split models compute what one rank computes: every family, container and format, by 2 to 8 ranks.
#include <gtest/gtest.h>

#include <algorithm>
#include <ostream>
#include <string>

#include "split_runs.h"

namespace capstan::model {
namespace {

struct SplitCase {
  std::string name;
  int ranks = 1, experts = 1;  // --tp-size, --ep-size

  bool operator==(const SplitCase&) const = default;
};

std::ostream& operator<<(std::ostream& out, const SplitCase& c) {
  return out << c.name << " tp " << c.ranks << " ep " << c.experts;
}

class SplitTest : public ::testing::TestWithParam<SplitCase> {};

TEST_P(SplitTest, EqualsOneRank) {
  const SplitCase& c = GetParam();
  const std::string path = path_of(c.name);
  const LoadedModel one = load(path, exact());
  ASSERT_NE(one.model, nullptr);
  LoadOptions options;
  options.shard.ep_size = c.experts;
  SplitModel split(path, c.ranks, exact(), options);
  // Many ranks on few cores wait for each other's time slices: milliseconds a sum.
  const bool many = c.ranks > 4;
  const size_t tokens = many ? 4 : one.model->config().weight_dtype == DType::kF32 ? 64 : 16;
  const Outputs expected = run(*one.model, tokens), actual = run(split, tokens);
  EXPECT_EQ(actual.greedy, expected.greedy);
  const double prefill = largest_difference(actual.prefill, expected.prefill);
  const double decode = largest_difference(actual.decode, expected.decode);
  const double mixed = largest_difference(actual.mixed, expected.mixed);
  EXPECT_LT(prefill, 1e-5);
  EXPECT_LT(decode, 1e-5);
  EXPECT_LT(mixed, 1e-5);
  RecordProperty("largest_difference",
                 std::to_string(std::max({prefill, decode, mixed}) * 1e6) + "e-6");
}

INSTANTIATE_TEST_SUITE_P(
    Dense, SplitTest,
    ::testing::Values(SplitCase{"tiny-llama3-f32", 2}, SplitCase{"tiny-llama3-f32", 4},
                      SplitCase{"tiny-llama3-bf16", 2}, SplitCase{"tiny-smol-f32", 3},
                      SplitCase{"tiny-smol-f32", 9}, SplitCase{"tiny-smol-bf16", 3},
                      SplitCase{"tiny-qwen2-f32", 2}, SplitCase{"tiny-qwen2-bf16", 14},
                      SplitCase{"tiny-qwen3-f32", 2}, SplitCase{"tiny-qwen3-f32", 4},
                      SplitCase{"tiny-qwen3-bf16", 4}, SplitCase{"gguf/tiny-llama3-f16.gguf", 4},
                      SplitCase{"gguf/tiny-llama3-q8_0.gguf", 2},
                      SplitCase{"gguf/tiny-llama3-q8_0.gguf", 4},
                      SplitCase{"gguf/tiny-qwen2-f16.gguf", 2}),
    [](const auto& test) { return std::to_string(test.index); });

INSTANTIATE_TEST_SUITE_P(
    Experts, SplitTest,
    ::testing::Values(
        SplitCase{"deepseek/tiny-v2", 2}, SplitCase{"deepseek/tiny-v2", 4, 4},
        SplitCase{"deepseek/tiny-v2-bf16", 4, 2}, SplitCase{"deepseek/tiny-v2-group", 2, 2},
        SplitCase{"deepseek/tiny-v2-group", 4}, SplitCase{"deepseek/tiny-v2-old-f16", 4, 2},
        SplitCase{"deepseek/tiny-v3-bf16", 2, 2}, SplitCase{"deepseek/tiny-v3-bf16", 4},
        SplitCase{"deepseek/tiny-v3-fp8", 2}, SplitCase{"deepseek/tiny-v3-fp8", 2, 2},
        SplitCase{"deepseek/tiny-v3-groups", 8, 4}, SplitCase{"deepseek/tiny-v3-mscale", 2},
        SplitCase{"deepseek/tiny-v3-long", 4, 4}, SplitCase{"deepseek/tiny-v3-new-q8_0", 2},
        SplitCase{"deepseek/tiny-v3-new-q8_0", 4, 2}, SplitCase{"deepseek/tiny-v3-new-q4_k", 2, 2},
        SplitCase{"deepseek/tiny-v3-new-q4_k", 4}, SplitCase{"deepseek/tiny-qwen3-moe", 2},
        SplitCase{"deepseek/tiny-qwen3-moe", 4, 4}, SplitCase{"deepseek/tiny-qwen3-moe-q8_0", 4, 2},
        SplitCase{"deepseek/tiny-qwen3-moe-q8_0", 8}),
    [](const auto& test) { return std::to_string(test.index); });

}  // namespace
}  // namespace capstan::model
