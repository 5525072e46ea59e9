// linear(): every format and instruction set against float64 on the dequantised weights, batch
// invariance, epilogues, stacked parts and refused shapes.
#include <gtest/gtest.h>

#include "kernels/linear_fixture.h"

namespace capstan::kernels {
namespace {

using linear_test::Matrix;
using linear_test::Packed;

std::vector<Isa> panel_isas() {
  std::vector<Isa> isas;
  for (Isa isa : linear_test::runnable_isas()) {
    if (isa != Isa::kRef) isas.push_back(isa);
  }
  return isas;
}

class LinearFormat : public ::testing::TestWithParam<DType> {};

// Smallest k, k of the small model, a partial super-block for formats that allow one; n below, at
// and beside multiples of the panel.
TEST_P(LinearFormat, MatchesFloat64) {
  const DType dtype = GetParam();
  const int block = dtype_info(dtype).block_elems;
  std::vector<int64_t> ks = {std::max(block, 1) * 1L, 256, 768};
  if (block <= 32) ks.push_back(576);
  if (block == 1) ks.insert(ks.end(), {7, 33, 515});
  for (int64_t k : ks) {
    for (int64_t n : {1, 16, 37}) {
      const Matrix w(dtype, n, k, 7);
      for (int64_t m : {1, 2, 3, 4, 5, 8, 11, 70}) {
        const std::vector<double> want = linear_test::reference({&w, 1}, m);
        for (Isa isa : linear_test::runnable_isas()) {
          SCOPED_TRACE(testing::Message()
                       << isa_label(isa) << " k " << k << " n " << n << " m " << m);
          const Packed packed(isa, {&w, 1});
          linear_test::expect_close(dtype, isa, linear_test::run(packed, m, 2), want, k);
        }
      }
    }
  }
}

// Apart from rounding its activations, a kernel is as exact as float32 sums are.
TEST_P(LinearFormat, MatchesFloat64OnRoundedActivations) {
  const DType dtype = GetParam();
  for (Isa isa : panel_isas()) {
    const XForm form = linear_test::kernels_of(isa).x_form(dtype, true);
    for (int64_t k : {256, 1024}) {
      const Matrix w(dtype, 37, k, 7);
      const Packed packed(isa, {&w, 1});
      for (int64_t m : {1, 2, 3, 7, 12, 70}) {
        EXPECT_LT(linear_test::relmax(linear_test::run(packed, m, 2),
                                      linear_test::reference({&w, 1}, m, {}, form)),
                  1e-5)
            << isa_label(isa) << " k " << k << " m " << m;
      }
    }
  }
}

TEST_P(LinearFormat, RowsDoNotDependOnTheirCompany) {
  const DType dtype = GetParam();
  const int64_t k = 768, n = 83;
  const Matrix w(dtype, n, k, 11);
  for (Isa isa : panel_isas()) {
    const Packed packed(isa, {&w, 1});
    constexpr int64_t kRows = 300;  // more than one chunk
    const std::vector<float> all = linear_test::run(packed, kRows, 2);
    for (int threads : {1, 2, 3}) {
      for (int64_t m : {1, 2, 3, 4, 5, 6, 7, 17, 31, 64, 300}) {
        // Rows from a shifted window, so that a row also changes its place in the tile.
        for (int64_t first : {int64_t{0}, kRows - m}) {
          const std::vector<float> some = linear_test::run(packed, m, threads, first);
          ASSERT_EQ(0,
                    std::memcmp(some.data(), all.data() + first * n, some.size() * sizeof(float)))
              << isa_label(isa) << " threads " << threads << " rows " << first << "+" << m;
        }
      }
    }
  }
}

TEST_P(LinearFormat, FloatActivationsAreExact) {
  const DType dtype = GetParam();
  for (Isa isa : panel_isas()) {
    for (int64_t m : {1, 6}) {
      const Matrix w(dtype, 35, 768, 3);
      const Packed packed(isa, {&w, 1}, {}, false, PackOptions{.quantise_activations = false});
      const auto y = linear_test::run(packed, m, 2);
      EXPECT_LT(linear_test::relmax(y, linear_test::reference({&w, 1}, m)), 1e-5)
          << isa_label(isa) << " m " << m;
    }
  }
}

TEST_P(LinearFormat, HoldsNoMoreThanTheFile) {
  const Matrix w(GetParam(), 64, 1024, 5);
  for (Isa isa : panel_isas()) {
    const Packed packed(isa, {&w, 1});
    EXPECT_EQ(packed.weight->bytes(), w.view.bytes());
    EXPECT_EQ(packed.weight->n(), 64);
    EXPECT_EQ(packed.weight->k(), 1024);
  }
}

INSTANTIATE_TEST_SUITE_P(All, LinearFormat, ::testing::ValuesIn(linear_test::kFormats),
                         [](const auto& info) { return std::string(dtype_info(info.param).name); });

TEST(Linear, EpiloguesAndBiases) {
  for (Isa isa : linear_test::runnable_isas()) {
    for (DType dtype : {DType::kF32, DType::kQ8_0, DType::kQ4_K}) {
      const int64_t k = 256, n = 40;
      const std::vector<Matrix> w = {Matrix(dtype, n, k, 1), Matrix(dtype, n, k, 2)};
      const std::vector<Matrix> bias = {Matrix(DType::kF32, n, 0, 3),
                                        Matrix(DType::kBF16, n, 0, 4)};
      const Packed pair(isa, w, bias, true);
      const Packed stacked(isa, w, bias, false);
      for (int64_t m : {1, 5}) {
        SCOPED_TRACE(testing::Message()
                     << isa_label(isa) << " " << dtype_info(dtype).name << " m " << m);
        const auto want = linear_test::reference(w, m, bias);
        const auto store = linear_test::run(stacked, m, 2);
        linear_test::expect_close(dtype, isa, store, want, k);
        // The pair's layout must not matter to a plain store.
        linear_test::expect_close(dtype, isa, linear_test::run(pair, m, 2), want, k);

        const auto add = linear_test::run(stacked, m, 2, 0, Epilogue::kAdd);
        for (size_t i = 0; i < add.size(); ++i)
          ASSERT_NEAR(add[i], linear_test::kAddBase + store[i], 1e-6) << i;

        const auto swiglu = linear_test::run(pair, m, 2, 0, Epilogue::kSwiGlu);
        ASSERT_EQ(swiglu.size(), static_cast<size_t>(m * n));
        for (int64_t r = 0; r < m; ++r) {
          for (int64_t c = 0; c < n; ++c) {
            const double g = store[static_cast<size_t>(r * 2 * n + c)];
            const double u = store[static_cast<size_t>(r * 2 * n + n + c)];
            ASSERT_NEAR(swiglu[static_cast<size_t>(r * n + c)], g / (1 + std::exp(-g)) * u,
                        2e-6 * (1 + std::fabs(g * u)));
          }
        }
      }
    }
  }
}

// The largest quants times activations of one size: the largest sums that a kernel ever adds up.
TEST(Linear, DenseActivationsAndLargestQuants) {
  const int64_t k = 512, n = 16;
  for (DType dtype : {DType::kQ4_0, DType::kQ8_0, DType::kQ4_K, DType::kQ6_K}) {
    const Matrix w(dtype, n, k, 1);
    std::vector<double> row_sums(n, 0.0);
    if (dtype == DType::kQ4_K) {
      auto* block = const_cast<std::byte*>(w.view.data);
      for (int64_t b = 0; b < n * k / 256; ++b) std::memset(block + 144 * b + 16, 0xff, 128);
    }
    const std::vector<float> values = w.values();
    for (int64_t i = 0; i < n * k; ++i)
      row_sums[static_cast<size_t>(i / k)] += static_cast<double>(values[static_cast<size_t>(i)]);
    platform::ThreadPool pool(1, false);
    for (Isa isa : linear_test::runnable_isas()) {
      const Packed packed(isa, {&w, 1});
      for (float size : {1.0f, -3.0f}) {
        std::vector<float> x(5 * k, size);
        std::vector<float> y(5 * n);
        linear_test::run_product(
            isa, {{x.data(), 5, k, k}, packed.weight.get(), {y.data(), 5, n, n}, Epilogue::kStore},
            pool);
        for (size_t i = 0; i < y.size(); ++i) {
          const double want = static_cast<double>(size) * row_sums[i % n];
          EXPECT_NEAR(static_cast<double>(y[i]), want, 1e-4 * std::fabs(want) + 1e-3)
              << isa_label(isa) << " " << dtype_info(dtype).name << " row " << i / n;
        }
      }
    }
  }
}

TEST(Linear, SwiGluOfExtremeGates) {
  const int64_t k = 8;
  for (Isa isa : linear_test::runnable_isas()) {
    // Rows that give gate = -200, -90, -1e-3, 0, 1e-3, 90, 200 for x = (1, 0, ...).
    const std::vector<float> gates = {-200, -90, -1e-3f, 0, 1e-3f, 90, 200};
    std::vector<Matrix> w = {Matrix(DType::kF32, 7, k, 1), Matrix(DType::kF32, 7, k, 2)};
    for (size_t i = 0; i < 7; ++i) {
      w[0].set_f32(i * 8, gates[i]);
      w[1].set_f32(i * 8, 2.0f);
    }
    const Packed packed(isa, w, {}, true);
    std::vector<float> x(8, 0.0f), y(7);
    x[0] = 1;
    platform::ThreadPool pool(1, false);
    linear_test::run_product(
        isa, {{x.data(), 1, k, k}, packed.weight.get(), {y.data(), 1, 7, 7}, Epilogue::kSwiGlu},
        pool);
    for (size_t i = 0; i < 7; ++i) {
      const double g = gates[i];
      EXPECT_NEAR(y[i], 2 * g / (1 + std::exp(-g)), 1e-6 * (1 + std::fabs(g)))
          << isa_label(isa) << " gate " << g;
    }
  }
}

// A Q4_K file has some matrices in Q6_K; q, k and v are stacked.
TEST(Linear, StacksPartsOfDifferentTypes) {
  const int64_t k = 512;
  const std::vector<Matrix> w = {Matrix(DType::kQ4_K, 100, k, 1), Matrix(DType::kQ8_0, 20, k, 2),
                                 Matrix(DType::kQ6_K, 33, k, 3), Matrix(DType::kF16, 3, k, 4),
                                 Matrix(DType::kQ4_K, 16, k, 5)};
  const std::vector<Matrix> bias = {Matrix(DType::kF32, 100, 0, 6), Matrix(), Matrix(),
                                    Matrix(DType::kF16, 3, 0, 7), Matrix()};
  for (Isa isa : linear_test::runnable_isas()) {
    const Packed packed(isa, w, bias);
    const auto one = linear_test::run(packed, 9, 1);
    for (int threads : {1, 2, 3, 5}) {
      const auto y = linear_test::run(packed, 9, threads);
      linear_test::expect_close(DType::kQ4_K, isa, y, linear_test::reference(w, 9, bias), k);
      EXPECT_EQ(0, std::memcmp(one.data(), y.data(), y.size() * sizeof(float)));
    }
  }
}

TEST(Linear, PairsPartsOfDifferentTypes) {
  const std::vector<Matrix> w = {Matrix(DType::kQ4_K, 50, 256, 1),
                                 Matrix(DType::kQ6_K, 50, 256, 2)};
  for (Isa isa : linear_test::runnable_isas()) {
    const Packed packed(isa, w, {}, true);
    linear_test::expect_close(DType::kQ4_K, isa, linear_test::run(packed, 7, 2),
                              linear_test::reference(w, 7), 256);
  }
}

// An infinite or NaN activation must be seen in the output of its row, and only there.
TEST(Linear, NonFiniteActivationsStayInTheirRow) {
  for (Isa isa : linear_test::runnable_isas()) {
    for (DType dtype : linear_test::kFormats) {
      const Matrix w(dtype, 16, 256, 9);
      const Packed packed(isa, {&w, 1});
      std::vector<float> x(5 * 256, 0.5f), y(5 * 16), clean(5 * 16);
      platform::ThreadPool pool(1, false);
      const auto go = [&](std::vector<float>& out) {
        linear_test::run_product(
            isa, {{x.data(), 5, 256, 256}, packed.weight.get(), {out.data(), 5, 16, 16}}, pool);
      };
      go(clean);
      x[1 * 256 + 40] = std::numeric_limits<float>::quiet_NaN();
      x[3 * 256 + 200] = std::numeric_limits<float>::infinity();
      go(y);
      for (size_t r = 0; r < 5; ++r) {
        for (size_t c = 0; c < 16; ++c) {
          if (r == 1) {
            EXPECT_TRUE(std::isnan(y[r * 16 + c])) << dtype_info(dtype).name;
          } else if (r == 3) {
            EXPECT_FALSE(std::isfinite(y[r * 16 + c])) << dtype_info(dtype).name;
          } else {
            EXPECT_EQ(y[r * 16 + c], clean[r * 16 + c]) << dtype_info(dtype).name;
          }
        }
      }
    }
  }
}

TEST(Linear, ZeroRowsAndZeroActivations) {
  for (Isa isa : linear_test::runnable_isas()) {
    for (DType dtype : linear_test::kFormats) {
      const Matrix w(dtype, 20, 256, 9);
      const Packed packed(isa, {&w, 1});
      EXPECT_TRUE(linear_test::run(packed, 0, 2).empty());
      std::vector<float> x(256, 0.0f), y(20, 1.0f);
      platform::ThreadPool pool(2, false);
      linear_test::run_product(
          isa, {{x.data(), 1, 256, 256}, packed.weight.get(), {y.data(), 1, 20, 20}}, pool);
      for (float v : y) EXPECT_EQ(v, 0.0f);
    }
  }
}

void expect_refused(const LinearSpec& spec, std::string_view name, std::string_view why) {
  for (Isa isa : linear_test::runnable_isas()) {
    const auto result = pack_linear(isa, spec);
    ASSERT_FALSE(result.ok());
    EXPECT_NE(result.error().message.find(name), std::string::npos) << result.error().message;
    EXPECT_NE(result.error().message.find(why), std::string::npos) << result.error().message;
  }
}

TEST(Linear, RefusesHostileShapes) {
  const std::byte byte{};
  const auto view = [&](DType dtype, std::vector<int64_t> shape) {
    return TensorView{&byte, dtype, std::move(shape), "blk.3.bad"};
  };
  const auto refuse = [&](const std::vector<TensorView>& parts, std::string_view why,
                          const std::vector<TensorView>& biases = {}, bool pair = false) {
    expect_refused({parts, biases, pair}, "blk.3.bad", why);
  };
  refuse({view(DType::kQ4_K, {16, 576})}, "multiple of the format's block of 256");
  refuse({view(DType::kQ8_0, {16, 40})}, "multiple of the format's block of 32");
  refuse({view(DType::kF32, {16})}, "two dimensions");
  refuse({view(DType::kF32, {2, 4, 4})}, "two dimensions");
  refuse({view(DType::kF32, {0, 4})}, "not positive");
  refuse({view(DType::kF32, {4, -4})}, "not positive");
  refuse({view(DType::kF32, {int64_t{1} << 40, int64_t{1} << 40})}, "too large");
  refuse({view(DType::kI32, {4, 4})}, "no CPU kernel");
  refuse({view(DType::kF8E4M3, {4, 4})}, "no block scales");
  refuse({view(DType::kF32, {4, 4}), view(DType::kF32, {4, 8})}, "differs from 4");
  refuse({view(DType::kF32, {4, 4}), view(DType::kF32, {5, 4})}, "one shape", {}, true);
  refuse({view(DType::kF32, {4, 4})}, "one shape", {}, true);
  refuse({view(DType::kF32, {4, 4})}, "expected [4]", {view(DType::kF32, {5})});
  refuse({view(DType::kF32, {4, 4})}, "must be F32, F16 or BF16", {view(DType::kI32, {4})});
}

}  // namespace
}  // namespace capstan::kernels
