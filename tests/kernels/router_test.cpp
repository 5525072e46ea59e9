// Choice of experts: the specified example and the ways to get it wrong, ties, groups, hostile
// logits, and random routers against a straightforward oracle.
#include "kernels/router.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <random>
#include <set>
#include <vector>

#include "kernels/cpu_ops.h"

namespace capstan::kernels {
namespace {

struct Choice {
  std::vector<int32_t> experts;
  std::vector<float> weights;
};

template <class Real = float>
Choice route_one(const RouterSpec& router, const std::vector<float>& logits) {
  const Status status = check_router(router);
  EXPECT_TRUE(status.ok()) << (status.ok() ? "" : status.error().message);
  Choice out;
  out.experts.resize(static_cast<size_t>(router.top_k), -7);
  out.weights.resize(static_cast<size_t>(router.top_k), NAN);
  RouterScratch<Real> scratch;
  route_row(router, logits.data(), scratch, out.experts.data(), out.weights.data());
  return out;
}

// Worked example of an eight-expert V3 router.
const std::vector<float> kLogits = {0.4f, -1, 1.2f, 0.1f, -0.3f, 0.9f, 2, -2};
const std::vector<float> kBias = {0.30f, 0, -0.20f, 0.10f, 0, -0.05f, -0.60f, 0.05f};

RouterSpec v3_router() {
  RouterSpec r;
  r.scoring = ExpertScoring::kSigmoid;
  r.experts = 8;
  r.top_k = 3;
  r.groups = 4;
  r.groups_kept = 2;
  r.group_top2_sum = true;
  r.normalise = true;
  r.scale = 2.5f;
  r.scale_always = true;
  r.bias = kBias.data();
  return r;
}

using Ids = std::vector<int32_t>;

TEST(Router, SpecifiedExample) {
  for (const bool in_double : {false, true}) {
    const Choice c = in_double ? route_one<double>(v3_router(), kLogits)
                               : route_one<float>(v3_router(), kLogits);
    EXPECT_EQ(c.experts, (Ids{0, 3, 2}));
    const std::vector<double> weights = {0.790998, 0.693613, 1.015390};
    for (size_t j = 0; j < 3; ++j) EXPECT_NEAR(c.weights[j], weights[j], 1e-6);
  }
}

TEST(Router, WrongVariantsOfTheExampleDiffer) {
  RouterSpec no_groups = v3_router();
  no_groups.groups = no_groups.groups_kept = 1;
  EXPECT_EQ(route_one(no_groups, kLogits).experts, (Ids{0, 5, 3}));
  RouterSpec plain = no_groups;
  plain.bias = nullptr;
  EXPECT_EQ(route_one(plain, kLogits).experts, (Ids{6, 2, 5}));
  // With the maximum as group score (V2's rule), group 2 (0.661) ousts group 1 (0.625).
  RouterSpec maximum = v3_router();
  maximum.group_top2_sum = false;
  EXPECT_EQ(route_one(maximum, kLogits).experts, (Ids{0, 5, 4}));
}

TEST(Router, FactorAndNormalisationPerFamily) {
  RouterSpec r = v3_router();
  const double s0 = 1 / (1 + std::exp(-0.4)), s3 = 1 / (1 + std::exp(-0.1)),
               s2 = 1 / (1 + std::exp(-1.2));
  const auto expect = [&](double factor) {
    const Choice c = route_one(r, kLogits);
    ASSERT_EQ(c.experts, (Ids{0, 3, 2}));
    EXPECT_NEAR(c.weights[0], s0 * factor, 2e-6);
    EXPECT_NEAR(c.weights[1], s3 * factor, 2e-6);
    EXPECT_NEAR(c.weights[2], s2 * factor, 2e-6);
  };
  expect(2.5 / (s0 + s2 + s3));
  r.scale_always = false;  // V2: the factor only without normalisation
  expect(1 / (s0 + s2 + s3));
  r.normalise = false;
  expect(2.5);
  r.scale_always = true;
  expect(2.5);
}

TEST(Router, SoftmaxGreedy) {
  RouterSpec r;
  r.experts = 5;
  r.top_k = 2;
  r.scale = 16;
  const std::vector<float> logits = {1, 3, -2, 3.5f, 0};
  const Choice c = route_one(r, logits);
  EXPECT_EQ(c.experts, (Ids{3, 1}));
  double sum = 0;
  for (float l : logits) sum += std::exp(static_cast<double>(l));
  EXPECT_NEAR(c.weights[0], 16 * std::exp(3.5) / sum, 1e-5);
  EXPECT_NEAR(c.weights[1], 16 * std::exp(3.0) / sum, 1e-5);
}

TEST(Router, GroupLimitedGreedyMasksWithZero) {
  RouterSpec r;
  r.experts = 6;
  r.groups = 3;
  r.groups_kept = 1;
  r.mask_with_zero = true;
  r.top_k = 3;
  r.scale = 2;
  // Group 1 holds the largest; the third choice falls on a masked expert, the first, with weight 0.
  const Choice c = route_one(r, {4, 4, 5, 1, 4, 4});
  EXPECT_EQ(c.experts, (Ids{2, 3, 0}));
  EXPECT_GT(c.weights[1], 0);
  EXPECT_EQ(c.weights[2], 0);
}

TEST(Router, TiesGoToTheLowestIndex) {
  RouterSpec r;
  r.experts = 8;
  r.top_k = 3;
  EXPECT_EQ(route_one(r, std::vector<float>(8, 1.0f)).experts, (Ids{0, 1, 2}));
  EXPECT_EQ(route_one(r, {0, 2, 1, 2, 1, 2, 1, 0}).experts, (Ids{1, 3, 5}));
  r.groups = 4;
  r.groups_kept = 2;
  r.group_top2_sum = true;
  EXPECT_EQ(route_one(r, std::vector<float>(8, 1.0f)).experts, (Ids{0, 1, 2}));
  EXPECT_EQ(route_one(r, {0, 0, 1, 1, 1, 1, 1, 1}).experts, (Ids{2, 3, 4}));
}

TEST(Router, GroupsOfOneExpert) {
  RouterSpec r = v3_router();
  r.groups = 8;
  r.groups_kept = 3;
  EXPECT_EQ(route_one(r, kLogits).experts, (Ids{0, 5, 3}));
  r.groups_kept = 8;
  EXPECT_EQ(route_one(r, kLogits).experts, (Ids{0, 5, 3}));
}

TEST(Router, BiasNeverScalesTheOutput) {
  RouterSpec r = v3_router();
  const Choice plain = route_one(r, kLogits);
  std::vector<float> bias = kBias;
  for (float& b : bias) b += 100;  // the same order, other values
  r.bias = bias.data();
  const Choice shifted = route_one(r, kLogits);
  EXPECT_EQ(shifted.experts, plain.experts);
  EXPECT_EQ(shifted.weights, plain.weights);
}

TEST(Router, NegativeBiasDoesNotLoseToExcludedGroups) {
  // All choice scores of the kept groups are negative; excluded ones must not come back as 0.
  RouterSpec r = v3_router();
  std::vector<float> bias(8, -2.0f);
  r.bias = bias.data();
  const Choice c = route_one(r, {3, 2, 1, 0, -1, -2, -3, -4});
  EXPECT_EQ(c.experts, (Ids{0, 1, 2}));
}

TEST(Router, AnyLogitsGiveValidDistinctExperts) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  for (const auto scoring : {ExpertScoring::kSoftmax, ExpertScoring::kSigmoid}) {
    RouterSpec r = v3_router();
    r.scoring = scoring;
    for (const std::vector<float>& logits :
         {std::vector<float>(8, nan), std::vector<float>(8, inf), std::vector<float>(8, -inf),
          std::vector<float>{nan, 1, nan, 2, inf, -inf, nan, 0},
          std::vector<float>{-inf, -inf, -inf, -inf, -inf, -inf, -inf, 1e30f}}) {
      const Choice c = route_one(r, logits);
      EXPECT_EQ(std::set<int32_t>(c.experts.begin(), c.experts.end()).size(), 3u);
      for (int32_t e : c.experts) EXPECT_TRUE(e >= 0 && e < 8) << e;
    }
  }
  const Choice c = route_one(v3_router(), {nan, 1, nan, 2, 0, 0, 0, 0});
  EXPECT_EQ(std::count(c.experts.begin(), c.experts.end(), 0), 0) << "NaN loses to every number";
}

/// Choice by sorting (index, value) pairs in double; no shared code.
Choice oracle(const RouterSpec& r, const std::vector<float>& logits, double& margin) {
  const int n = r.experts, size = n / r.groups;
  std::vector<double> s(logits.begin(), logits.end());
  if (r.scoring == ExpertScoring::kSoftmax) {
    double sum = 0;
    for (double& v : s) sum += v = std::exp(v);
    for (double& v : s) v /= sum;
  } else {
    for (double& v : s) v = 1 / (1 + std::exp(-v));
  }
  std::vector<double> c = s;
  for (int e = 0; e < n && r.bias != nullptr; ++e) c[static_cast<size_t>(e)] += r.bias[e];
  const auto sorted = [&margin](const std::vector<double>& v, int keep) {
    std::vector<int> order(v.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
      return v[static_cast<size_t>(a)] > v[static_cast<size_t>(b)];
    });
    for (int i = 0; i < keep && i + 1 < static_cast<int>(v.size()); ++i) {
      margin = std::min(margin, v[static_cast<size_t>(order[static_cast<size_t>(i)])] -
                                    v[static_cast<size_t>(order[static_cast<size_t>(i) + 1])]);
    }
    order.resize(static_cast<size_t>(keep));
    return order;
  };
  std::vector<double> group;
  for (int g = 0; g < r.groups; ++g) {
    std::vector<double> members(c.begin() + g * size, c.begin() + (g + 1) * size);
    std::sort(members.rbegin(), members.rend());
    group.push_back(members[0] + (r.group_top2_sum && size > 1 ? members[1] : 0));
  }
  const std::vector<int> kept =
      r.groups_kept < r.groups ? sorted(group, r.groups_kept) : std::vector<int>();
  for (int e = 0; e < n && r.groups_kept < r.groups; ++e) {
    if (std::count(kept.begin(), kept.end(), e / size) == 0) {
      c[static_cast<size_t>(e)] = r.mask_with_zero ? 0 : -1e30;
      if (r.mask_with_zero) s[static_cast<size_t>(e)] = 0;
    }
  }
  Choice out;
  double sum = 0;
  for (int e : sorted(c, r.top_k)) {
    out.experts.push_back(e);
    sum += s[static_cast<size_t>(e)];
  }
  for (int32_t e : out.experts) {
    double w = s[static_cast<size_t>(e)];
    if (r.normalise) w /= sum + 1e-20;
    if (r.scale_always || !r.normalise) w *= static_cast<double>(r.scale);
    out.weights.push_back(static_cast<float>(w));
  }
  return out;
}

TEST(Router, AgreesWithTheOracleOnRandomRouters) {
  std::mt19937 random(42);
  std::normal_distribution<float> normal(0, 1);
  int compared = 0;
  for (int round = 0; round < 400; ++round) {
    RouterSpec r;
    const int sizes[] = {1, 2, 4, 8, 32};
    r.groups = sizes[random() % 4];
    r.experts = r.groups * sizes[random() % 5];
    r.groups_kept = 1 + static_cast<int>(random() % static_cast<unsigned>(r.groups));
    r.scoring = random() % 2 ? ExpertScoring::kSigmoid : ExpertScoring::kSoftmax;
    r.group_top2_sum = random() % 2;
    r.mask_with_zero = random() % 2;
    r.normalise = random() % 2;
    r.scale_always = random() % 2;
    r.scale = 0.5f + static_cast<float>(random() % 16);
    const int limit = r.mask_with_zero ? r.experts : r.experts / r.groups * r.groups_kept;
    r.top_k = 1 + static_cast<int>(random() % static_cast<unsigned>(std::min(limit, 8)));
    std::vector<float> bias, logits;
    for (int e = 0; e < r.experts; ++e) {
      bias.push_back(0.3f * normal(random));
      logits.push_back(2 * normal(random));
    }
    if (!r.mask_with_zero && random() % 2) r.bias = bias.data();
    double margin = 1;
    const Choice expected = oracle(r, logits, margin);
    for (const Choice& c : {route_one<float>(r, logits), route_one<double>(r, logits)}) {
      const bool tied_by_mask = r.mask_with_zero && margin == 0;
      if (margin < 1e-5 && !tied_by_mask) continue;
      ++compared;
      ASSERT_EQ(c.experts, expected.experts) << round;
      for (size_t j = 0; j < c.weights.size(); ++j) {
        ASSERT_NEAR(c.weights[j], expected.weights[j], 1e-6 * (1 + expected.weights[j]));
      }
    }
  }
  EXPECT_GT(compared, 700);
}

TEST(Router, RowsOfABatchOnAnyThreads) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 1);
  RouterSpec r = v3_router();
  constexpr int64_t kRows = 301, kStride = 11;
  std::vector<float> logits(kRows * kStride);
  for (float& v : logits) v = normal(random);
  for (const Isa isa : supported_isas()) {
    for (const int threads : {1, 3}) {
      platform::ThreadPool pool(threads);
      CpuOpsOptions options;
      options.isa = isa;
      auto ops = make_cpu_ops(options, pool);
      ASSERT_TRUE(ops.ok());
      std::vector<int32_t> experts(kRows * 3);
      std::vector<float> weights(kRows * 3);
      (*ops)->route({{logits.data(), kRows, 8, kStride}, &r, experts.data(), weights.data()});
      for (size_t t = 0; t < kRows; ++t) {
        const std::vector<float> row(logits.begin() + static_cast<int64_t>(t) * kStride,
                                     logits.begin() + static_cast<int64_t>(t) * kStride + 8);
        const Choice one = isa == Isa::kRef ? route_one<double>(r, row) : route_one<float>(r, row);
        ASSERT_TRUE(std::equal(one.experts.begin(), one.experts.end(), experts.begin() + 3 * t));
        ASSERT_TRUE(std::equal(one.weights.begin(), one.weights.end(), weights.begin() + 3 * t));
      }
    }
  }
}

TEST(Router, RefusesNumbersThatDoNotFit) {
  const auto refuse = [](auto change, const char* why) {
    RouterSpec r = v3_router();
    change(r);
    const Status status = check_router(r);
    ASSERT_FALSE(status.ok()) << why;
    EXPECT_NE(status.error().message.find(why), std::string::npos) << status.error().message;
  };
  refuse([](RouterSpec& r) { r.experts = 0; }, "0 experts");
  refuse([](RouterSpec& r) { r.top_k = 0; }, "choose 0");
  refuse([](RouterSpec& r) { r.top_k = 9; }, "choose 9 experts of 8");
  refuse([](RouterSpec& r) { r.groups = 3; }, "3 equal groups");
  refuse([](RouterSpec& r) { r.groups = 0; }, "0 equal groups");
  refuse([](RouterSpec& r) { r.groups_kept = 5; }, "keep 5 of 4");
  refuse([](RouterSpec& r) { r.top_k = 5; }, "groups kept have 4");
}

}  // namespace
}  // namespace capstan::kernels
