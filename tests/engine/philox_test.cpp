#include "engine/philox.h"

#include <gtest/gtest.h>

#include <set>

namespace capstan::engine {
namespace {

// The known-answer vectors that accompany the Random123 library, philox4x32, 10 rounds.
TEST(Philox, KnownAnswers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}),
            (PhiloxCounter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (PhiloxCounter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (PhiloxCounter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, UniformIsInRangeWithTheRightMoments) {
  double sum = 0, squares = 0;
  constexpr int kDraws = 100000;
  for (int i = 0; i < kDraws; ++i) {
    const double u = uniform_for(42, 0, static_cast<uint64_t>(i));
    ASSERT_GE(u, 0.0);
    ASSERT_LT(u, 1.0);
    sum += u;
    squares += u * u;
  }
  EXPECT_NEAR(sum / kDraws, 0.5, 0.005);
  EXPECT_NEAR(squares / kDraws, 1.0 / 3, 0.005);
}

TEST(Philox, SeedChoiceAndStepAllMatter) {
  std::set<double> seen;
  for (uint64_t seed = 0; seed < 10; ++seed) {
    for (uint32_t choice = 0; choice < 10; ++choice) {
      for (uint64_t step = 0; step < 10; ++step) seen.insert(uniform_for(seed, choice, step));
    }
  }
  EXPECT_EQ(seen.size(), 1000u);
}

TEST(Philox, DerivedSeedsDiffer) {
  std::set<uint64_t> seen;
  for (uint64_t process = 0; process < 30; ++process) {
    for (uint64_t request = 0; request < 30; ++request) seen.insert(derived_seed(process, request));
  }
  EXPECT_EQ(seen.size(), 900u);
}

}  // namespace
}  // namespace capstan::engine
