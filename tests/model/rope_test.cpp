#include "model/rope.h"

#include <gtest/gtest.h>

#include <cmath>

namespace capstan::model {
namespace {

RopeConfig llama3(int dim, double theta, int64_t original) {
  RopeConfig r;
  r.dim = dim;
  r.theta = theta;
  r.scaling = RopeScaling::kLlama3;
  r.factor = 8;
  r.low_freq_factor = 1;
  r.high_freq_factor = 4;
  r.original_max_position = original;
  return r;
}

/// Published values of Llama 3.1 (dimension 128, base 500000, factor 8, original length 8192).
TEST(Rope, Llama3ScalingHasThreeRanges) {
  const std::vector<double> f = inverse_frequencies(llama3(128, 500000, 8192));
  RopeConfig plain = llama3(128, 500000, 8192);
  plain.scaling = RopeScaling::kNone;
  const std::vector<double> base = inverse_frequencies(plain);
  ASSERT_EQ(f.size(), 64u);
  EXPECT_EQ(base[0], 1.0);
  for (size_t i = 0; i <= 28; ++i) EXPECT_EQ(f[i], base[i]) << i;
  EXPECT_NEAR(f[29], 0.00216657076, 1e-11);
  EXPECT_NEAR(base[29] / f[29], 1.20748387, 1e-8);
  EXPECT_NEAR(f[30], 0.00137189357, 1e-11);
  EXPECT_NEAR(f[34], 0.000178507813, 1e-12);
  EXPECT_NEAR(f[35], 9.55621235e-05, 1e-13);
  EXPECT_NEAR(f[63], 3.06892599e-07, 1e-15);
  for (size_t i = 35; i < 64; ++i) EXPECT_DOUBLE_EQ(f[i], base[i] / 8) << i;
}

TEST(Rope, FactorsDivideFrequencies) {
  RopeConfig r;
  r.dim = 8;
  r.scaling = RopeScaling::kFactors;
  r.factors = {1, 2, 4, 8};
  const std::vector<double> f = inverse_frequencies(r);
  EXPECT_DOUBLE_EQ(f[0], 1.0);
  EXPECT_DOUBLE_EQ(f[1], 0.1 / 2);
  EXPECT_DOUBLE_EQ(f[3], 0.001 / 8);
}

TEST(Rope, TableIsExactAtAnyPositionAndOrder) {
  RopeConfig r;
  r.dim = 64;
  r.theta = 100000;
  const std::vector<double> f = inverse_frequencies(r);
  RopeTable table(r);
  ASSERT_EQ(table.pairs(), 32);
  const std::vector<int32_t> positions = {163839, 0, 8191, 8192, 63, 64, 1, 8191, 1000000};
  std::vector<float> cos(positions.size() * 32), sin(cos.size());
  for (int round = 0; round < 2; ++round) {  // the second round reads kept rows
    table.fill(positions, cos.data(), sin.data());
    for (size_t t = 0; t < positions.size(); ++t) {
      for (size_t i = 0; i < 32; ++i) {
        const double angle = positions[t] * f[i];
        EXPECT_EQ(cos[t * 32 + i], static_cast<float>(std::cos(angle))) << t << " " << i;
        EXPECT_EQ(sin[t * 32 + i], static_cast<float>(std::sin(angle))) << t << " " << i;
      }
    }
  }
}

}  // namespace
}  // namespace capstan::model
