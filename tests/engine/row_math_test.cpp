#include "engine/row_math.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

namespace capstan::engine {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> random_row(int64_t n, uint32_t seed, float scale = 5) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> x(static_cast<size_t>(n));
  for (float& v : x) v = normal(rng);
  return x;
}

const int64_t kLengths[] = {1, 2, 15, 16, 17, 31, 32, 33, 100, 4095, 4096, 4097, 49152, 151936};

TEST(RowMath, ArgmaxAgreesWithAScan) {
  for (int64_t n : kLengths) {
    auto x = random_row(n, static_cast<uint32_t>(n));
    const auto it = std::max_element(x.begin(), x.end());
    const RowMax max = row_max(x.data(), n);
    EXPECT_EQ(max.value, *it);
    EXPECT_EQ(max.index, it - x.begin());
    EXPECT_TRUE(max.clean);
  }
}

TEST(RowMath, TiesGoToTheLowestIndex) {
  std::vector<float> x(10000, -1.0f);
  for (size_t i : {9999u, 8192u, 4097u, 5000u}) x[i] = 3.0f;
  EXPECT_EQ(row_max(x.data(), 10000).index, 4097);
  std::fill(x.begin(), x.end(), 0.0f);
  EXPECT_EQ(row_max(x.data(), 10000).index, 0);
}

TEST(RowMath, NonFiniteValuesAreNoticedAnywhere) {
  for (size_t at : {0u, 15u, 16u, 4095u, 4096u, 4999u}) {
    for (float bad : {kNan, kInf}) {
      auto x = random_row(5000, 1);
      x[at] = bad;
      EXPECT_FALSE(row_max(x.data(), 5000).clean) << at;
      EXPECT_EQ(replace_non_finite(x.data(), 5000), 1);
      EXPECT_TRUE(row_max(x.data(), 5000).clean);
      EXPECT_EQ(x[at], std::isnan(bad) ? -kInf : std::numeric_limits<float>::max());
    }
  }
  std::vector<float> masked(100, -kInf);
  EXPECT_TRUE(row_max(masked.data(), 100).clean);
  EXPECT_EQ(row_max(masked.data(), 100).value, -kInf);
}

TEST(RowMath, ExponentialIsAccurate) {
  std::vector<float> x, p;
  for (double v = 0; v > -87.0; v -= 0.00137) x.push_back(static_cast<float>(v));
  p.resize(x.size());
  std::vector<double> sums;
  row_exp(x.data(), static_cast<int64_t>(x.size()), 0, 1, p.data(), sums);
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double exact = std::exp(static_cast<double>(x[i]));
    worst = std::max(worst, std::abs(p[i] - exact) / exact);
  }
  EXPECT_LT(worst, 3e-7);
  EXPECT_EQ(p[0], 1.0f);
}

TEST(RowMath, ExponentialOfMaskedAndFarTokensIsZero) {
  const std::vector<float> x = {0, -kInf, -200, -std::numeric_limits<float>::max(), -88};
  std::vector<float> p(5);
  std::vector<double> sums;
  EXPECT_EQ(row_exp(x.data(), 5, 0, 1, p.data(), sums), 1.0);
  EXPECT_EQ(p, (std::vector<float>{1, 0, 0, 0, 0}));
}

TEST(RowMath, SumsAgreeWithDoublePrecision) {
  for (int64_t n : kLengths) {
    const auto x = random_row(n, 7);
    const RowMax max = row_max(x.data(), n);
    for (float t : {0.25f, 1.0f, 3.0f}) {
      double exact = 0;
      for (float v : x) exact += std::exp(static_cast<double>(v - max.value) * t);
      std::vector<float> p(x.size());
      std::vector<double> sums;
      EXPECT_NEAR(row_exp(x.data(), n, max.value, t, p.data(), sums) / exact, 1, 1e-5);
      EXPECT_EQ(row_exp_sum(x.data(), n, max.value, t),
                row_exp(x.data(), n, max.value, t, p.data(), sums));
      EXPECT_EQ(static_cast<int64_t>(sums.size()), (n + kRowBlock - 1) / kRowBlock);
    }
  }
}

TEST(RowMath, BoundOfTopLeavesAtLeastKAndNotMany) {
  for (int64_t n : kLengths) {
    const auto x = random_row(n, 9);
    std::vector<float> scratch;
    for (int64_t k : {1, 5, 64, 512}) {
      if (k > n) continue;
      const float t = lower_bound_of_top(x.data(), n, k, scratch);
      std::vector<int32_t> at_least;
      indices_at_least(x.data(), n, t, at_least);
      EXPECT_GE(static_cast<int64_t>(at_least.size()), k);
      if (n > 40000) {
        EXPECT_LT(static_cast<int64_t>(at_least.size()), 2 * k + 16);
      }
      EXPECT_TRUE(std::is_sorted(at_least.begin(), at_least.end()));
      EXPECT_EQ(static_cast<int64_t>(at_least.size()),
                std::count_if(x.begin(), x.end(), [&](float v) { return v >= t; }));
    }
  }
}

}  // namespace
}  // namespace capstan::engine
