#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "kernels/attention_plan.h"
#include "kernels/ops_fixture.h"
#include "kernels/ref/ref_ops.h"

namespace capstan::kernels {
namespace {

using Run = void (*)(const AttentionArgs&, platform::ThreadPool&);

/// Queries [first, first+count) of one sequence.
struct Piece {
  const Sequence* sequence;
  const std::vector<int32_t>* pages;
  int first;
  int count;
};

/// One attention call over the pieces; rows of the result in their order.
std::vector<float> attend(const CpuKernels* kernels, const PagedKv& kv,
                          const std::vector<Piece>& pieces, platform::ThreadPool& pool,
                          AttentionPlan& plan) {
  const Sequence& any = *pieces[0].sequence;
  const int width = any.q_heads * any.head_dim;
  const int stride = width + 2 * any.kv_heads * any.head_dim;  // as in the fused projection
  int rows = 0;
  for (const Piece& p : pieces) rows += p.count;
  std::vector<float> q(static_cast<size_t>(rows) * static_cast<size_t>(stride), NAN);
  std::vector<float> out(static_cast<size_t>(rows) * static_cast<size_t>(width), NAN);
  std::vector<SequenceSlice> slices;
  int row = 0;
  for (const Piece& p : pieces) {
    slices.push_back({row, p.count, p.first + p.count, p.pages->data()});
    for (int i = 0; i < p.count; ++i, ++row) {
      std::memcpy(q.data() + static_cast<int64_t>(row) * stride, p.sequence->query(p.first + i),
                  sizeof(float) * static_cast<size_t>(width));
    }
  }
  AttentionArgs args;
  args.q = {q.data(), rows, width, stride};
  args.q_heads = any.q_heads;
  args.kv = kv;
  args.scale = any.scale();
  args.sequences = slices;
  args.out = {out.data(), rows, width, width};
  if (kernels == nullptr) {
    ref::attention(args);
  } else {
    plan.run(*kernels, args, pool);
  }
  return out;
}

/// max|x-y| / max|y| of one row.
double relmax(const float* x, const std::vector<double>& y) {
  double difference = 0, largest = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    if (!std::isfinite(x[i])) return INFINITY;
    difference = std::max(difference, std::fabs(x[i] - y[i]));
    largest = std::max(largest, std::fabs(y[i]));
  }
  return difference / largest;
}

class Attention : public ::testing::TestWithParam<KernelsUnderTest> {
 protected:
  const CpuKernels* kernels() const { return GetParam().kernels; }
  AttentionPlan plan_;
};

TEST_P(Attention, AgreesWithFloat64AndTheOracle) {
  platform::ThreadPool pool(2);
  std::mt19937 random(7);
  const int head_dims[] = {32, 64, 80, 96, 128, 20};
  const int groups[] = {1, 2, 3, 4, 7, 9};
  const DType dtypes[] = {DType::kF32, DType::kF16, DType::kBF16};
  const int page_sizes[] = {1, 16, 7, 64, 256, 33};
  for (int trial = 0; trial < 36; ++trial) {
    const int group = groups[trial % 6], head_dim = head_dims[(trial + trial / 6) % 6];
    const DType dtype = dtypes[trial % 3];
    const int kv_heads = 1 + static_cast<int>(random() % 2);
    const int length = 1 + static_cast<int>(random() % (trial % 4 == 0 ? 600 : 150));
    const int q_len = 1 + static_cast<int>(random() % std::min(length, 70));
    Sequence sequence(random, length, group * kv_heads, kv_heads, head_dim);
    sequence.round_to(dtype);
    RandomCache cache(dtype, page_sizes[(trial * 5 + 1) % 6], kv_heads, head_dim, length, random());
    const std::vector<int32_t> pages = sequence.store(cache);
    const std::vector<Piece> pieces = {{&sequence, &pages, length - q_len, q_len}};
    const auto out = attend(kernels(), cache.kv(), pieces, pool, plan_);
    const auto oracle = attend(nullptr, cache.kv(), pieces, pool, plan_);
    const int width = sequence.q_heads * head_dim;
    for (int i = 0; i<q_len; i += q_len> 8 ? 5 : 1) {
      const auto expected = sequence.dense(length - q_len + i);
      ASSERT_LT(relmax(oracle.data() + i * width, expected), 2e-7);
      ASSERT_LT(relmax(out.data() + i * width, expected), 1e-5)
          << "group " << group << " head_dim " << head_dim << " length " << length << " query "
          << i;
    }
  }
}

TEST_P(Attention, LargeScoresStayExactEnough) {
  // Scores in the hundreds: one key takes nearly everything, the sums run over many magnitudes.
  platform::ThreadPool pool(1);
  std::mt19937 random(3);
  Sequence sequence(random, 300, 3, 1, 64);
  for (float& x : sequence.q) x *= 20.0f;
  RandomCache cache(DType::kF32, 16, 1, 64, 300, 1);
  const std::vector<int32_t> pages = sequence.store(cache);
  const auto out = attend(kernels(), cache.kv(), {{&sequence, &pages, 290, 10}}, pool, plan_);
  for (int i = 0; i < 10; ++i) {
    // Scores near 250 carry rounding errors of 250 * 2^-24, which exp() turns into relative ones.
    EXPECT_LT(relmax(out.data() + i * 3 * 64, sequence.dense(290 + i)), 2e-4);
  }
}

/// The bits of every position, whatever it is computed with.
TEST_P(Attention, BitsDoNotDependOnChunksPagesThreadsOrBatch) {
  std::mt19937 random(11);
  struct Shape {
    int group, kv_heads, head_dim, length;
    DType dtype;
  };
  const Shape shapes[] = {{3, 3, 64, 600, DType::kF16},  {7, 1, 128, 330, DType::kF32},
                          {1, 2, 80, 300, DType::kBF16}, {9, 1, 32, 280, DType::kF16},
                          {4, 2, 96, 140, DType::kF32},  {2, 1, 20, 270, DType::kF16}};
  for (const Shape& shape : shapes) {
    const int q_heads = shape.group * shape.kv_heads, length = shape.length;
    const auto width = static_cast<size_t>(q_heads * shape.head_dim);
    Sequence sequence(random, length, q_heads, shape.kv_heads, shape.head_dim);
    Sequence other(random, 200, q_heads, shape.kv_heads, shape.head_dim);
    platform::ThreadPool one(1);
    std::vector<float> expected;
    {
      RandomCache cache(shape.dtype, 16, shape.kv_heads, shape.head_dim, length, 1);
      const auto pages = sequence.store(cache);
      expected = attend(kernels(), cache.kv(), {{&sequence, &pages, 0, length}}, one, plan_);
    }
    const auto same_bits = [&](const std::vector<float>& out, size_t row, int position, int count) {
      return std::memcmp(out.data() + row * width,
                         expected.data() + static_cast<size_t>(position) * width,
                         static_cast<size_t>(count) * width * sizeof(float)) == 0;
    };
    for (const int page_size : {1, 3, 16, 50, 64, 256}) {
      RandomCache cache(shape.dtype, page_size, shape.kv_heads, shape.head_dim, length + 200,
                        random());
      const auto pages = sequence.store(cache);
      const auto other_pages = other.store(cache);
      platform::ThreadPool pool(1 + static_cast<int>(random() % 3));
      // The prompt in random chunks, each in a batch with decode and prefill of another sequence.
      for (int first = 0; first < length;) {
        const int count =
            std::min(length - first, 1 + static_cast<int>(random() % (first % 2 ? 9 : 130)));
        const int other_first = static_cast<int>(random() % 199);
        const std::vector<Piece> batch = {{&other, &other_pages, other_first, 1},
                                          {&sequence, &pages, first, count},
                                          {&other, &other_pages, 0, other_first + 1}};
        const auto out = attend(kernels(), cache.kv(), batch, pool, plan_);
        ASSERT_TRUE(same_bits(out, 1, first, count))
            << "page size " << page_size << " queries " << first << "+" << count << " head_dim "
            << shape.head_dim << " threads " << pool.size();
        first += count;
      }
      // Single tokens, alone: decode.
      for (int i = 0; i < 12; ++i) {
        const int position = i == 0 ? length - 1 : static_cast<int>(random() % length);
        const auto out =
            attend(kernels(), cache.kv(), {{&sequence, &pages, position, 1}}, pool, plan_);
        ASSERT_TRUE(same_bits(out, 0, position, 1))
            << "page size " << page_size << " position " << position;
      }
    }
  }
}

TEST_P(Attention, LongContextsSplitAmongThreadsGiveTheSameBits) {
  std::mt19937 random(13);
  Sequence sequence(random, 3000, 6, 2, 32);
  RandomCache cache(DType::kF16, 32, 2, 32, 3000, 5);
  const auto pages = sequence.store(cache);
  platform::ThreadPool one(1);
  const std::vector<Piece> pieces = {{&sequence, &pages, 2990, 10}};
  const auto expected = attend(kernels(), cache.kv(), pieces, one, plan_);
  for (const int threads : {2, 3, 4}) {
    platform::ThreadPool pool(threads);
    for (int repeat = 0; repeat < 3; ++repeat) {
      EXPECT_EQ(attend(kernels(), cache.kv(), pieces, pool, plan_), expected) << threads;
    }
  }
}

TEST_P(Attention, FutureKeysContributeNothingNotEvenNaN) {
  std::mt19937 random(17);
  for (const DType dtype : {DType::kF32, DType::kF16}) {
    Sequence sequence(random, 90, 4, 4, 64);
    RandomCache clean(dtype, 16, 4, 64, 90, 1), poisoned(dtype, 16, 4, 64, 90, 1);
    const auto pages = sequence.store(clean);
    Sequence bad = sequence;
    for (size_t i = static_cast<size_t>(bad.kv_at(70, 0)); i < bad.k.size(); ++i) {
      bad.k[i] = bad.v[i] = NAN;
    }
    const auto bad_pages = bad.store(poisoned);
    platform::ThreadPool pool(2);
    const auto expected = attend(kernels(), clean.kv(), {{&sequence, &pages, 50, 40}}, pool, plan_);
    const auto out = attend(kernels(), poisoned.kv(), {{&bad, &bad_pages, 50, 40}}, pool, plan_);
    const size_t visible = 20 * 4 * 64;
    EXPECT_EQ(std::memcmp(out.data(), expected.data(), visible * sizeof(float)), 0);
    EXPECT_TRUE(std::isnan(out[visible]));
  }
}

INSTANTIATE_TEST_SUITE_P(Kernels, Attention, ::testing::ValuesIn(kernels_under_test()),
                         [](const auto& info) { return info.param.name; });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Attention);

}  // namespace
}  // namespace capstan::kernels
