#include "engine/draft_depth.h"

#include <gtest/gtest.h>

#include <functional>
#include <numeric>
#include <random>

namespace capstan::engine {
namespace {

using Cost = std::function<double(int rows)>;

/// A depth that has seen steps of up to `most` rows take what `cost` says.
DraftDepth taught(const Cost& cost, int most) {
  DraftDepth depth;
  for (int round = 0; round < 3; ++round) {
    for (int rows = 1; rows <= most; ++rows) depth.observe(rows, 0, cost(rows));
  }
  return depth;
}

std::vector<int> choose(DraftDepth& depth, const std::vector<DraftDepth::Candidate>& candidates) {
  std::vector<int> out;
  depth.choose(candidates, static_cast<int>(candidates.size()), out);
  return out;
}

int sum(const std::vector<int>& v) { return std::accumulate(v.begin(), v.end(), 0); }

TEST(StepTimes, InterpolatesAndGuessesBeyond) {
  StepTimes times;
  EXPECT_EQ(times.seconds(3), 0);
  times.observe(2, 0.010);
  times.observe(6, 0.030);
  EXPECT_TRUE(times.known(4));
  EXPECT_FALSE(times.known(1));
  EXPECT_FALSE(times.known(7));
  EXPECT_DOUBLE_EQ(times.seconds(4), 0.020);
  EXPECT_DOUBLE_EQ(times.seconds(1), 0.010);
  EXPECT_DOUBLE_EQ(times.seconds(12), 0.045);
}

TEST(StepTimes, OneOutlierMovesLittleAChangeIsFollowed) {
  StepTimes times;
  for (int i = 0; i < 20; ++i) {
    times.observe(1, 0.010);
    times.observe(4, 0.012);
  }
  times.observe(1, 1.0);
  EXPECT_LT(times.seconds(1), 0.0125);
  EXPECT_LT(times.seconds(4), 0.0135);
  for (int i = 0; i < 100; ++i) times.observe(1, 0.030);
  EXPECT_NEAR(times.seconds(1), 0.030, 0.001);
  EXPECT_GT(times.seconds(4), 0.018) << "what was not seen moves along";
}

TEST(DraftDepth, NothingBeforeAPlainStepWasSeen) {
  DraftDepth depth;
  EXPECT_EQ(choose(depth, {{0.9, 8}}), (std::vector<int>{0}));
  depth.observe(1, 0, 0.01);
  EXPECT_GT(choose(depth, {{0.9, 8}})[0], 0);
}

TEST(DraftDepth, TriesAtMostTwiceWhatItKnows) {
  DraftDepth depth;
  int rows = 1;
  depth.observe(1, 0, 0.01);
  for (int i = 0; i < 3; ++i) {
    const int drafts = choose(depth, {{0.99, 40}})[0];
    EXPECT_LE(1 + drafts, 2 * rows);
    rows = 1 + drafts;
    depth.observe(rows, drafts, 0.01);
  }
  EXPECT_EQ(rows, 8);
}

TEST(DraftDepth, RowsThatCostNothingAreAllTaken) {
  DraftDepth depth = taught([](int) { return 0.01; }, 40);
  EXPECT_EQ(choose(depth, {{0.9, 8}, {0.5, 3}}), (std::vector<int>{8, 3}));
}

TEST(DraftDepth, RowsThatCostTheirFullTimeAreNot) {
  DraftDepth depth = taught([](int rows) { return 0.01 * rows; }, 40);
  EXPECT_EQ(sum(choose(depth, {{0.95, 8}, {0.9, 8}})), 0);
}

TEST(DraftDepth, StopsWhereStepsGetDear) {
  // As with matrix kernels that take four rows at a time.
  DraftDepth depth = taught([](int rows) { return 0.01 * ((rows + 3) / 4); }, 40);
  EXPECT_EQ(choose(depth, {{0.9, 8}}), (std::vector<int>{3}));
  EXPECT_EQ(sum(choose(depth, {{0.9, 8}, {0.9, 8}, {0.9, 8}, {0.9, 8}})), 0);
}

TEST(DraftDepth, TheBestGuessesComeFirst) {
  DraftDepth depth = taught([](int rows) { return rows <= 4 ? 0.01 : 0.1; }, 40);
  EXPECT_EQ(choose(depth, {{0.3, 8}, {0.9, 8}}), (std::vector<int>{0, 2}));
}

TEST(DraftDepth, HopelessGuessesAreLeft) {
  DraftDepth depth = taught([](int rows) { return 0.01 + 0.001 * rows; }, 40);
  EXPECT_EQ(sum(choose(depth, {{0.02, 8}, {0.02, 8}})), 0);
}

TEST(DraftDepth, MeasuresWhatItDoesNotDoNowAndAgain) {
  DraftDepth depth = taught([](int) { return 0.01; }, 40);
  int plain = 0;
  for (int i = 0; i < 1000; ++i) {
    const int drafts = choose(depth, {{0.9, 4}})[0];
    plain += drafts == 0;
    depth.observe(1 + drafts, drafts, 0.01);
  }
  EXPECT_EQ(plain, 30);
  DraftDepth dear = taught([](int rows) { return 0.01 * rows; }, 40);
  int drafted = 0;
  for (int i = 0; i < 1000; ++i) {
    const int drafts = choose(dear, {{0.9, 4}})[0];
    drafted += drafts > 0;
    dear.observe(1 + drafts, drafts, 0.01 * (1 + drafts));
  }
  EXPECT_EQ(drafted, 3);
}

TEST(DraftDepth, NoticesThatPlainStepsGotFaster) {
  DraftDepth depth(true);
  int drafted = 0;
  for (int i = 0; i < 500; ++i) {
    const int drafts = choose(depth, {{0.5, 1}})[0];
    if (i == 100) {
      EXPECT_EQ(drafts, 1);
    }
    depth.observe(1 + drafts, drafts, drafts > 0 ? 0.084 : i < 100 ? 0.075 : 0.046);
    drafted += i < 100 ? 0 : drafts;
  }
  EXPECT_LT(drafted, 50);
}

TEST(DraftDepth, NoChoiceIsBetterAndNoneIsWorseThanPlain) {
  std::mt19937 random(3);
  const auto real = [&] { return static_cast<double>(random() % 1000) / 1000; };
  for (int round = 0; round < 300; ++round) {
    std::vector<double> cost = {0, 0.01};
    for (int r = 2; r <= 64; ++r) cost.push_back(cost.back() + 0.002 * real() * real());
    DraftDepth depth = taught([&](int rows) { return cost[static_cast<size_t>(rows)]; }, 64);
    std::vector<DraftDepth::Candidate> candidates(1 + random() % 3);
    for (auto& c : candidates) c = {0.99 * real(), static_cast<int>(random() % 6)};
    const auto speed = [&](const std::vector<int>& drafts) {
      double tokens = 0;
      for (size_t i = 0; i < drafts.size(); ++i) {
        double p = 1;
        for (int d = 0; d <= drafts[i]; ++d, p *= candidates[i].acceptance) tokens += p;
      }
      return tokens / depth.times().seconds(static_cast<int>(drafts.size()) + sum(drafts));
    };
    const std::vector<int> chosen = choose(depth, candidates);
    const std::vector<int> plain(candidates.size(), 0);
    EXPECT_GE(speed(chosen), speed(plain));
    double best = 0;
    std::vector<int> any(candidates.size(), 0);
    std::function<void(size_t)> all = [&](size_t i) {
      if (i == any.size()) {
        best = std::max(best, speed(any));
        return;
      }
      for (any[i] = 0; any[i] <= candidates[i].most; ++any[i]) all(i + 1);
      any[i] = 0;
    };
    all(0);
    // Gains too small to tell from noise are left.
    EXPECT_GE(speed(chosen) * 1.1501, best);
  }
}

}  // namespace
}  // namespace capstan::engine
