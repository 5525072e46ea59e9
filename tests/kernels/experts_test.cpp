// experts(): every weight format against float64, rows alone and in company, experts that nobody
// chose.
#include "kernels/experts.h"

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/fp8_fixture.h"

namespace capstan::kernels {
namespace {

using fp8_test::Fp8Matrix;
using linear_test::Matrix;

/// What a layer of experts has: weights of one type, kept so that a reference can be computed.
struct Layer {
  Layer(Isa isa_, DType dtype, int experts, int64_t k_, int64_t width_, int64_t h_,
        bool float_x = false)
      : isa(isa_), k(k_), width(width_), h(h_) {
    for (int e = 0; e < experts; ++e) {
      const auto seed = static_cast<unsigned>(10 * e);
      if (dtype == DType::kF8E4M3) {
        const std::vector<Fp8Matrix> pair = {Fp8Matrix(width, k, seed),
                                             Fp8Matrix(width, k, seed + 1)};
        const Fp8Matrix out(h, width, seed + 2);
        gate_up.push_back(fp8_test::pack(isa, pair, true, float_x));
        down.push_back(fp8_test::pack(isa, {&out, 1}, false, float_x));
        gates.push_back(values(pair[0]));
        ups.push_back(values(pair[1]));
        downs.push_back(values(out));
      } else {
        const std::vector<Matrix> pair = {Matrix(dtype, width, k, seed),
                                          Matrix(dtype, width, k, seed + 1)};
        const Matrix out(dtype, h, width, seed + 2);
        const PackOptions options{.quantise_activations = !float_x};
        gate_up.push_back(std::move(linear_test::Packed(isa, pair, {}, true, options).weight));
        down.push_back(std::move(linear_test::Packed(isa, {&out, 1}, {}, false, options).weight));
        gates.push_back(pair[0].values());
        ups.push_back(pair[1].values());
        downs.push_back(out.values());
      }
      gate_up_list.push_back(gate_up.back().get());
      down_list.push_back(down.back().get());
    }
  }

  static std::vector<float> values(const Fp8Matrix& m) {
    std::vector<float> out(m.codes.size());
    quant::dequantize_fp8_blocks(m.codes.data(), m.scales.data(), 0, m.n, m.k, out.data());
    return out;
  }

  Isa isa;
  int64_t k, width, h;
  std::vector<std::unique_ptr<LinearWeight>> gate_up, down;
  std::vector<const LinearWeight*> gate_up_list, down_list;
  std::vector<std::vector<float>> gates, ups, downs;
};

struct Routing {
  int top_k;
  std::vector<int32_t> experts;
  std::vector<float> weights;
};

/// Distinct experts per token in random order, weights about 1/top_k. `skew` sends all first
/// choices to one expert.
Routing random_routing(int tokens, int experts, int top_k, unsigned seed, bool skew = false) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> weight(0.1f, 1.9f);
  Routing out{top_k, {}, {}};
  std::vector<int32_t> all(static_cast<size_t>(experts));
  std::iota(all.begin(), all.end(), 0);
  for (int t = 0; t < tokens; ++t) {
    std::shuffle(all.begin(), all.end(), random);
    if (skew) std::iter_swap(all.begin(), std::find(all.begin(), all.end(), experts / 2));
    for (int j = 0; j < top_k; ++j) {
      out.experts.push_back(all[static_cast<size_t>(j)]);
      out.weights.push_back(weight(random) / static_cast<float>(top_k));
    }
  }
  return out;
}

constexpr float kBase = 0.125f;

/// y of tokens [first, first + count), strides wider than rows; y starts at kBase.
std::vector<float> run(const Layer& layer, const std::vector<float>& x, const Routing& routing,
                       int64_t first, int64_t count, int threads, ExpertsPlan& plan) {
  const int64_t x_stride = layer.k + 3, y_stride = layer.h + 5;
  constexpr float kGuard = -12345;
  std::vector<float> padded(static_cast<size_t>(count * x_stride), NAN),
      y(static_cast<size_t>(count * y_stride), kGuard);
  for (int64_t t = 0; t < count; ++t) {
    std::copy_n(x.begin() + (first + t) * layer.k, layer.k, padded.begin() + t * x_stride);
    std::fill_n(y.begin() + t * y_stride, layer.h, kBase);
  }
  ExpertsArgs args;
  args.x = {padded.data(), count, layer.k, x_stride};
  args.experts = routing.experts.data() + first * routing.top_k;
  args.weights = routing.weights.data() + first * routing.top_k;
  args.top_k = routing.top_k;
  args.gate_up = layer.gate_up_list;
  args.down = layer.down_list;
  args.y = {y.data(), count, layer.h, y_stride};
  platform::ThreadPool pool(threads, false);
  if (layer.isa == Isa::kRef) {
    experts_ref(args);
  } else if (layer.isa == Isa::kAvx512 && !__builtin_cpu_supports("avx512vnni")) {
    plan.run(simde_avx512_linear_kernels(), args, pool);
  } else {
    plan.run(linear_kernels(layer.isa), args, pool);
  }
  std::vector<float> out;
  for (int64_t t = 0; t < count; ++t) {
    out.insert(out.end(), y.begin() + t * y_stride, y.begin() + t * y_stride + layer.h);
    for (int64_t i = layer.h; i < y_stride; ++i)
      EXPECT_EQ(y[static_cast<size_t>(t * y_stride + i)], kGuard) << "wrote beyond the row";
  }
  return out;
}

std::vector<float> run(const Layer& layer, const std::vector<float>& x, const Routing& routing,
                       int64_t tokens, int threads) {
  ExpertsPlan plan;
  return run(layer, x, routing, 0, tokens, threads, plan);
}

std::vector<double> reference(const Layer& layer, const std::vector<float>& x,
                              const Routing& routing, int64_t tokens) {
  std::vector<double> y;
  const auto dot = [](const std::vector<float>& w, int64_t row, auto first, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; ++i)
      sum +=
          static_cast<double>(w[static_cast<size_t>(row * n + i)]) * static_cast<double>(first[i]);
    return sum;
  };
  for (int64_t t = 0; t < tokens; ++t) {
    std::vector<double> row(static_cast<size_t>(layer.h), kBase);
    for (int j = 0; j < routing.top_k; ++j) {
      const auto use = static_cast<size_t>(t * routing.top_k + j);
      const auto e = static_cast<size_t>(routing.experts[use]);
      std::vector<double> hidden;
      for (int64_t i = 0; i < layer.width; ++i) {
        const double g = dot(layer.gates[e], i, x.begin() + t * layer.k, layer.k);
        const double u = dot(layer.ups[e], i, x.begin() + t * layer.k, layer.k);
        hidden.push_back(g / (1 + std::exp(-g)) * u);
      }
      for (int64_t i = 0; i < layer.h; ++i) {
        row[static_cast<size_t>(i)] += static_cast<double>(routing.weights[use]) *
                                       dot(layer.downs[e], i, hidden.begin(), layer.width);
      }
    }
    y.insert(y.end(), row.begin(), row.end());
  }
  return y;
}

class Experts : public ::testing::TestWithParam<DType> {};

TEST_P(Experts, MatchFloat64) {
  const DType dtype = GetParam();
  const int64_t k = 256, width = dtype == DType::kF8E4M3 ? 144 : 256, h = 200;
  for (Isa isa : linear_test::runnable_isas()) {
    const Layer layer(isa, dtype, 7, k, width, h);
    for (int tokens : {1, 2, 9, 40}) {
      for (const bool skew : {false, true}) {
        SCOPED_TRACE(testing::Message() << isa_label(isa) << " tokens " << tokens);
        const Routing routing = random_routing(tokens, 7, 3, static_cast<unsigned>(tokens), skew);
        const auto x = linear_test::activations(0, tokens, k);
        const auto y = run(layer, x, routing, tokens, 2);
        const auto expected = reference(layer, x, routing, tokens);
        if (isa == Isa::kRef || !is_block_quantised(dtype)) {
          // BF16 activations: the limits of one product, though rounded twice on the way.
          const bool bf16 =
              isa != Isa::kRef && linear_test::kernels_of(isa).x_form(dtype, true) == kXBf16;
          EXPECT_LT(linear_test::relmax(y, expected), bf16 ? 1e-2 : 1e-5);
          EXPECT_LT(linear_test::cosdiff(y, expected), 1e-5);
        } else {
          // Activations are rounded twice on the way, so twice what one product may err.
          EXPECT_LT(linear_test::cosdiff(y, expected), dtype == DType::kQ8_0 ? 2e-4 : 2e-3);
        }
      }
    }
  }
}

TEST_P(Experts, FloatActivationsAreExact) {
  const DType dtype = GetParam();
  for (Isa isa : linear_test::runnable_isas()) {
    const Layer layer(isa, dtype, 4, 256, 256, 40, true);
    const Routing routing = random_routing(9, 4, 2, 3);
    const auto x = linear_test::activations(0, 9, 256);
    EXPECT_LT(linear_test::relmax(run(layer, x, routing, 9, 2), reference(layer, x, routing, 9)),
              1e-5)
        << isa_label(isa);
  }
}

TEST_P(Experts, RowsDoNotDependOnTheirCompany) {
  const DType dtype = GetParam();
  const int64_t k = 256, width = 256, h = 72;
  constexpr int kTokens = 150;
  for (Isa isa : linear_test::runnable_isas()) {
    if (isa == Isa::kRef) continue;
    const Layer layer(isa, dtype, 5, k, width, h);
    const Routing routing = random_routing(kTokens, 5, 2, 3);
    const auto x = linear_test::activations(0, kTokens, k);
    const auto all = run(layer, x, routing, kTokens, 1);
    ExpertsPlan plan;  // one for all: what it keeps between calls must not matter
    for (int threads : {1, 2, 3}) {
      for (int64_t count : {1, 2, 3, 5, 8, 64, kTokens}) {
        for (int64_t first : {int64_t{0}, kTokens - count}) {
          const auto some = run(layer, x, routing, first, count, threads, plan);
          ASSERT_EQ(0,
                    std::memcmp(some.data(), all.data() + first * h, some.size() * sizeof(float)))
              << isa_label(isa) << " threads " << threads << " rows " << first << "+" << count;
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Experts,
                         ::testing::Values(DType::kF32, DType::kBF16, DType::kF8E4M3, DType::kQ8_0,
                                           DType::kQ4_0, DType::kQ4_K, DType::kQ6_K),
                         [](const auto& info) { return std::string(dtype_info(info.param).name); });

TEST(ExpertsPlan, OrderOfChoiceDoesNotMatter) {
  for (Isa isa : linear_test::runnable_isas()) {
    const Layer layer(isa, DType::kF8E4M3, 6, 128, 128, 64);
    Routing routing = random_routing(20, 6, 4, 5);
    const auto x = linear_test::activations(0, 20, 128);
    const auto y = run(layer, x, routing, 20, 2);
    for (size_t t = 0; t < 20; ++t) {
      std::reverse(routing.experts.begin() + 4 * t, routing.experts.begin() + 4 * t + 4);
      std::reverse(routing.weights.begin() + 4 * t, routing.weights.begin() + 4 * t + 4);
    }
    EXPECT_EQ(y, run(layer, x, routing, 20, 2));
  }
}

TEST(ExpertsPlan, ManyThreadsAndOneExpert) {
  const Layer layer(Isa::kAvx2, DType::kBF16, 3, 64, 40, 24);
  const Routing routing = random_routing(30, 3, 1, 5, true);  // all tokens to one expert
  const auto x = linear_test::activations(0, 30, 64);
  const auto one = run(layer, x, routing, 30, 1);
  for (int threads : {2, 4, 7}) EXPECT_EQ(one, run(layer, x, routing, 30, threads));
  EXPECT_LT(linear_test::relmax(one, reference(layer, x, routing, 30)), 1e-5);
}

// More hidden rows than one round holds (2^24 floats).
TEST(ExpertsPlan, LongBatchesGoInRounds) {
  const int64_t k = 16, width = 4096, h = 16;
  const Layer layer(Isa::kAvx2, DType::kBF16, 4, k, width, h);
  constexpr int kTokens = 2500;
  const Routing routing = random_routing(kTokens, 4, 2, 5);
  const auto x = linear_test::activations(0, kTokens, k);
  const auto y = run(layer, x, routing, kTokens, 2);
  ExpertsPlan plan;
  for (int64_t first : {0, 2040, 2048, 2490}) {
    const auto some = run(layer, x, routing, first, 10, 1, plan);
    EXPECT_TRUE(std::equal(some.begin(), some.end(), y.begin() + first * h)) << first;
  }
}

TEST(ExpertsPlan, ExpertsNotHeldAreLeftOut) {
  for (Isa isa : linear_test::runnable_isas()) {
    Layer layer(isa, DType::kF8E4M3, 4, 128, 64, 48);
    Routing routing = random_routing(12, 4, 3, 9);
    const auto x = linear_test::activations(0, 12, 128);
    Routing held = routing;
    for (size_t i = 0; i < held.experts.size(); ++i) {
      if (held.experts[i] == 2) {
        held.weights[i] = 0;
        routing.experts[i] = -1;
      }
    }
    const auto expected = run(layer, x, held, 12, 2);
    EXPECT_EQ(expected, run(layer, x, routing, 12, 2)) << "-1 is no expert";
    layer.gate_up_list[2] = layer.down_list[2] = nullptr;
    EXPECT_EQ(expected, run(layer, x, held, 12, 2)) << "null is another rank's";
    for (auto& w : layer.gate_up_list) w = nullptr;
    const auto nothing = run(layer, x, held, 12, 2);
    EXPECT_TRUE(std::all_of(nothing.begin(), nothing.end(), [](float v) { return v == kBase; }));
  }
}

TEST(ExpertsPlan, NonFiniteActivationsStayInTheirRow) {
  for (Isa isa : linear_test::runnable_isas()) {
    for (DType dtype : {DType::kF8E4M3, DType::kQ8_0, DType::kQ4_K}) {
      const Layer layer(isa, dtype, 4, 256, 256, 16);
      const Routing routing = random_routing(9, 4, 2, 2);
      auto x = linear_test::activations(0, 9, 256);
      const auto clean = run(layer, x, routing, 9, 2);
      x[4 * 256 + 17] = NAN;
      const auto y = run(layer, x, routing, 9, 2);
      for (size_t i = 0; i < y.size(); ++i) {
        if (i / 16 == 4) {
          EXPECT_TRUE(std::isnan(y[i]));
        } else {
          EXPECT_EQ(y[i], clean[i]);
        }
      }
    }
  }
}

TEST(ExpertsPlan, EmptyBatch) {
  for (Isa isa : linear_test::runnable_isas()) {
    const Layer layer(isa, DType::kBF16, 2, 32, 32, 16);
    EXPECT_TRUE(run(layer, {}, {1, {}, {}}, 0, 2).empty());
  }
}

// Weights of experts that no token chose lie on pages that must not be touched.
TEST(ExpertsPlan, ExpertsNobodyChoseAreNotRead) {
  for (Isa isa : linear_test::runnable_isas()) {
    if (isa == Isa::kRef) continue;
    Layer layer(isa, DType::kF8E4M3, 3, 128, 64, 48);
    Routing routing = random_routing(5, 3, 1, 9);
    for (int32_t& e : routing.experts) e = e == 1 ? 2 : e;
    const auto x = linear_test::activations(0, 5, 128);
    const auto expected = run(layer, x, routing, 5, 2);
    const auto forbid = [](const LinearWeight* w, int protection) {
      const auto& buffer = static_cast<const PanelWeight*>(w)->buffer;
      const auto page = reinterpret_cast<uintptr_t>(buffer.data()) & ~uintptr_t{4095};
      const uintptr_t end =
          (reinterpret_cast<uintptr_t>(buffer.data()) + buffer.bytes() + 4095) & ~uintptr_t{4095};
      ASSERT_EQ(0, mprotect(reinterpret_cast<void*>(page), end - page, protection));
    };
    for (const LinearWeight* w : {layer.gate_up_list[1], layer.down_list[1]}) forbid(w, PROT_NONE);
    EXPECT_EQ(expected, run(layer, x, routing, 5, 2));
    for (const LinearWeight* w : {layer.gate_up_list[1], layer.down_list[1]})
      forbid(w, PROT_READ | PROT_WRITE);
  }
}

}  // namespace
}  // namespace capstan::kernels
