// RMSNorm, RoPE with the store to the cache, and exp2.
#include <gtest/gtest.h>
#include <immintrin.h>

#include <bit>
#include <cmath>

#include "kernels/ops_fixture.h"
#include "kernels/ref/ref_ops.h"

namespace capstan::kernels {
namespace {

class Rows : public ::testing::TestWithParam<KernelsUnderTest> {
 protected:
  const CpuKernels& kernels() const { return *GetParam().kernels; }
};

TEST_P(Rows, RmsNormAgreesWithFloat64) {
  std::mt19937 random(1);
  for (const int n : {1, 7, 8, 20, 64, 100, 576, 1536, 4096}) {
    const auto x = random_floats(random, n, 3.0f), weight = random_floats(random, n);
    std::vector<float> y(n), in_place = x, oracle(n);
    kernels().rms_norm_row(x.data(), weight.data(), 1e-5f, y.data(), n);
    kernels().rms_norm_row(in_place.data(), weight.data(), 1e-5f, in_place.data(), n);
    auto copy = x;
    ref::rms_norm({{copy.data(), 1, n, n}, weight.data(), 1e-5f, {oracle.data(), 1, n, n}});
    double sum = 0;
    for (const float v : x) sum += static_cast<double>(v) * v;
    for (int i = 0; i < n; ++i) {
      const double expected = x[i] / std::sqrt(sum / n + 1e-5) * weight[i];
      ASSERT_NEAR(oracle[i], expected, 1e-7 * std::fabs(expected));
      ASSERT_NEAR(y[i], expected, 1e-6 * std::fabs(expected)) << n << " " << i;
    }
    EXPECT_EQ(y, in_place);
  }
}

TEST_P(Rows, RmsNormOfZerosIsZero) {
  std::vector<float> x(64, 0.0f), w(64, 1.0f), y(64, 5.0f);
  kernels().rms_norm_row(x.data(), w.data(), 1e-6f, y.data(), 64);
  EXPECT_EQ(y, x);
}

/// One token with one query head and one KV head of dimension 4.
struct Tiny {
  std::vector<float> qkv = {1, 2, 3, 4, 1, 2, 3, 4, 5, 6, 7, 8};
  std::vector<float> cos, sin;
  std::vector<int64_t> slots = {0};
  std::vector<float> cache = std::vector<float>(8);
  QkvArgs args;

  explicit Tiny(RopeStyle style) {
    for (const double f : {1.0, 0.01}) {
      cos.push_back(static_cast<float>(std::cos(3 * f)));
      sin.push_back(static_cast<float>(std::sin(3 * f)));
    }
    args.qkv = {qkv.data(), 1, 12, 12};
    args.q_heads = 1;
    args.kv.base = reinterpret_cast<std::byte*>(cache.data());
    args.kv.dtype = DType::kF32;
    args.kv.page_size = 1;
    args.kv.kv_heads = 1;
    args.kv.head_dim = 4;
    args.kv.page_stride = 32;
    args.kv.head_stride = 16;
    args.kv.value_offset = 16;
    args.rope = style;
    args.cos = cos.data();
    args.sin = sin.data();
    args.rope_dim = 4;
    args.slots = slots;
  }
};

void expect_near(const float* actual, const std::vector<float>& expected) {
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_NEAR(actual[i], expected[i], 1e-6) << i;
}

TEST_P(Rows, RopeTestVectors) {
  // x = [1,2,3,4] at position 3 with frequencies 1 and 0.01.
  const std::vector<float> interleaved = {-1.2722325f, -1.838865f, 2.8786681f, 4.0881866f};
  const std::vector<float> half_split = {-1.4133525f, 1.8791181f, -2.8288575f, 4.0581911f};
  for (const bool oracle : {false, true}) {
    for (const RopeStyle style : {RopeStyle::kInterleaved, RopeStyle::kHalfSplit}) {
      Tiny tiny(style);
      oracle ? ref::qkv_rope_store(tiny.args) : kernels().qkv_row(tiny.args, 0);
      const auto& expected = style == RopeStyle::kInterleaved ? interleaved : half_split;
      expect_near(tiny.qkv.data(), expected);
      expect_near(tiny.cache.data(), expected);
      EXPECT_EQ(std::vector<float>(tiny.cache.begin() + 4, tiny.cache.end()),
                (std::vector<float>{5, 6, 7, 8}));
    }
  }
}

TEST_P(Rows, QkvAgreesWithTheOracle) {
  std::mt19937 random(2);
  const DType dtypes[] = {DType::kF32, DType::kF16, DType::kBF16};
  const int head_dims[] = {64, 128, 80, 20, 96};
  for (int trial = 0; trial < 30; ++trial) {
    const DType dtype = dtypes[trial % 3];
    const int d = head_dims[trial % 5], q_heads = 6, kv_heads = 2, tokens = 5;
    const int rope_dim = trial % 4 == 3 ? d / 2 : d;
    const int width = (q_heads + 2 * kv_heads) * d;
    auto qkv = random_floats(random, static_cast<size_t>(tokens * width), 2.0f);
    auto oracle_qkv = qkv;
    const auto norm = random_floats(random, static_cast<size_t>(d));
    std::vector<float> cos, sin;
    for (int i = 0; i < tokens * rope_dim / 2; ++i) {
      const double angle = static_cast<double>(random() % 10000) / 100.0;
      cos.push_back(static_cast<float>(std::cos(angle)));
      sin.push_back(static_cast<float>(std::sin(angle)));
    }
    RandomCache cache(dtype, 3, kv_heads, d, 20, 9), oracle_cache(dtype, 3, kv_heads, d, 20, 9);
    const std::vector<int64_t> slots = {7, 0, 14, 3, 11};
    QkvArgs args;
    args.qkv = {qkv.data(), tokens, width, width};
    args.q_heads = q_heads;
    args.kv = cache.kv();
    args.q_norm = trial % 2 ? norm.data() : nullptr;
    args.k_norm = args.q_norm;
    args.norm_eps = 1e-6f;
    args.rope = trial % 7 < 3 ? RopeStyle::kInterleaved : RopeStyle::kHalfSplit;
    args.cos = cos.data();
    args.sin = sin.data();
    args.rope_dim = rope_dim;
    args.slots = slots;
    for (int64_t t = 0; t < tokens; ++t) kernels().qkv_row(args, t);
    args.qkv.data = oracle_qkv.data();
    args.kv = oracle_cache.kv();
    ref::qkv_rope_store(args);

    for (int t = 0; t < tokens; ++t) {
      for (int i = 0; i < (q_heads + kv_heads) * d; ++i) {
        const int at = t * width + i;
        ASSERT_NEAR(qkv[at], oracle_qkv[at], 2e-6 * (1 + std::fabs(oracle_qkv[at]))) << trial;
      }
      for (int h = 0; h < kv_heads; ++h) {
        for (const bool value : {false, true}) {
          std::vector<float> stored(d), expected(d);
          const int64_t offset = value ? cache.kv().value_offset : 0;
          quant::dequantize_row(dtype, key_row_of_slot(cache.kv(), slots[t], h) + offset,
                                stored.data(), d);
          quant::dequantize_row(dtype, key_row_of_slot(oracle_cache.kv(), slots[t], h) + offset,
                                expected.data(), d);
          // Within one step of the format where the float results straddle a rounding boundary.
          const float step = dtype == DType::kF32 ? 2e-6f : dtype == DType::kF16 ? 1e-3f : 8e-3f;
          for (int i = 0; i < d; ++i) {
            if (value) {
              ASSERT_EQ(stored[i], expected[i]);
            } else {
              ASSERT_NEAR(stored[i], expected[i], step * (1 + std::fabs(expected[i])));
            }
          }
        }
      }
    }
  }
}

TEST_P(Rows, StoreRoundsToNearestEvenAndSaturates) {
  const std::vector<float> values = {1e9f,
                                     -1e9f,
                                     65519.0f,
                                     65520.0f,
                                     INFINITY,
                                     -INFINITY,
                                     1.0f + 0x1p-11f,
                                     1.0f + 3 * 0x1p-11f,
                                     1.0f + 0x1p-8f,
                                     1.0f + 3 * 0x1p-8f,
                                     1e-7f,
                                     -0.0f,
                                     3.0e38f,
                                     NAN,
                                     0.1f,
                                     -2.5f};
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    for (const bool oracle : {false, true}) {
      std::vector<float> qkv(48, 0.0f);
      std::copy(values.begin(), values.end(), qkv.begin() + 32);
      RandomCache cache(dtype, 1, 1, 16, 1, 1);
      const std::vector<int64_t> slots = {0};
      QkvArgs args;
      args.qkv = {qkv.data(), 1, 48, 48};
      args.q_heads = 1;
      args.kv = cache.kv();
      args.slots = slots;
      oracle ? ref::qkv_rope_store(args) : kernels().qkv_row(args, 0);
      uint16_t stored[16];
      std::memcpy(stored, cache.kv().base + cache.kv().value_offset, sizeof(stored));
      for (size_t i = 0; i < 16; ++i) {
        if (std::isnan(values[i])) {
          const uint16_t exponent = dtype == DType::kF16 ? 0x7c00 : 0x7f80;
          EXPECT_EQ(stored[i] & exponent, exponent);
          EXPECT_NE(stored[i] & ~exponent & 0x7fff, 0);
        } else if (dtype == DType::kF16) {
          EXPECT_EQ(stored[i], quant::float_to_half(std::clamp(values[i], -65504.0f, 65504.0f)))
              << i;
        } else {
          EXPECT_EQ(stored[i], quant::float_to_bfloat16(values[i])) << i;
        }
      }
    }
  }
}

TEST_P(Rows, Exp2IsWithinOneUlpAndExactAtIntegers) {
  // Every 1009th float in [-126, -2^-30].
  std::vector<float> x, y(4096);
  double worst = 0;
  const auto check = [&] {
    kernels().exp2_row(x.data(), y.data(), static_cast<int64_t>(x.size()));
    for (size_t i = 0; i < x.size(); ++i) {
      const double exact = std::exp2(static_cast<double>(x[i]));
      const double ulp = std::exp2(std::floor(static_cast<double>(x[i])) - 23);
      worst = std::max(worst, std::fabs(y[i] - exact) / ulp);
    }
    x.clear();
  };
  const uint32_t lowest = std::bit_cast<uint32_t>(-126.0f);
  for (uint32_t bits = std::bit_cast<uint32_t>(-0x1p-30f); bits <= lowest; bits += 1009) {
    x.push_back(std::bit_cast<float>(bits));
    if (x.size() == y.size()) check();
  }
  check();
  EXPECT_LE(worst, 1.0);
  for (int n = 0; n >= -126; --n) x.push_back(static_cast<float>(n));
  kernels().exp2_row(x.data(), y.data(), static_cast<int64_t>(x.size()));
  for (size_t i = 0; i < x.size(); ++i) EXPECT_EQ(y[i], std::ldexp(1.0f, static_cast<int>(x[i])));
  const float tiny[3] = {-126.00001f, -500.0f, -INFINITY};
  kernels().exp2_row(tiny, y.data(), 3);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(y[i], 0.0f);
}

INSTANTIATE_TEST_SUITE_P(Kernels, Rows, ::testing::ValuesIn(kernels_under_test()),
                         [](const auto& info) { return info.param.name; });
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Rows);

}  // namespace
}  // namespace capstan::kernels
