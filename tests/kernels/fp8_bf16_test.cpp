// F8_E4M3 weights times BF16 activations: the kernel that CPUs with vdpbf16ps may choose, whether
// or not this one does.
#include <gtest/gtest.h>

#include <bit>

#include "kernels/avx512bf16/linear_bf16.h"
#include "kernels/dot_choice.h"
#include "kernels/fp8_fixture.h"
#include "kernels/prepared_rows.h"
#include "platform/cpu.h"

namespace capstan::kernels {
namespace {

using fp8_test::Fp8Matrix;

/// A table that multiplies FP8 by BF16; null where it can neither run nor be emulated.
const LinearKernels* bf16_kernels() {
  const platform::IsaSupport& cpu = platform::isa_support();
  if (cpu.avx2 && !cpu.avx512_vnni) return &simde_avx512_linear_kernels();
  if (!cpu.avx512_bf16) return nullptr;
  static const LinearKernels kernels = [] {
    LinearKernels k = avx512_linear_kernels();
    k.panel = [](DType, bool) -> PanelKernel { return avx512bf16::fp8_panel; };
    k.x_form = [](DType, bool) { return kXBf16; };
    return k;
  }();
  return &kernels;
}

class LinearFp8Bf16 : public ::testing::Test {
 protected:
  void SetUp() override {
    kernels_ = bf16_kernels();
    if (kernels_ == nullptr) GTEST_SKIP() << "no BF16 dot product";
  }

  std::vector<float> product(const LinearWeight& weight, const std::vector<float>& x, int64_t m,
                             int threads = 1) const {
    return linear_test::product(*kernels_, weight, x, m, threads);
  }

  const LinearKernels* kernels_ = nullptr;
};

// All of an E4M3 code's values are BF16 numbers; subnormal ones must not be flushed.
TEST_F(LinearFp8Bf16, EveryCodeAtEveryPlaceOfAStep) {
  for (int64_t k : {1, 2, 3, 4, 5, 6, 7, 8}) {
    Fp8Matrix w(256, k, 1);
    w.scales.assign(w.scales.size(), 1.0f);
    for (int64_t place = 0; place < k; ++place) {
      for (size_t i = 0; i < w.codes.size(); ++i) w.set(i, 0);
      for (size_t c = 0; c < 256; ++c)
        w.set(c * static_cast<size_t>(k) + static_cast<size_t>(place), (c & 0x7f) == 0x7f ? 0 : c);
      const auto packed = fp8_test::pack(Isa::kAvx512, {&w, 1});
      const int64_t m = 1 + place;
      const auto y = product(*packed, std::vector<float>(static_cast<size_t>(m * k), 1.0f), m);
      for (size_t i = 0; i < y.size(); ++i) {
        const size_t c = i % 256;
        if ((c & 0x7f) == 0x7f) continue;
        ASSERT_EQ(y[i], quant::e4m3_to_float(static_cast<uint8_t>(c))) << "code " << c;
      }
    }
  }
}

// Exact but for the rounding of activations; and that within what BF16 products may differ.
TEST_F(LinearFp8Bf16, MatchesFloat64) {
  for (int64_t k : {1, 33, 127, 128, 129, 130, 131, 640, 1151}) {
    for (int64_t n : {1, 37, 160}) {
      const Fp8Matrix w(n, k, static_cast<unsigned>(k + n));
      const auto packed = fp8_test::pack(Isa::kAvx512, {&w, 1});
      for (int64_t m : {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 25, 29}) {
        SCOPED_TRACE(testing::Message() << "k " << k << " n " << n << " m " << m);
        const auto x = linear_test::activations(0, m, k);
        const auto y = product(*packed, x, m, 2);
        linear_test::expect_close(DType::kF32, Isa::kAvx512, y,
                                  fp8_test::reference({&w, 1}, linear_test::rounded(x, kXBf16), m),
                                  k);
        if (n * m < 16 || k < 64) continue;
        const auto unrounded = fp8_test::reference({&w, 1}, x, m);
        EXPECT_LT(linear_test::cosdiff(y, unrounded), 1e-5);
        EXPECT_LT(linear_test::relmax(y, unrounded), 1e-2);
        EXPECT_GT(linear_test::relmax(y, unrounded), 1e-5) << "it should have been rounded";
      }
    }
  }
}

TEST_F(LinearFp8Bf16, RowsDoNotDependOnTheirCompany) {
  const int64_t k = 300, n = 40;
  const Fp8Matrix w(n, k, 11);
  const auto packed = fp8_test::pack(Isa::kAvx512, {&w, 1});
  const auto x = linear_test::activations(0, 40, k);
  const auto all = product(*packed, x, 40);
  for (int64_t m = 1; m <= 17; ++m) {
    for (int64_t first : {int64_t{0}, int64_t{3}, 40 - m}) {
      const std::vector<float> part(x.begin() + first * k, x.begin() + (first + m) * k);
      const auto some = product(*packed, part, m, 2);
      ASSERT_EQ(0, std::memcmp(some.data(), all.data() + first * n, some.size() * sizeof(float)))
          << "rows " << first << "+" << m;
    }
  }
}

TEST_F(LinearFp8Bf16, NonFiniteActivationsStayInTheirRow) {
  const int64_t k = 250, n = 32;
  const Fp8Matrix w(n, k, 9);
  const auto packed = fp8_test::pack(Isa::kAvx512, {&w, 1});
  auto x = linear_test::activations(0, 14, k);
  const auto clean = product(*packed, x, 14);
  x[2 * k + 249] = std::numeric_limits<float>::quiet_NaN();
  x[9 * k + 100] = std::numeric_limits<float>::infinity();
  const auto y = product(*packed, x, 14);
  for (size_t i = 0; i < y.size(); ++i) {
    const size_t r = i / static_cast<size_t>(n);
    if (r == 2) {
      EXPECT_TRUE(std::isnan(y[i]));
    } else if (r == 9) {
      EXPECT_FALSE(std::isfinite(y[i]));
    } else {
      EXPECT_EQ(y[i], clean[i]);
    }
  }
}

// Records as kXBf16 describes them, of rows as far apart as their stride.
TEST_F(LinearFp8Bf16, RoundsActivationsToNearestEven) {
  std::mt19937 random(5);
  for (int64_t k : {1, 16, 127, 128, 300}) {
    for (int rows = 1; rows <= kTileRows; ++rows) {
      const int64_t stride = k + 5, blocks = (k + 127) / 128;
      std::vector<float> x(static_cast<size_t>(rows * stride));
      for (float& v : x) v = std::bit_cast<float>(static_cast<uint32_t>(random()));
      const float special[] = {0.0f, -0.0f, INFINITY, -INFINITY, NAN, -NAN, 3.39e38f, 1e-40f};
      for (size_t i = 0; i < std::min(x.size(), std::size(special)); ++i) x[i] = special[i];
      x[0] = std::bit_cast<float>(uint32_t{0x7f800001});  // a NaN whose high half alone is none
      std::vector<uint16_t> out(static_cast<size_t>(rows * blocks * 128), 0xabcd);
      kernels_->round_bf16(x.data(), stride, k, rows, reinterpret_cast<std::byte*>(out.data()));
      for (int r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < blocks * 128; ++i) {
          const uint16_t got = out[static_cast<size_t>((i / 128 * rows + r) * 128 + i % 128)];
          const float v = i < k ? x[static_cast<size_t>(r * stride + i)] : 0.0f;
          if (std::isnan(v)) {
            ASSERT_TRUE(std::isnan(quant::bfloat16_to_float(got)));
          } else {
            ASSERT_EQ(got, quant::float_to_bfloat16(v)) << "row " << r << " element " << i;
          }
        }
      }
    }
  }
}

TEST(Bf16Choice, IsOnlyMadeWhereTheCpuCanAndActivationsMayBeRounded) {
  if (!platform::isa_support().avx512_bf16) {
    EXPECT_FALSE(bf16_dot_pays());
  }
  if (!platform::isa_support().avx512_vnni) return;
  const LinearKernels& k = avx512_linear_kernels();
  EXPECT_EQ(k.x_form(DType::kF8E4M3, true), bf16_dot_pays() ? kXBf16 : kXFloat);
  EXPECT_EQ(k.x_form(DType::kF8E4M3, false), kXFloat);
  EXPECT_EQ(k.x_form(DType::kBF16, true), kXFloat);
}

}  // namespace
}  // namespace capstan::kernels
