#include "kernels/cpu_ops.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/ops_fixture.h"

namespace capstan::kernels {
namespace {

std::shared_ptr<Ops> make(Isa isa, platform::ThreadPool& pool) {
  CpuOpsOptions options;
  options.isa = isa;
  auto ops = make_cpu_ops(options, pool);
  EXPECT_TRUE(ops.ok());
  return *ops;
}

TEST(CpuOps, ChoosesASupportedIsaOtherThanTheOracle) {
  platform::ThreadPool pool(2);
  auto ops = make_cpu_ops({}, pool);
  ASSERT_TRUE(ops.ok());
  const auto isas = supported_isas();
  EXPECT_EQ(isas.front(), Isa::kRef);
  EXPECT_TRUE(std::any_of(isas.begin(), isas.end(),
                          [&](Isa isa) { return isa_name(isa) == (*ops)->name(); }));
  EXPECT_EQ((*ops)->name() == "ref", isas.size() == 1);
}

TEST(CpuOps, RefusesAnIsaThatTheCpuLacks) {
  platform::ThreadPool pool(1);
  const auto isas = supported_isas();
  for (const Isa isa : {Isa::kAvx2, Isa::kAvx512}) {
    if (std::find(isas.begin(), isas.end(), isa) != isas.end()) continue;
    CpuOpsOptions options;
    options.isa = isa;
    const auto ops = make_cpu_ops(options, pool);
    ASSERT_FALSE(ops.ok());
    EXPECT_EQ(ops.error().code, ErrorCode::kInvalidArgument);
    EXPECT_NE(ops.error().message.find(isa_name(isa)), std::string::npos);
    EXPECT_NE(ops.error().message.find("ref"), std::string::npos);
  }
}

TEST(CpuOps, EmbedDecodesRowsOfAnyDtype) {
  platform::ThreadPool pool(2);
  std::mt19937 random(1);
  constexpr int64_t kVocab = 50, kHidden = 256;
  const auto values = random_floats(random, kVocab * kHidden);
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kQ8_0, DType::kQ4_0}) {
    std::vector<std::byte> table(dtype_bytes(dtype, kVocab * kHidden));
    ASSERT_TRUE(quant::quantize_row(dtype, values.data(), table.data(), kVocab * kHidden).ok());
    std::vector<float> decoded(kVocab * kHidden);
    quant::dequantize_row(dtype, table.data(), decoded.data(), kVocab * kHidden);
    const TensorView view{table.data(), dtype, {kVocab, kHidden}, "embed"};
    std::vector<int32_t> ids;
    for (int i = 0; i < 70; ++i) ids.push_back(static_cast<int32_t>(random() % kVocab));
    for (const Isa isa : supported_isas()) {
      std::vector<float> y(ids.size() * kHidden, NAN);
      make(isa, pool)->embed(
          {ids, &view, {y.data(), static_cast<int64_t>(ids.size()), kHidden, kHidden}});
      for (size_t t = 0; t < ids.size(); ++t) {
        ASSERT_TRUE(std::equal(y.begin() + t * kHidden, y.begin() + (t + 1) * kHidden,
                               decoded.begin() + ids[t] * kHidden));
      }
    }
  }
}

TEST(CpuOps, EmbedOfAnIdOutsideTheVocabularyIsZero) {
  platform::ThreadPool pool(1);
  const std::vector<float> table(8, 1.0f);
  const TensorView view{reinterpret_cast<const std::byte*>(table.data()), DType::kF32, {2, 4}, "e"};
  const std::vector<int32_t> ids = {2, 1, -1};
  std::vector<float> y(12, NAN);
  make(supported_isas().back(), pool)->embed({ids, &view, {y.data(), 3, 4, 4}});
  EXPECT_EQ(y, (std::vector<float>{0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0}));
}

TEST(CpuOps, RowsAreTheSameAloneAndInABatchOnAnyThreads) {
  std::mt19937 random(3);
  constexpr int64_t kRows = 90, kWidth = 7 * 64;
  const auto x = random_floats(random, kRows * kWidth), weight = random_floats(random, kWidth);
  std::vector<float> cos, sin;
  for (int64_t i = 0; i < kRows * 32; ++i) {
    cos.push_back(std::cos(0.1f * static_cast<float>(i)));
    sin.push_back(std::sin(0.1f * static_cast<float>(i)));
  }
  for (const Isa isa : supported_isas()) {
    std::vector<float> first_norm, first_qkv;
    for (const int threads : {1, 2, 3}) {
      platform::ThreadPool pool(threads);
      const auto ops = make(isa, pool);
      for (const int64_t rows_per_call : {kRows, int64_t{1}, int64_t{37}}) {
        auto input = x;
        std::vector<float> norm(x.size(), NAN), qkv = x;
        RandomCache cache(DType::kF16, 8, 2, 64, kRows, 4);
        std::vector<int64_t> slots(kRows);
        std::iota(slots.begin(), slots.end(), 0);
        ops->begin_step();
        for (int64_t r = 0; r < kRows; r += rows_per_call) {
          const int64_t n = std::min(rows_per_call, kRows - r);
          ops->rms_norm({{input.data() + r * kWidth, n, kWidth, kWidth},
                         weight.data(),
                         1e-5f,
                         {norm.data() + r * kWidth, n, kWidth, kWidth}});
          QkvArgs args;
          args.qkv = {qkv.data() + r * kWidth, n, kWidth, kWidth};
          args.q_heads = 3;
          args.kv = cache.kv();
          args.q_norm = args.k_norm = weight.data();
          args.norm_eps = 1e-6f;
          args.cos = cos.data() + r * 32;
          args.sin = sin.data() + r * 32;
          args.rope_dim = 64;
          args.slots = std::span(slots).subspan(static_cast<size_t>(r), static_cast<size_t>(n));
          ops->qkv_rope_store(args);
        }
        ops->end_step();
        if (first_norm.empty()) {
          first_norm = norm;
          first_qkv = qkv;
        }
        EXPECT_EQ(norm, first_norm);
        EXPECT_EQ(qkv, first_qkv);
      }
    }
  }
}

TEST(CpuOps, AttentionRunsOnEveryIsa) {
  std::mt19937 random(5);
  platform::ThreadPool pool(2);
  Sequence sequence(random, 100, 6, 2, 64);
  RandomCache cache(DType::kF32, 16, 2, 64, 100, 1);
  const auto pages = sequence.store(cache);
  const SequenceSlice slice{0, 3, 100, pages.data()};
  for (const Isa isa : supported_isas()) {
    std::vector<float> q(sequence.query(97), sequence.query(97) + 3 * 6 * 64), out(3 * 6 * 64, NAN);
    AttentionArgs args;
    args.q = {q.data(), 3, 6 * 64, 6 * 64};
    args.q_heads = 6;
    args.kv = cache.kv();
    args.scale = sequence.scale();
    args.sequences = {&slice, 1};
    args.out = {out.data(), 3, 6 * 64, 6 * 64};
    make(isa, pool)->attention(args);
    for (int i = 0; i < 3; ++i) {
      const auto expected = sequence.dense(97 + i);
      for (size_t e = 0; e < expected.size(); ++e) {
        ASSERT_NEAR(out[static_cast<size_t>(i) * 384 + e], expected[e], 1e-5);
      }
    }
    args.sequences = {};
    make(isa, pool)->attention(args);  // an empty batch is nothing to do
  }
}

}  // namespace
}  // namespace capstan::kernels
