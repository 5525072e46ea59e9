// The forward pass against PyTorch/transformers in float32, for every architecture, file format
// and instruction set; and the contract that chunking, batching, paging and threads change no bit.
#include "golden.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "session.h"

namespace capstan::model {
namespace {

using kernels::Isa;

struct Variant {
  std::string path, golden;  // under testdata/model
  double tolerance;          // relative to the largest logit
};

// Weights in F32, F16 and BF16 are widened exactly and multiplied in float32.
constexpr double kExact = 1e-4;

const Variant kVariants[] = {
    {"tiny-llama3-f32", "tiny-llama3-f32/golden", kExact},
    {"tiny-llama3-bf16", "tiny-llama3-bf16/golden", kExact},
    {"tiny-llama3-bf16-sharded", "tiny-llama3-bf16/golden", kExact},
    {"tiny-smol-f32", "tiny-smol-f32/golden", kExact},
    {"tiny-smol-bf16", "tiny-smol-bf16/golden", kExact},
    {"tiny-qwen2-f32", "tiny-qwen2-f32/golden", kExact},
    {"tiny-qwen2-bf16", "tiny-qwen2-bf16/golden", kExact},
    {"tiny-qwen3-f32", "tiny-qwen3-f32/golden", kExact},
    {"tiny-qwen3-bf16", "tiny-qwen3-bf16/golden", kExact},
    {"gguf/tiny-llama3-f32.gguf", "gguf/tiny-llama3-f32.golden", kExact},
    {"gguf/tiny-llama3-f16.gguf", "gguf/tiny-llama3-f16.golden", kExact},
    {"gguf/tiny-llama3-q8_0.gguf", "gguf/tiny-llama3-q8_0.golden", kExact},
    {"gguf/tiny-qwen2-f16.gguf", "gguf/tiny-qwen2-f16.golden", kExact},
};

class GoldenTest : public testing::TestWithParam<std::tuple<Variant, Isa>> {
 protected:
  const Variant& variant() const { return std::get<0>(GetParam()); }
  kernels::CpuOpsOptions ops() const {
    return {.isa = std::get<1>(GetParam()), .quantise_activations = false};
  }
  void expect_close(const std::vector<float>& x, const std::vector<float>& y,
                    const std::string& what) {
    const double d = relative_difference(x, y);
    EXPECT_LE(d, variant().tolerance) << what;
    worst_ = std::max(worst_, d);
  }
  void TearDown() override { RecordProperty("worst_relative_difference", std::to_string(worst_)); }

  double worst_ = 0;
};

TEST_P(GoldenTest, PrefillInAnyChunksAndPages) {
  const GoldenCase golden = Golden(testdata(variant().golden)).get("short");
  const LoadedModel m = load(testdata(variant().path), ops());
  ASSERT_NE(m.model, nullptr);
  Session::Rows whole;
  for (const int page_size : {1, 3, 16}) {
    for (const size_t chunk : {0, 1, 3, 7, 16}) {
      SCOPED_TRACE("page size " + std::to_string(page_size) + ", chunk " + std::to_string(chunk));
      Session session(*m.model, page_size);
      const Session::Rows rows = session.prefill(golden.prompt, chunk);
      ASSERT_EQ(rows.size(), golden.prompt.size());
      if (whole.empty()) {
        whole = rows;
        for (size_t i = 0; i < golden.logit_positions.size(); ++i) {
          const auto at = static_cast<size_t>(golden.logit_positions[i]);
          expect_close(rows[at], golden.logits[i], "position " + std::to_string(at));
        }
      }
      EXPECT_EQ(rows, whole);  // bit for bit
    }
  }
}

TEST_P(GoldenTest, GreedyTokensAndDecodeLogits) {
  for (const char* name : {"short", "long"}) {
    SCOPED_TRACE(name);
    const GoldenCase golden = Golden(testdata(variant().golden)).get(name);
    const LoadedModel m = load(testdata(variant().path), ops());
    ASSERT_NE(m.model, nullptr);
    Session session(*m.model, 16);
    const Session::Rows prompt = session.prefill(golden.prompt, 64);
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

std::string variant_name(const testing::TestParamInfo<GoldenTest::ParamType>& info) {
  std::string name =
      std::get<0>(info.param).path + "_" + std::string(kernels::isa_name(std::get<1>(info.param)));
  for (char& c : name) {
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
  }
  return name;
}

INSTANTIATE_TEST_SUITE_P(All, GoldenTest,
                         testing::Combine(testing::ValuesIn(kVariants),
                                          testing::ValuesIn(kernels::supported_isas())),
                         variant_name);

/// Several sequences, prompts in chunks beside decoding ones, against each sequence alone.
TEST(Decoder, BatchingAndThreadsChangeNoBit) {
  for (const char* name : {"tiny-llama3-bf16", "gguf/tiny-llama3-q8_0.gguf"}) {
    SCOPED_TRACE(name);
    const bool gguf = std::string(name).ends_with("gguf");
    const GoldenCase golden =
        Golden(testdata(gguf ? "gguf/tiny-llama3-q8_0.golden" : "tiny-llama3-bf16/golden"))
            .get("short");
    const std::span<const int32_t> prompt(golden.prompt);
    const LoadedModel one = load(testdata(name), {}, /*threads=*/1);
    ASSERT_NE(one.model, nullptr);
    Session alone(*one.model, 16);
    const Session::Rows a = alone.prefill(prompt, 0, 0);
    const Session::Rows b = alone.prefill(prompt.subspan(5), 0, 1);
    const std::vector<int32_t> next = {17, 42};
    const Session::Rows a_next = alone.step({{0, next, true}});
    const Session::Rows b_next = alone.step({{1, std::span(next).first(1), true}});

    for (const int threads : {1, 2, 3}) {
      SCOPED_TRACE(threads);
      const LoadedModel many = load(testdata(name), {}, threads);
      ASSERT_NE(many.model, nullptr);
      Session session(*many.model, 3);
      EXPECT_EQ(session.step({{0, prompt.first(30)}})[0], a[29]);
      // The rest of one prompt, the start of another, a third that only prefills.
      Session::Rows rows = session.step(
          {{0, prompt.subspan(30)}, {1, prompt.subspan(5, 20), true}, {2, prompt.first(3)}});
      ASSERT_EQ(rows.size(), 22u);
      EXPECT_EQ(rows[0], a.back());
      for (size_t i = 0; i < 20; ++i) EXPECT_EQ(rows[1 + i], b[i]) << i;
      EXPECT_EQ(rows[21], a[2]);
      EXPECT_EQ(session.step({{1, prompt.subspan(25)}})[0], b.back());
      // Two decode tokens and a prefill chunk in one step.
      rows = session.step({{1, std::span(next).first(1)}, {2, prompt.subspan(3, 9)}, {0, next}});
      ASSERT_EQ(rows.size(), 3u);
      EXPECT_EQ(rows[0], b_next[0]);
      EXPECT_EQ(rows[1], a[11]);
      EXPECT_EQ(rows[2], a_next[1]);
    }
  }
}

/// The fast path of block-quantised weights rounds activations as well, to int8 in blocks of 32:
/// the model's opinion may differ only where it hardly has one. Random weights are the hardest
/// case, since nothing in them damps an error: cosine differences reach 9.7e-4 here, and one greedy
/// choice whose best two logits are 0.06 apart falls the other way.
constexpr double kNearTie = 0.25;
TEST(Decoder, QuantisedActivationsStayClose) {
  const Golden file(testdata("gguf/tiny-llama3-q8_0.golden"));
  for (const Isa isa : kernels::supported_isas()) {
    for (const char* name : {"short", "long"}) {
      SCOPED_TRACE(std::string(kernels::isa_name(isa)) + " " + name);
      const GoldenCase golden = file.get(name);
      const LoadedModel m = load(testdata("gguf/tiny-llama3-q8_0.gguf"), {.isa = isa});
      ASSERT_NE(m.model, nullptr);
      Session session(*m.model, 16);
      const Session::Rows rows = session.prefill(golden.prompt, 16);
      for (size_t i = 0; i < golden.logit_positions.size(); ++i) {
        const std::vector<float>& row = rows[static_cast<size_t>(golden.logit_positions[i])];
        EXPECT_LE(cosine_difference(row, golden.logits[i]), 1e-3) << i;
        if (top_margin(golden.logits[i]) > kNearTie) {
          EXPECT_EQ(std::ranges::max_element(row) - row.begin(),
                    std::ranges::max_element(golden.logits[i]) - golden.logits[i].begin())
              << i;
        }
      }
      Session::Rows steps;
      const std::vector<int32_t> greedy = session.greedy(rows.back(), golden.greedy.size(), &steps);
      const auto same =
          static_cast<size_t>(std::ranges::mismatch(greedy, golden.greedy).in1 - greedy.begin());
      if (same < greedy.size()) {
        EXPECT_LT(top_margin(steps[same]), kNearTie) << "token " << same;
      }
    }
  }
}

/// A cache of half the width costs precision, but not the model's opinion.
TEST(Decoder, HalfWidthCachesStayClose) {
  const GoldenCase golden = Golden(testdata("tiny-llama3-f32/golden")).get("short");
  const LoadedModel m = load(testdata("tiny-llama3-f32"), {});
  ASSERT_NE(m.model, nullptr);
  for (const auto& [dtype, tolerance] :
       std::vector<std::pair<DType, double>>{{DType::kF16, 2e-3}, {DType::kBF16, 2e-2}}) {
    Session session(*m.model, 16, dtype);
    const Session::Rows rows = session.prefill(golden.prompt, 16);
    for (size_t i = 0; i < golden.logit_positions.size(); ++i) {
      EXPECT_LE(relative_difference(rows[static_cast<size_t>(golden.logit_positions[i])],
                                    golden.logits[i]),
                tolerance)
          << dtype_info(dtype).name << " " << i;
    }
  }
}

/// Steps without logits (inner prefill chunks) fill the cache just as well.
TEST(Decoder, LogitRowsMayBeNoneOrAny) {
  const GoldenCase golden = Golden(testdata("tiny-qwen3-f32/golden")).get("short");
  const LoadedModel m = load(testdata("tiny-qwen3-f32"), {});
  ASSERT_NE(m.model, nullptr);
  Session all(*m.model, 16);
  const Session::Rows expected = all.prefill(golden.prompt, 0);

  auto kv = KvStore::create(m.model->config(), 4, 16, DType::kF32);
  ASSERT_TRUE(kv.ok());
  const std::vector<int32_t> pages = {0, 1, 2};
  std::vector<int32_t> positions(48);
  std::vector<int64_t> slots(48);
  std::iota(positions.begin(), positions.end(), 0);
  std::iota(slots.begin(), slots.end(), 0);
  const std::span<const int32_t> tokens(golden.prompt), p(positions);
  const std::span<const int64_t> s(slots);
  const kernels::SequenceSlice first{0, 20, 20, pages.data()}, rest{0, 28, 48, pages.data()};
  ASSERT_TRUE(m.model
                  ->forward({tokens.first(20), p.first(20), s.first(20), {&first, 1}, {}}, *kv,
                            MatrixView{})
                  .ok());
  const std::vector<int32_t> wanted = {0, 1, 13, 27};
  const auto vocab = static_cast<size_t>(m.model->config().vocab_size);
  const size_t stride = vocab + 5;
  std::vector<float> logits(wanted.size() * stride, -1.0F);
  ASSERT_TRUE(
      m.model
          ->forward({tokens.subspan(20), p.subspan(20), s.subspan(20), {&rest, 1}, wanted}, *kv,
                    {logits.data(), 4, static_cast<int64_t>(vocab), static_cast<int64_t>(stride)})
          .ok());
  for (size_t i = 0; i < wanted.size(); ++i) {
    const float* row = logits.data() + i * stride;
    EXPECT_EQ(std::vector<float>(row, row + vocab), expected[static_cast<size_t>(20 + wanted[i])]);
    EXPECT_EQ(row[vocab], -1.0F);
  }
}

TEST(Decoder, RefusesBatchesThatContradictThemselves) {
  const LoadedModel m = load(testdata("tiny-smol-f32"), {});
  ASSERT_NE(m.model, nullptr);
  auto kv = KvStore::create(m.model->config(), 2, 4, DType::kF32);
  ASSERT_TRUE(kv.ok());
  std::vector<float> logits(288);
  const auto run = [&](std::vector<int32_t> tokens, std::vector<int32_t> positions,
                       std::vector<int64_t> slots, kernels::SequenceSlice slice,
                       std::vector<int32_t> pages, std::vector<int32_t> rows) {
    slice.pages = pages.data();
    return m.model->forward({tokens, positions, slots, {&slice, 1}, rows}, *kv,
                            {logits.data(), 1, 288, 288});
  };
  EXPECT_TRUE(run({5, 6}, {0, 1}, {4, 5}, {0, 2, 2}, {1}, {1}).ok());
  EXPECT_FALSE(run({}, {}, {}, {0, 0, 0}, {1}, {}).ok());
  EXPECT_FALSE(run({5, 288}, {0, 1}, {4, 5}, {0, 2, 2}, {1}, {1}).ok());
  EXPECT_FALSE(run({5, -1}, {0, 1}, {4, 5}, {0, 2, 2}, {1}, {1}).ok());
  EXPECT_FALSE(run({5, 6}, {0, 2}, {4, 5}, {0, 2, 2}, {1}, {1}).ok());
  EXPECT_FALSE(run({5, 6}, {0, 1}, {4, 8}, {0, 2, 2}, {1}, {1}).ok());
  EXPECT_FALSE(run({5, 6}, {0, 1}, {4}, {0, 2, 2}, {1}, {1}).ok());
  EXPECT_FALSE(run({5, 6}, {0, 1}, {4, 5}, {0, 2, 2}, {2}, {1}).ok());
  EXPECT_FALSE(run({5, 6}, {0, 1}, {4, 5}, {0, 1, 1}, {1}, {1}).ok());
  EXPECT_FALSE(run({5, 6}, {0, 1}, {4, 5}, {0, 3, 3}, {1}, {1}).ok());
  EXPECT_FALSE(run({5, 6}, {0, 1}, {4, 5}, {0, 2, 2}, {1}, {2}).ok());
  EXPECT_FALSE(run({5, 6}, {0, 1}, {4, 5}, {0, 2, 2}, {1}, {0, 1}).ok());  // one row of room
}

}  // namespace
}  // namespace capstan::model
