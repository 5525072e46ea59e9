#include <gtest/gtest.h>

#include <algorithm>
#include <tuple>

#include "kernels/cpu_ops.h"
#include "kernels/mla_fixture.h"
#include "kernels/mla_plan.h"
#include "kernels/ref/ref_ops.h"

namespace capstan::kernels {

/// The AVX-512 sources compiled on SIMDe (tests/kernels/test.cmake).
const MlaKernels& simde_avx512_mla_kernels();

namespace {

struct MlaUnderTest {
  std::string name;
  const MlaKernels* kernels;
};

std::vector<MlaUnderTest> mla_under_test() {
  std::vector<MlaUnderTest> out;
  const platform::IsaSupport& cpu = platform::isa_support();
  if (cpu.avx2) out.push_back({"avx2", &avx2_mla_kernels()});
  if (cpu.avx2 && !cpu.avx512_vnni) out.push_back({"simde", &simde_avx512_mla_kernels()});
  if (cpu.avx512_vnni) out.push_back({"avx512", &avx512_mla_kernels()});
  return out;
}

constexpr MlaShape kTiny{8, 32, 32, 32, 128};       // tiny-v3
constexpr MlaShape kLite{16, 128, 64, 128, 512};    // V2-Lite
constexpr MlaShape kOdd{3, 20, 6, 12, 28};          // nothing is a multiple of a vector
constexpr MlaShape kManyHeads{70, 32, 16, 80, 64};  // more heads than a block has rows
constexpr MlaForm kForms[] = {MlaForm::kNaive, MlaForm::kAbsorbed, MlaForm::kAuto};

class Mla : public ::testing::TestWithParam<MlaUnderTest> {
 protected:
  bool emulated() const { return GetParam().name == "simde"; }

  std::vector<float> attend(const LatentCache& cache, const MlaProjection& projection, MlaForm form,
                            const std::vector<LatentPiece>& pieces, platform::ThreadPool& pool) {
    const auto run = [&](const MlaAttentionArgs& args) {
      plan_.run(*GetParam().kernels, args, pool);
    };
    return attend_latent(run, cache.kv(), projection, form, pieces);
  }

  MlaPlan plan_;
};

TEST_P(Mla, BothFormsAgreeWithFloat64AndTheOracle) {
  platform::ThreadPool pool(2);
  std::mt19937 random(7);
  const DType weight_dtypes[] = {DType::kF32, DType::kBF16, DType::kF8E4M3, DType::kF16};
  const DType cache_dtypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kF8E4M3};
  const int page_sizes[] = {1, 16, 7, 64, 33};
  const MlaShape shapes[] = {kTiny, kOdd, kManyHeads, kTiny, kLite};
  for (int trial = 0; trial < 20; ++trial) {
    const MlaShape shape = shapes[trial % 5];
    if (emulated() && shape.rank == 512) continue;
    const KvB weights(random, shape, weight_dtypes[trial % 4]);
    const auto projection = PackedMla::pack(weights.spec());
    ASSERT_TRUE(projection.ok()) << projection.error().message;
    const int length = 1 + static_cast<int>(random() % (trial % 3 == 0 ? 600 : 90));
    const int q_len = 1 + static_cast<int>(random() % std::min(length, trial % 2 == 0 ? 60 : 4));
    const DType dtype = cache_dtypes[(trial + trial / 4) % 4];
    const LatentSequence sequence(random, shape, length, dtype);
    LatentCache cache(shape, dtype, page_sizes[trial % 5], length, random());
    const auto pages = sequence.store(cache);
    const std::vector<LatentPiece> pieces = {{&sequence, &pages, length - q_len, q_len}};
    const auto oracle =
        attend_latent([](const MlaAttentionArgs& args) { ref::mla_attention(args); }, cache.kv(),
                      **projection, MlaForm::kAuto, pieces);
    const int width = shape.heads * shape.value_dim;
    for (const MlaForm form : kForms) {
      const auto out = attend(cache, **projection, form, pieces, pool);
      for (int i = 0; i<q_len; i += q_len> 8 ? 13 : 1) {
        const auto expected = sequence.dense(weights, length - q_len + i);
        ASSERT_LT(relmax(oracle.data() + i * width, expected), 2e-7);
        ASSERT_LT(relmax(out.data() + i * width, expected), 1e-5)
            << "trial " << trial << " form " << static_cast<int>(form) << " length " << length
            << " query " << i << " of " << q_len;
      }
    }
  }
}

TEST_P(Mla, BitsDoNotDependOnBatchChunksPagesOrThreads) {
  std::mt19937 random(11);
  for (const MlaShape& shape : {kTiny, kOdd, kManyHeads}) {
    if (emulated() && shape.heads > 60) continue;
    const int length = 330, width = shape.heads * shape.value_dim;
    const KvB weights(random, shape, DType::kBF16);
    const auto projection = PackedMla::pack(weights.spec());
    ASSERT_TRUE(projection.ok());
    const LatentSequence sequence(random, shape, length, DType::kF16);
    const LatentSequence other(random, shape, 75, DType::kF16);
    for (const MlaForm form : {MlaForm::kNaive, MlaForm::kAbsorbed}) {
      std::vector<float> expected;
      for (const auto& [page_size, threads] :
           {std::pair{64, 1}, std::pair{16, 2}, std::pair{7, 3}, std::pair{512, 2}}) {
        platform::ThreadPool pool(threads);
        LatentCache cache(shape, DType::kF16, page_size, length + 75 + page_size, random());
        const auto pages = sequence.store(cache), other_pages = other.store(cache);
        const auto whole =
            attend(cache, **projection, form, {{&sequence, &pages, 0, length}}, pool);
        if (expected.empty()) expected = whole;
        ASSERT_EQ(whole, expected) << "page size " << page_size << " threads " << threads;
        for (int first = 0; first < length;) {  // in chunks, with other sequences around
          const int count = std::min(length - first, 1 + static_cast<int>(random() % 90));
          const int mine = static_cast<int>(random() % 74);
          const auto out = attend(cache, **projection, form,
                                  {{&other, &other_pages, mine, 1},
                                   {&sequence, &pages, first, count},
                                   {&other, &other_pages, 0, mine + 1}},
                                  pool);
          ASSERT_TRUE(std::equal(out.begin() + width, out.begin() + (1 + count) * width,
                                 expected.begin() + int64_t{first} * width))
              << "form " << static_cast<int>(form) << " queries " << first << "+" << count;
          first += count;
        }
        for (const int position : {0, 63, 64, 255, 256, length - 1}) {  // decode
          const auto out =
              attend(cache, **projection, form, {{&sequence, &pages, position, 1}}, pool);
          ASSERT_TRUE(
              std::equal(out.begin(), out.end(), expected.begin() + int64_t{position} * width))
              << "form " << static_cast<int>(form) << " position " << position;
        }
      }
    }
  }
}

TEST_P(Mla, LongContextsSplitAmongThreadsGiveTheSameBits) {
  std::mt19937 random(13);
  const KvB weights(random, kTiny, DType::kF32);
  const auto projection = PackedMla::pack(weights.spec());
  ASSERT_TRUE(projection.ok());
  const LatentSequence sequence(random, kTiny, 3000, DType::kBF16);
  LatentCache cache(kTiny, DType::kBF16, 32, 3000, 5);
  const auto pages = sequence.store(cache);
  platform::ThreadPool one(1);
  const std::vector<LatentPiece> pieces = {{&sequence, &pages, 2993, 7}};
  const auto expected = attend(cache, **projection, MlaForm::kAbsorbed, pieces, one);
  ASSERT_LT(relmax(expected.data(), sequence.dense(weights, 2993)), 1e-5);
  for (const int threads : {2, 3, 4}) {
    platform::ThreadPool pool(threads);
    EXPECT_EQ(attend(cache, **projection, MlaForm::kAbsorbed, pieces, pool), expected) << threads;
  }
}

TEST_P(Mla, LargeScoresStayExactEnough) {
  platform::ThreadPool pool(1);
  std::mt19937 random(3);
  const KvB weights(random, kTiny, DType::kF32);
  const auto projection = PackedMla::pack(weights.spec());
  ASSERT_TRUE(projection.ok());
  LatentSequence sequence(random, kTiny, 300, DType::kF32);
  for (float& x : sequence.q) x *= 40;  // scores in the hundreds
  LatentCache cache(kTiny, DType::kF32, 16, 300, 1);
  const auto pages = sequence.store(cache);
  for (const MlaForm form : {MlaForm::kNaive, MlaForm::kAbsorbed}) {
    const auto out = attend(cache, **projection, form, {{&sequence, &pages, 290, 10}}, pool);
    for (int i = 0; i < 10; ++i) {
      EXPECT_LT(relmax(out.data() + i * 8 * 32, sequence.dense(weights, 290 + i)), 2e-4);
    }
  }
}

TEST_P(Mla, FutureKeysContributeNothingNotEvenNaN) {
  std::mt19937 random(17);
  for (const DType dtype : {DType::kF32, DType::kF8E4M3}) {
    const KvB weights(random, kTiny, DType::kF32);
    const auto projection = PackedMla::pack(weights.spec());
    ASSERT_TRUE(projection.ok());
    const LatentSequence sequence(random, kTiny, 90, dtype);
    LatentSequence bad = sequence;
    std::fill(bad.cache.begin() + 70 * kTiny.cache_dim(), bad.cache.end(), NAN);
    LatentCache clean(kTiny, dtype, 16, 90, 1), poisoned(kTiny, dtype, 16, 90, 1);
    const auto pages = sequence.store(clean), bad_pages = bad.store(poisoned);
    platform::ThreadPool pool(2);
    for (const MlaForm form : {MlaForm::kNaive, MlaForm::kAbsorbed}) {
      const auto expected = attend(clean, **projection, form, {{&sequence, &pages, 50, 40}}, pool);
      const auto out = attend(poisoned, **projection, form, {{&bad, &bad_pages, 50, 40}}, pool);
      const size_t visible = 20 * 8 * 32;
      EXPECT_EQ(std::memcmp(out.data(), expected.data(), visible * sizeof(float)), 0);
      EXPECT_TRUE(std::isnan(out[visible])) << static_cast<int>(form);
    }
  }
}

// Random queries and latents of V2-Lite's sizes, 1000 keys, scores of deviation one: what rounding
// the cache costs against a float32 cache. cosdiff = 1 - 2xy / (xx + yy).
TEST_P(Mla, RoundedCachesCostWhatIsDocumented) {
  if (emulated()) GTEST_SKIP() << "rounding is the same";
  platform::ThreadPool pool(2);
  std::mt19937 random(23);
  const KvB weights(random, kLite, DType::kF32);
  const auto projection = PackedMla::pack(weights.spec());
  ASSERT_TRUE(projection.ok());
  const LatentSequence exact(random, kLite, 1000, DType::kF32);
  std::vector<float> expected;
  for (const auto& [dtype, low, high] :
       {std::tuple{DType::kF32, 0.0, 1e-9}, std::tuple{DType::kF16, 1e-9, 1e-6},
        std::tuple{DType::kBF16, 1e-7, 3e-5}, std::tuple{DType::kF8E4M3, 1e-4, 3e-3}}) {
    LatentCache cache(kLite, dtype, 16, 1000, 1);
    const auto pages = exact.store(cache);
    const auto out =
        attend(cache, **projection, MlaForm::kAbsorbed, {{&exact, &pages, 992, 8}}, pool);
    if (expected.empty()) expected = out;
    double xy = 0, norms = 0;
    for (size_t i = 0; i < out.size(); ++i) {
      xy += static_cast<double>(out[i]) * expected[i];
      norms +=
          static_cast<double>(out[i]) * out[i] + static_cast<double>(expected[i]) * expected[i];
    }
    const double cosdiff = std::fabs(1 - 2 * xy / norms);
    RecordProperty(std::string(dtype_info(dtype).name), std::to_string(cosdiff));
    std::printf("%s cache: cosdiff %.2e\n", dtype_info(dtype).name.data(), cosdiff);
    EXPECT_GE(cosdiff, low) << dtype_info(dtype).name;
    EXPECT_LE(cosdiff, high) << dtype_info(dtype).name;
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, Mla, ::testing::ValuesIn(mla_under_test()),
                         [](const auto& info) { return info.param.name; });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Mla);

TEST(MlaForms, DecodeIsAbsorbedAndPromptsAreNaive) {
  const MlaShape v3{128, 128, 64, 128, 512};
  for (const int kv_len : {100, 4096, 131072}) {
    EXPECT_FALSE(mla_prefers_naive(v3, 1, kv_len)) << kv_len;
    EXPECT_FALSE(mla_prefers_naive(kLite, 2, kv_len)) << kv_len;
  }
  for (int q_len = 1; q_len <= 16; ++q_len) {  // a decode step with drafts
    for (const int kv_len : {q_len, q_len + 1, q_len + 1000}) {
      EXPECT_FALSE(mla_prefers_naive(v3, q_len, kv_len)) << q_len << " over " << kv_len;
      EXPECT_FALSE(mla_prefers_naive({2, 16, 8, 16, 32}, q_len, kv_len)) << q_len;
    }
  }
  for (const int q_len : {512, 2048, 8192}) {
    EXPECT_TRUE(mla_prefers_naive(v3, q_len, q_len)) << q_len;
    EXPECT_TRUE(mla_prefers_naive(kLite, q_len, q_len + 30000)) << q_len;
  }
}

TEST(MlaOps, EveryIsaRunsTheWholeTable) {
  std::mt19937 random(5);
  platform::ThreadPool pool(2);
  const KvB weights(random, kTiny, DType::kBF16);
  const LatentSequence sequence(random, kTiny, 50, DType::kBF16);
  LatentCache cache(kTiny, DType::kBF16, 16, 50, 3);
  const auto pages = sequence.store(cache);
  for (const Isa isa : supported_isas()) {
    CpuOpsOptions options;
    options.isa = isa;
    auto ops = make_cpu_ops(options, pool);
    ASSERT_TRUE(ops.ok());
    const auto projection = (*ops)->pack_mla(weights.spec());
    ASSERT_TRUE(projection.ok()) << projection.error().message;
    const auto run = [&](const MlaAttentionArgs& args) { (*ops)->mla_attention(args); };
    const auto out =
        attend_latent(run, cache.kv(), **projection, MlaForm::kAuto, {{&sequence, &pages, 41, 9}});
    for (int i = 0; i < 9; ++i) {
      EXPECT_LT(relmax(out.data() + i * 8 * 32, sequence.dense(weights, 41 + i)), 1e-5);
    }
    MlaAttentionArgs nothing;
    nothing.shape = kTiny;
    (*ops)->mla_attention(nothing);  // an empty batch is nothing to do
  }
}

}  // namespace
}  // namespace capstan::kernels
