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

RopeConfig yarn(int dim, double factor, int64_t original) {
  RopeConfig r;
  r.dim = dim;
  r.scaling = RopeScaling::kYarn;
  r.factor = factor;
  r.original_max_position = original;
  return r;
}

/// DeepSeek-V3 and V2-Lite: low and high of the ramp are 10 and 23.
TEST(Rope, YarnOfDeepseek) {
  const std::vector<double> f = inverse_frequencies(yarn(64, 40, 4096));
  ASSERT_EQ(f.size(), 32u);
  const std::vector<std::pair<size_t, double>> expected = {{0, 1},
                                                           {1, 0.7498942093},
                                                           {9, 0.0749894209},
                                                           {10, 0.0562341325},
                                                           {11, 0.0390069266},
                                                           {12, 0.0268793601},
                                                           {16, 0.0055},
                                                           {20, 0.000790569415},
                                                           {22, 0.000177827941},
                                                           {23, 3.33380358e-05},
                                                           {24, 2.5e-05},
                                                           {31, 3.33380358e-06}};
  for (const auto& [i, value] : expected) EXPECT_NEAR(f[i], value, 6e-10 * value + 5e-11) << i;
}

TEST(Rope, YarnWithAllDimensionsInTheRamp) {
  const std::vector<double> expected = {1,
                                        0.502090469,
                                        0.248464673,
                                        0.12066896,
                                        0.0571428571,
                                        0.0261087044,
                                        0.0112938488,
                                        0.00444569853,
                                        0.0025,
                                        0.00140585331,
                                        0.000790569415,
                                        0.000444569853,
                                        0.00025,
                                        0.000140585331,
                                        7.90569415e-05,
                                        4.44569853e-05};
  const std::vector<double> f = inverse_frequencies(yarn(32, 4, 256));
  ASSERT_EQ(f.size(), expected.size());
  for (size_t i = 0; i < f.size(); ++i) EXPECT_NEAR(f[i], expected[i], 3e-9 * expected[i]) << i;
  // Bounds that are no whole dimensions: 0.41964 to 6.44024.
  RopeConfig fine = yarn(32, 4, 256);
  fine.truncate = false;
  const double ramp = (3 - 0.41964) / (6.44024 - 0.41964), base = std::pow(10000.0, -6.0 / 32);
  EXPECT_NEAR(inverse_frequencies(fine)[3], base * (ramp / 4 + 1 - ramp), 1e-6);
}

TEST(Rope, AttentionFactorMultipliesCosAndSin) {
  RopeConfig r = yarn(32, 4, 256);
  RopeTable plain(r);
  r.attention_factor = 1.064821625;
  RopeTable scaled(r);
  const std::vector<int32_t> positions = {0, 77, 9000};
  std::vector<float> cos(48), sin(48), cos2(48), sin2(48);
  plain.fill(positions, cos.data(), sin.data());
  scaled.fill(positions, cos2.data(), sin2.data());
  EXPECT_EQ(cos2[0], 1.064821625F);
  for (size_t i = 0; i < cos.size(); ++i) {
    EXPECT_NEAR(cos2[i], cos[i] * 1.064821625F, 2e-7);
    EXPECT_NEAR(sin2[i], sin[i] * 1.064821625F, 2e-7);
  }
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
