// linear() on F8_E4M3 weights with block scales.
#include <gtest/gtest.h>

#include "kernels/avx2/linear_fp8.h"
#include "kernels/fp8_fixture.h"
#include "platform/cpu.h"

namespace capstan::kernels {
namespace {

using fp8_test::as_read;
using fp8_test::Fp8Matrix;
using fp8_test::pack;

std::vector<float> product(Isa isa, const LinearWeight& weight, const std::vector<float>& x,
                           int64_t m, int threads, Epilogue epilogue = Epilogue::kStore) {
  const int64_t n = epilogue == Epilogue::kSwiGlu ? weight.n() / 2 : weight.n();
  std::vector<float> y(static_cast<size_t>(m * n), linear_test::kAddBase);
  platform::ThreadPool pool(threads, false);
  linear_test::run_product(isa,
                           {{const_cast<float*>(x.data()), m, weight.k(), weight.k()},
                            &weight,
                            {y.data(), m, n, n},
                            epilogue},
                           pool);
  return y;
}

// Whole and partial blocks of k and n, odd k, and the number of columns of kv_a.
TEST(LinearFp8, MatchesFloat64) {
  for (Isa isa : linear_test::runnable_isas()) {
    for (int64_t k : {1, 33, 128, 129, 256, 640, 1151}) {
      for (int64_t n : {1, 37, 160}) {
        const Fp8Matrix w(n, k, static_cast<unsigned>(k + n));
        const auto packed = pack(isa, {&w, 1}), exact = pack(isa, {&w, 1}, false, true);
        for (int64_t m : {1, 2, 3, 4, 5, 6, 7, 12, 13, 16, 29}) {
          SCOPED_TRACE(testing::Message()
                       << isa_label(isa) << " k " << k << " n " << n << " m " << m);
          const auto x = linear_test::activations(0, m, k);
          linear_test::expect_close(DType::kF32, isa, product(isa, *packed, x, m, 2),
                                    fp8_test::reference({&w, 1}, as_read(isa, x), m), k);
          linear_test::expect_close(DType::kF32, isa, product(isa, *exact, x, m, 2),
                                    fp8_test::reference({&w, 1}, x, m), k);
        }
      }
    }
  }
}

// The kernels run with denormals flushed; subnormal codes must not be.
TEST(LinearFp8, EveryCodeCountsExactly) {
  for (Isa isa : linear_test::runnable_isas()) {
    Fp8Matrix w(256, 16, 1);
    for (size_t i = 0; i < 256 * 16; ++i) w.set(i, 0);
    for (size_t c = 0; c < 256; ++c) w.set(c * 16 + c % 16, (c & 0x7f) == 0x7f ? 0 : c);
    w.scales.assign(w.scales.size(), 1.0f);
    const auto packed = pack(isa, {&w, 1}), exact = pack(isa, {&w, 1}, false, true);
    for (int64_t m = 1; m <= 17; ++m) {
      const std::vector<float> x(static_cast<size_t>(m * 16), 1.0f);
      const auto y = product(isa, *packed, x, m, 1);
      EXPECT_EQ(y, product(isa, *exact, x, m, 1));
      for (size_t r = 0; r < static_cast<size_t>(m); ++r) {
        for (size_t c = 0; c < 256; ++c) {
          if ((c & 0x7f) == 0x7f) continue;
          EXPECT_EQ(y[r * 256 + c], quant::e4m3_to_float(static_cast<uint8_t>(c)))
              << isa_label(isa) << " " << c;
        }
      }
    }
  }
}

// AVX2 widens codes in two ways, and timing chooses; the bits must not tell which.
TEST(LinearFp8, Avx2sTwoWaysGiveTheSameBits) {
  if (!platform::isa_support().avx2) GTEST_SKIP() << "no AVX2";
  const auto table = [](PanelKernel (*panel)(DType, bool)) {
    LinearKernels k = avx2_linear_kernels();
    k.panel = panel;
    return k;
  };
  const LinearKernels shifted =
      table([](DType, bool) -> PanelKernel { return avx2::fp8_panel_shifted; });
  const LinearKernels halves =
      table([](DType, bool) -> PanelKernel { return avx2::fp8_panel_halves; });
  for (int64_t k : {1, 129, 640}) {
    const Fp8Matrix w(160, k, static_cast<unsigned>(k));
    const auto packed = pack(Isa::kAvx2, {&w, 1});
    for (int64_t m = 1; m <= 20; ++m) {
      const auto x = linear_test::activations(0, m, k);
      const auto y = linear_test::product(halves, *packed, x, m);
      ASSERT_EQ(y, linear_test::product(shifted, *packed, x, m)) << "k " << k << " rows " << m;
      linear_test::expect_close(DType::kF32, Isa::kAvx2, y, fp8_test::reference({&w, 1}, x, m), k);
    }
  }
}

// Scales of 1e-6 with activations of 1e-4: products lie at 1e-13 and must keep their accuracy.
TEST(LinearFp8, SmallActivationsAndScales) {
  for (Isa isa : linear_test::runnable_isas()) {
    Fp8Matrix w(32, 512, 3);
    for (float& s : w.scales) s *= 1e-4f;
    const auto packed = pack(isa, {&w, 1});
    for (int64_t m : {1, 6}) {
      auto x = linear_test::activations(0, m, 512);
      for (float& v : x) v *= 1e-4f;
      EXPECT_LT(linear_test::relmax(product(isa, *packed, x, m, 1),
                                    fp8_test::reference({&w, 1}, as_read(isa, x), m)),
                1e-5)
          << isa_label(isa);
    }
  }
}

TEST(LinearFp8, RowsDoNotDependOnTheirCompany) {
  const int64_t k = 640 + 40, n = 83;
  const Fp8Matrix w(n, k, 11);
  for (Isa isa : linear_test::runnable_isas()) {
    if (isa == Isa::kRef) continue;
    for (const bool exact : {false, true}) {
      const auto packed = pack(isa, {&w, 1}, false, exact);
      constexpr int64_t kRows = 270;  // more than one chunk
      const auto x = linear_test::activations(0, kRows, k);
      const auto all = product(isa, *packed, x, kRows, 2);
      for (int threads : {1, 3}) {
        for (int64_t m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 64}) {
          for (int64_t first : {int64_t{0}, kRows - m}) {
            const std::vector<float> part(x.begin() + first * k, x.begin() + (first + m) * k);
            const auto some = product(isa, *packed, part, m, threads);
            ASSERT_EQ(0,
                      std::memcmp(some.data(), all.data() + first * n, some.size() * sizeof(float)))
                << isa_label(isa) << " threads " << threads << " rows " << first << "+" << m;
          }
        }
      }
    }
  }
}

TEST(LinearFp8, EpiloguesAndOtherTypesBeside) {
  const int64_t k = 256, n = 144;
  const std::vector<Fp8Matrix> w = {Fp8Matrix(n, k, 1), Fp8Matrix(n, k, 2)};
  const linear_test::Matrix bf16(DType::kBF16, 20, k, 3);
  for (Isa isa : linear_test::runnable_isas()) {
    const auto x = linear_test::activations(0, 5, k);
    const auto stacked = pack(isa, w), pair = pack(isa, w, true);
    const auto store = product(isa, *stacked, x, 5, 2);
    linear_test::expect_close(DType::kF32, isa, store, fp8_test::reference(w, as_read(isa, x), 5),
                              k);
    const auto add = product(isa, *stacked, x, 5, 2, Epilogue::kAdd);
    for (size_t i = 0; i < add.size(); ++i)
      ASSERT_NEAR(add[i], linear_test::kAddBase + store[i], 1e-6);
    const auto swiglu = product(isa, *pair, x, 5, 2, Epilogue::kSwiGlu);
    for (size_t r = 0; r < 5; ++r) {
      for (size_t c = 0; c < 144; ++c) {
        const double g = store[r * 288 + c], u = store[r * 288 + 144 + c];
        ASSERT_NEAR(swiglu[r * 144 + c], g / (1 + std::exp(-g)) * u, 2e-6 * (1 + std::fabs(g * u)));
      }
    }
    // FP8 and BF16 rows in one weight.
    const std::vector<TensorView> parts = {w[0].view(), bf16.view};
    const std::vector<TensorView> scales = {w[0].scale_view(), {}};
    const auto mixed =
        pack_linear(isa, {.parts = parts, .biases = {}, .swiglu_pair = false, .scales = scales});
    ASSERT_TRUE(mixed.ok()) << mixed.error().message;
    const auto y = product(isa, **mixed, x, 5, 2);
    for (size_t r = 0; r < 5; ++r) {
      for (size_t c = 0; c < 144; ++c) ASSERT_EQ(y[r * 164 + c], store[r * 288 + c]);
    }
  }
}

TEST(LinearFp8, HoldsLittleMoreThanTheFile) {
  const Fp8Matrix w(256, 2048, 5);
  for (Isa isa : linear_test::runnable_isas()) {
    const auto packed = pack(isa, {&w, 1});
    EXPECT_GE(packed->bytes(), w.codes.size());
    EXPECT_LE(packed->bytes(), w.codes.size() * 1005 / 1000);
  }
}

TEST(LinearFp8, ScalesMayBeBf16) {
  Fp8Matrix w(130, 200, 5);
  for (float& s : w.scales) s = quant::bfloat16_to_float(quant::float_to_bfloat16(s));
  std::vector<std::byte> halves(w.scales.size() * 2);
  ASSERT_TRUE(quant::quantize_row(DType::kBF16, w.scales.data(), halves.data(),
                                  static_cast<int64_t>(w.scales.size()))
                  .ok());
  const TensorView view = w.view();
  TensorView scale = w.scale_view();
  scale.dtype = DType::kBF16;
  scale.data = halves.data();
  for (Isa isa : linear_test::runnable_isas()) {
    const auto packed = pack_linear(
        isa, {.parts = {&view, 1}, .biases = {}, .swiglu_pair = false, .scales = {&scale, 1}});
    ASSERT_TRUE(packed.ok()) << packed.error().message;
    const auto x = linear_test::activations(0, 3, 200);
    EXPECT_LT(linear_test::relmax(product(isa, **packed, x, 3, 1),
                                  fp8_test::reference({&w, 1}, as_read(isa, x), 3)),
              1e-5);
  }
}

// The option that trades exactness for speed: off unless asked for, and within the tolerance.
TEST(LinearFp8, AsInt8) {
  const int64_t k = 672, n = 200;
  const Fp8Matrix w(n, k, 5), odd(n, 40, 6);
  for (Isa isa : linear_test::runnable_isas()) {
    if (isa == Isa::kRef) continue;
    const auto pack_as = [&](const Fp8Matrix& m, bool as_int8, bool quantise) {
      const TensorView view = m.view(), scale = m.scale_view();
      auto packed = pack_linear(
          isa, {.parts = {&view, 1}, .biases = {}, .swiglu_pair = false, .scales = {&scale, 1}},
          {.quantise_activations = quantise, .fp8_as_int8 = as_int8});
      EXPECT_TRUE(packed.ok());
      return std::move(*packed);
    };
    const auto int8 = pack_as(w, true, true);
    EXPECT_EQ(int8->bytes(), dtype_bytes(DType::kQ8_0, 208 * k));
    for (int64_t m : {1, 6, 33}) {
      const auto x = linear_test::activations(0, m, k);
      const auto want = fp8_test::reference({&w, 1}, x, m);
      const auto y = product(isa, *int8, x, m, 2);
      EXPECT_LT(linear_test::cosdiff(y, want), 2e-4) << isa_label(isa);
      EXPECT_GT(linear_test::relmax(y, want), 1e-5) << "it should have been rounded";
      EXPECT_LT(linear_test::relmax(product(isa, *pack_as(w, true, false), x, m, 2), want), 1e-5);
      // Rows that do not divide into blocks of 32 stay as they are.
      const auto x_odd = linear_test::activations(0, m, 40);
      EXPECT_LT(linear_test::relmax(product(isa, *pack_as(odd, true, true), x_odd, m, 2),
                                    fp8_test::reference({&odd, 1}, as_read(isa, x_odd), m)),
                1e-5);
    }
  }
}

TEST(LinearFp8, RefusesWhatIsWrongWithScalesAndCodes) {
  const auto refuse = [](const Fp8Matrix& w, const std::vector<TensorView>& scales,
                         const std::vector<const char*>& texts) {
    const TensorView view = w.view();
    for (Isa isa : linear_test::runnable_isas()) {
      const auto packed = pack_linear(
          isa, {.parts = {&view, 1}, .biases = {}, .swiglu_pair = false, .scales = scales});
      ASSERT_FALSE(packed.ok());
      for (const char* text : texts)
        EXPECT_NE(packed.error().message.find(text), std::string::npos) << packed.error().message;
    }
  };
  const Fp8Matrix good(160, 300, 1);
  refuse(good, {}, {"layer.weight", "no block scales", "layer.weight_scale_inv"});
  refuse(good, {TensorView{}}, {"no block scales"});
  TensorView floor = good.scale_view();
  floor.shape = {1, 2};
  refuse(good, {floor}, {"[1, 2]", "expected [2, 3]"});
  TensorView flat = good.scale_view();
  flat.shape = {6};
  refuse(good, {flat}, {"[6]", "expected [2, 3]"});
  TensorView type = good.scale_view();
  type.dtype = DType::kU8;
  refuse(good, {type}, {"must be F32 or BF16"});
  Fp8Matrix inf(160, 300, 1);
  inf.scales[4] = std::numeric_limits<float>::infinity();
  refuse(inf, {inf.scale_view()}, {"[1, 1] is not finite"});
  Fp8Matrix nan(160, 300, 1);
  nan.set(2 * 300 + 17, 0xFF);
  refuse(nan, {nan.scale_view()}, {"layer.weight", "[2, 17] is a NaN"});
}

}  // namespace
}  // namespace capstan::kernels
