#include "quant/fp8.h"

#include <gtest/gtest.h>
#include <immintrin.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "quant/codecs.h"
#include "quant/panel.h"

namespace capstan::quant {
namespace {

std::vector<char> read_golden(const std::string& name) {
  std::ifstream in(std::string(CAPSTAN_TESTDATA) + "/quant/" + name, std::ios::binary);
  EXPECT_TRUE(in.good()) << name;
  return {std::istreambuf_iterator<char>(in), {}};
}

template <class T>
std::vector<T> take(const char*& p, size_t n) {
  std::vector<T> out(n);
  std::memcpy(out.data(), p, n * sizeof(T));
  p += n * sizeof(T);
  return out;
}

TEST(Fp8, EncodesBitExactly) {
  const std::vector<char> bytes = read_golden("encode_F8_E4M3.bin");
  const char* p = bytes.data();
  const uint32_t n = take<uint32_t>(p, 1)[0];
  const std::vector<float> values = take<float>(p, n);
  const std::vector<uint8_t> expected = take<uint8_t>(p, n);
  ASSERT_EQ(p, bytes.data() + bytes.size());
  for (const unsigned flush : {0u, 0x8040u}) {  // also as compute threads run
    const unsigned csr = _mm_getcsr();
    _mm_setcsr(csr | flush);
    std::vector<std::byte> actual(n);
    ASSERT_TRUE(quantize_row(DType::kF8E4M3, values.data(), actual.data(), n).ok());
    _mm_setcsr(csr);
    for (uint32_t i = 0; i < n; ++i)
      ASSERT_EQ(static_cast<int>(actual[i]), expected[i]) << "encoding " << values[i];
  }
}

TEST(Fp8, DecodesAllCodesBitExactly) {
  const std::vector<char> bytes = read_golden("decode_F8_E4M3.bin");
  const char* p = bytes.data();
  ASSERT_EQ(take<uint32_t>(p, 1)[0], 256u);
  const std::vector<uint8_t> codes = take<uint8_t>(p, 256);
  const std::vector<float> expected = take<float>(p, 256);
  for (size_t i = 0; i < 256; ++i) {
    const float value = e4m3_to_float(codes[i]);
    if (std::isnan(expected[i])) {
      EXPECT_TRUE(std::isnan(value));
      EXPECT_EQ(float_to_e4m3(value), codes[i]);  // the sign of a NaN survives
    } else {
      ASSERT_EQ(std::bit_cast<uint32_t>(value), std::bit_cast<uint32_t>(expected[i])) << i;
      ASSERT_EQ(float_to_e4m3(value), codes[i]);
    }
  }
}

TEST(Fp8, DequantisesPartialBlocksBitExactly) {
  const std::vector<char> bytes = read_golden("blocks_F8_E4M3.bin");
  const char* p = bytes.data();
  const std::vector<uint32_t> shape = take<uint32_t>(p, 2);
  const int64_t rows = shape[0], k = shape[1];
  const size_t n = shape[0] * size_t{shape[1]};
  const std::vector<std::byte> codes = take<std::byte>(p, n);
  const std::vector<float> scales =
      take<float>(p, static_cast<size_t>(fp8_blocks(rows) * fp8_blocks(k)));
  const std::vector<float> expected = take<float>(p, n);
  ASSERT_EQ(p, bytes.data() + bytes.size());
  std::vector<float> all(n);
  dequantize_fp8_blocks(codes.data(), scales.data(), 0, rows, k, all.data());
  EXPECT_EQ(0, std::memcmp(all.data(), expected.data(), n * sizeof(float)));
  // Rows from the middle of a block on find their scales.
  std::vector<float> some(static_cast<size_t>(30 * k));
  dequantize_fp8_blocks(codes.data() + 110 * k, scales.data(), 110, 30, k, some.data());
  EXPECT_EQ(0, std::memcmp(some.data(), expected.data() + 110 * k, some.size() * sizeof(float)));
}

TEST(Fp8, SpecifiedActivationExample) {
  std::vector<float> x(130, 0.0f);
  x[0] = 3.5f;
  x[1] = 1.0f;
  x[2] = -0.3f;
  x[3] = 38 * 0.0078125f;  // a tie between 36 and 40
  x[129] = -1e-6f;
  std::vector<std::byte> codes(x.size());
  std::vector<float> scales(2);
  quantize_fp8_slices(x.data(), 130, 1e-4f, codes.data(), scales.data());
  EXPECT_EQ(scales[0], 0.0078125f);
  EXPECT_EQ(static_cast<int>(codes[0]), 0x7E);
  EXPECT_EQ(static_cast<int>(codes[1]), 0x70);
  EXPECT_EQ(static_cast<int>(codes[2]), 0xE2);
  EXPECT_EQ(e4m3_to_float(0xE2) * scales[0], -0.3125f);
  EXPECT_EQ(e4m3_to_float(static_cast<uint8_t>(codes[3])), 40.0f);
  EXPECT_EQ(static_cast<int>(codes[4]), 0);
  EXPECT_EQ(scales[1], 1e-4f / 448);  // the floor holds
  quantize_fp8_slices(x.data(), 130, 1e-10f, codes.data(), scales.data());
  EXPECT_EQ(scales[1], 1e-6f / 448);
  EXPECT_EQ(static_cast<int>(codes[129]), 0xFE);
}

// Random tensors: the relative error of one value is at most half a step of three bits.
TEST(Fp8, RandomSlicesRoundTripWithinHalfAStep) {
  std::mt19937 random(8);
  std::normal_distribution<float> normal(0, 1);
  for (const int64_t k : {1, 127, 128, 129, 700}) {
    std::vector<float> x(static_cast<size_t>(k));
    for (float& v : x) v = std::exp(3 * normal(random)) * normal(random);
    std::vector<std::byte> codes(x.size());
    std::vector<float> scales(static_cast<size_t>(fp8_blocks(k)));
    quantize_fp8_slices(x.data(), k, 1e-10f, codes.data(), scales.data());
    for (size_t i = 0; i < x.size(); ++i) {
      const float scale = scales[i / kFp8Block];
      const float back = e4m3_to_float(static_cast<uint8_t>(codes[i])) * scale;
      EXPECT_LE(std::fabs(back - x[i]),
                std::max(std::fabs(x[i]) * 0.0626f, scale * 0.000977f));  // 2^-10: subnormals
    }
  }
}

TEST(Fp8, FindsNanCodes) {
  std::vector<std::byte> codes(100);
  for (size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<std::byte>(i % 2 ? 0x7E : 0xFE);
  EXPECT_EQ(find_fp8_nan(codes.data(), 100), -1);
  for (const size_t at : {size_t{0}, size_t{7}, size_t{8}, size_t{50}, size_t{97}, size_t{99}}) {
    for (const int nan : {0x7F, 0xFF}) {
      std::vector<std::byte> some = codes;
      some[at] = static_cast<std::byte>(nan);
      EXPECT_EQ(find_fp8_nan(some.data(), 100), static_cast<int64_t>(at));
      EXPECT_EQ(find_fp8_nan(some.data(), static_cast<int64_t>(at)), -1);
    }
  }
}

TEST(Fp8, PanelsHoldEveryCode) {
  std::mt19937 random(9);
  for (const int64_t k : {1, 2, 127, 130, 256, 515}) {
    for (const int columns : {1, 9, 16}) {
      std::vector<std::byte> rows(static_cast<size_t>(columns * k));
      for (std::byte& b : rows) b = static_cast<std::byte>(random());
      const size_t bytes = panel_bytes(DType::kF8E4M3, k);
      EXPECT_EQ(bytes % 32, 0u);
      EXPECT_EQ(fp8_panel_header(k) % 64, 0u);
      std::vector<std::byte> panel(bytes, std::byte{0xAA});
      pack_panel(DType::kF8E4M3, rows.data(), static_cast<size_t>(k), columns, k, panel.data());
      std::vector<float> scales(static_cast<size_t>(fp8_blocks(k)), 3.0f);
      pack_fp8_scales(scales.data(), k, panel.data());
      EXPECT_EQ(0, std::memcmp(panel.data(), scales.data(), scales.size() * 4));
      const std::byte* codes = panel.data() + fp8_panel_header(k);
      for (int64_t i = 0; i < (k + 1) / 2 * 2; ++i) {
        for (int c = 0; c < 16; ++c) {
          const std::byte expected =
              i < k && c < columns ? rows[static_cast<size_t>(c * k + i)] : std::byte{0};
          ASSERT_EQ(codes[(i / 2 * 16 + c % 8 * 2 + c / 8) * 2 + i % 2], expected) << i << " " << c;
        }
      }
    }
  }
}

}  // namespace
}  // namespace capstan::quant
