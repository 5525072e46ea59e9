#include "quant/codecs.h"

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

#include "platform/cpu.h"

namespace capstan::quant {
namespace {

/// The value of a binary floating-point pattern by definition: no conversion code involved.
double value_by_definition(uint32_t pattern, int exponent_bits, int mantissa_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const double sign = pattern >> (exponent_bits + mantissa_bits) & 1 ? -1.0 : 1.0;
  const int exponent = static_cast<int>(pattern >> mantissa_bits & ((1u << exponent_bits) - 1));
  const double fraction = std::ldexp(pattern & ((1u << mantissa_bits) - 1), -mantissa_bits);
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias);
  return sign * std::ldexp(1.0 + fraction, exponent - bias);
}

void expect_same_bits(float actual, double expected, uint32_t pattern) {
  const auto want = static_cast<float>(expected);  // exact: every half and bfloat16 is a float
  ASSERT_EQ(std::bit_cast<uint32_t>(actual), std::bit_cast<uint32_t>(want)) << std::hex << pattern;
}

TEST(Half, AllPatternsDecodeByDefinition) {
  for (uint32_t h = 0; h < 0x10000; ++h) {
    const float value = half_to_float(static_cast<uint16_t>(h));
    if ((h & 0x7c00) != 0x7c00) {
      expect_same_bits(value, value_by_definition(h, 5, 10), h);
    } else if ((h & 0x3ff) == 0) {
      EXPECT_EQ(value, (h & 0x8000 ? -1 : 1) * std::numeric_limits<float>::infinity());
    } else {
      EXPECT_TRUE(std::isnan(value)) << h;
    }
  }
}

TEST(Half, DecodingIgnoresDenormalsAreZero) {
  const unsigned csr = _mm_getcsr();
  _mm_setcsr(csr | 0x8040);
  std::vector<uint32_t> bits(0x400);
  for (uint32_t h = 0; h < 0x400; ++h) {
    bits[h] = std::bit_cast<uint32_t>(half_to_float(static_cast<uint16_t>(h)));
  }
  _mm_setcsr(csr);
  for (uint32_t h = 0; h < 0x400; ++h) {
    expect_same_bits(std::bit_cast<float>(bits[h]), value_by_definition(h, 5, 10), h);
  }
}

TEST(Half, EncodingInvertsDecodingAndRoundsToNearestEven) {
  for (uint32_t h = 0; h < 0x7c00; ++h) {
    const auto half = static_cast<uint16_t>(h);
    const float value = half_to_float(half);
    ASSERT_EQ(float_to_half(value), half);
    ASSERT_EQ(float_to_half(-value), half | 0x8000);
    if (h == 0x7bff) break;
    // Between h and h+1: the midpoint is exact in float and goes to the even one.
    const float next = half_to_float(static_cast<uint16_t>(h + 1));
    const float middle = value + (next - value) / 2;
    ASSERT_EQ(float_to_half(middle), h % 2 == 0 ? h : h + 1);
    ASSERT_EQ(float_to_half(std::nextafter(middle, 0.0f)), h);
    ASSERT_EQ(float_to_half(std::nextafter(middle, 1e9f)), h + 1);
  }
  EXPECT_EQ(float_to_half(65519.996f), 0x7bff);
  EXPECT_EQ(float_to_half(65520.0f), 0x7c00);
  EXPECT_EQ(float_to_half(1e30f), 0x7c00);
  EXPECT_EQ(float_to_half(-std::numeric_limits<float>::infinity()), 0xfc00);
  EXPECT_EQ(float_to_half(1e-40f), 0);
  EXPECT_TRUE(std::isnan(half_to_float(float_to_half(std::nanf("")))));
}

TEST(BFloat16, AllPatternsDecodeByDefinitionAndBack) {
  for (uint32_t b = 0; b < 0x10000; ++b) {
    const float value = bfloat16_to_float(static_cast<uint16_t>(b));
    if ((b & 0x7f80) == 0x7f80) {
      EXPECT_EQ(std::isnan(value), (b & 0x7f) != 0);
      EXPECT_EQ(std::isnan(bfloat16_to_float(float_to_bfloat16(value))), (b & 0x7f) != 0);
      continue;
    }
    expect_same_bits(value, value_by_definition(b, 8, 7), b);
    ASSERT_EQ(float_to_bfloat16(value), b);
  }
}

TEST(BFloat16, RoundsToNearestEven) {
  const auto encode = [](uint32_t bits) { return float_to_bfloat16(std::bit_cast<float>(bits)); };
  EXPECT_EQ(encode(0x3f808000), 0x3f80);  // tie, even below
  EXPECT_EQ(encode(0x3f818000), 0x3f82);  // tie, even above
  EXPECT_EQ(encode(0x3f808001), 0x3f81);
  EXPECT_EQ(encode(0x3f807fff), 0x3f80);
  EXPECT_EQ(encode(0x7f7fffff), 0x7f80);  // overflow
  EXPECT_EQ(encode(0x7f800001), 0x7fc0);  // a NaN whose payload lies in the dropped half
}

TEST(E4M3, SpecifiedValues) {
  const std::vector<std::pair<uint8_t, float>> cases = {
      {0x00, 0},    {0x01, 0x1p-9f}, {0x07, 0.013671875f}, {0x08, 0x1p-6f}, {0x30, 0.5f}, {0x38, 1},
      {0x3C, 1.5f}, {0x40, 2},       {0x7E, 448},          {0xC0, -2},      {0xFE, -448}};
  for (const auto& [byte, expected] : cases) {
    const auto src = static_cast<std::byte>(byte);
    float value;
    dequantize_row(DType::kF8E4M3, &src, &value, 1);
    EXPECT_EQ(value, expected) << int{byte};
  }
  for (int b = 0; b < 256; ++b) {
    const auto src = static_cast<std::byte>(b);
    float value;
    dequantize_row(DType::kF8E4M3, &src, &value, 1);
    if ((b & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(value));
    } else {
      expect_same_bits(value, value_by_definition(static_cast<uint32_t>(b), 4, 3), b);
    }
  }
}

TEST(E4M3, EncodesToTheNearestEvenAndSaturates) {
  // Every code, the midpoint to its neighbour, and a float beside the midpoint.
  for (uint32_t code = 0; code < 0x7e; ++code) {
    const float value = value_by_definition(code, 4, 3), next = value_by_definition(code + 1, 4, 3);
    const float middle = 0.5f * (value + next);  // exact
    for (const uint32_t sign : {0u, 0x80u}) {
      const auto encode = [&](float x) { return float_to_e4m3(sign != 0 ? -x : x); };
      EXPECT_EQ(encode(value), code | sign);
      EXPECT_EQ(encode(middle), (code + code % 2) | sign) << middle;
      EXPECT_EQ(encode(std::nextafterf(middle, 0)), code | sign) << middle;
      EXPECT_EQ(encode(std::nextafterf(middle, 1000)), (code + 1) | sign) << middle;
    }
  }
  for (const float big : {448.1f, 463.9f, 464.0f, 1e9f, std::numeric_limits<float>::infinity()}) {
    EXPECT_EQ(float_to_e4m3(big), 0x7e) << big;
    EXPECT_EQ(float_to_e4m3(-big), 0xfe) << big;
  }
  EXPECT_EQ(float_to_e4m3(std::nanf("")) & 0x7f, 0x7f);
  EXPECT_EQ(float_to_e4m3(1e-9f), 0);
  EXPECT_EQ(float_to_e4m3(-1e-9f), 0x80);
  const float values[] = {1.0f, -448.0f, 0x1p-9f};
  std::byte out[3];
  ASSERT_TRUE(quantize_row(DType::kF8E4M3, values, out, 3).ok());
  EXPECT_EQ(out[0], std::byte{0x38});
  EXPECT_EQ(out[1], std::byte{0xfe});
  EXPECT_EQ(out[2], std::byte{0x01});
}

struct Golden {
  uint32_t blocks = 0;
  std::vector<char> bytes;  // after the count
};

Golden read_golden(const std::string& name) {
  std::ifstream in(std::string(CAPSTAN_TESTDATA) + "/quant/" + name, std::ios::binary);
  EXPECT_TRUE(in.good()) << name;
  Golden golden;
  in.read(reinterpret_cast<char*>(&golden.blocks), 4);
  golden.bytes.assign(std::istreambuf_iterator<char>(in), {});
  return golden;
}

class BlockFormat : public ::testing::TestWithParam<DType> {};

TEST_P(BlockFormat, DecodesBitExactly) {
  const DTypeInfo info = dtype_info(GetParam());
  const Golden golden = read_golden("decode_" + std::string(info.name) + ".bin");
  const size_t encoded = golden.blocks * static_cast<size_t>(info.block_bytes);
  const int64_t n = int64_t{golden.blocks} * info.block_elems;
  ASSERT_EQ(golden.bytes.size(), encoded + 4 * static_cast<size_t>(n));
  std::vector<float> expected(n), actual(n);
  std::memcpy(expected.data(), golden.bytes.data() + encoded, 4 * expected.size());
  // At an odd address: files promise no alignment.
  std::vector<std::byte> src(encoded + 1);
  std::memcpy(src.data() + 1, golden.bytes.data(), encoded);
  for (const unsigned flush : {0u, 0x8040u}) {  // also as compute threads run
    const unsigned csr = _mm_getcsr();
    _mm_setcsr(csr | flush);
    dequantize_row(GetParam(), src.data() + 1, actual.data(), n);
    _mm_setcsr(csr);
    for (int64_t i = 0; i < n; ++i) {
      // q = 0 times a negative scale is -0 in both; compare bits.
      ASSERT_EQ(std::bit_cast<uint32_t>(actual[i]), std::bit_cast<uint32_t>(expected[i]))
          << info.name << " element " << i << ": " << actual[i] << " != " << expected[i];
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Gguf, BlockFormat,
                         ::testing::Values(DType::kQ4_0, DType::kQ4_1, DType::kQ5_0, DType::kQ5_1,
                                           DType::kQ8_0, DType::kQ4_K, DType::kQ5_K, DType::kQ6_K),
                         [](const auto& info) { return std::string(dtype_info(info.param).name); });

class Encoder : public ::testing::TestWithParam<DType> {};

TEST_P(Encoder, EncodesBitExactly) {
  const DTypeInfo info = dtype_info(GetParam());
  const Golden golden = read_golden("encode_" + std::string(info.name) + ".bin");
  const int64_t n = int64_t{golden.blocks} * info.block_elems;
  const size_t encoded = golden.blocks * static_cast<size_t>(info.block_bytes);
  ASSERT_EQ(golden.bytes.size(), 4 * static_cast<size_t>(n) + encoded);
  std::vector<float> values(n);
  std::memcpy(values.data(), golden.bytes.data(), 4 * values.size());
  std::vector<std::byte> actual(encoded);
  ASSERT_TRUE(quantize_row(GetParam(), values.data(), actual.data(), n).ok());
  const auto* expected = reinterpret_cast<const std::byte*>(golden.bytes.data()) + 4 * n;
  for (size_t i = 0; i < encoded; ++i) {
    ASSERT_EQ(static_cast<int>(actual[i]), static_cast<int>(expected[i]))
        << info.name << " block " << i / info.block_bytes << " byte " << i % info.block_bytes;
  }
}

INSTANTIATE_TEST_SUITE_P(Gguf, Encoder, ::testing::Values(DType::kQ8_0, DType::kQ4_0, DType::kQ4_1),
                         [](const auto& info) { return std::string(dtype_info(info.param).name); });

TEST(Scales, SpecifiedUnpacking) {
  // d = 1, dmin = 0, all quants 1 (then d = 0, dmin = -1): the decoded values are scales and mins.
  const uint8_t packed[12] = {0x41, 0x82, 0xC3, 0x04, 0x45, 0x86,
                              0xC7, 0x08, 0x19, 0x2A, 0x3B, 0x4C};
  const float scales[8] = {1, 2, 3, 4, 25, 42, 59, 12}, mins[8] = {5, 6, 7, 8, 17, 34, 51, 4};
  std::vector<std::byte> block(144, std::byte{0x11});
  std::memcpy(block.data() + 4, packed, 12);
  const uint16_t header[2][2] = {{0x3C00, 0}, {0, 0xBC00}};
  for (int which = 0; which < 2; ++which) {
    std::memcpy(block.data(), header[which], 4);
    float out[256];
    dequantize_row(DType::kQ4_K, block.data(), out, 256);
    for (int i = 0; i < 256; ++i) {
      ASSERT_EQ(out[i], which == 0 ? scales[i / 32] : mins[i / 32]) << i;
    }
  }
}

TEST(Rows, PlainTypes) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    std::vector<float> values(77), back(77);  // a tail behind the vector loop
    std::mt19937 random(5);
    for (float& v : values) v = bfloat16_to_float(static_cast<uint16_t>(0x3c00 + random() % 0x700));
    std::vector<std::byte> bytes(dtype_bytes(dtype, 77));
    ASSERT_TRUE(quantize_row(dtype, values.data(), bytes.data(), 77).ok());
    dequantize_row(dtype, bytes.data(), back.data(), 77);
    EXPECT_EQ(back, values);
  }
  const int32_t ints[2] = {-3, 70000};
  float out[2];
  dequantize_row(DType::kI32, reinterpret_cast<const std::byte*>(ints), out, 2);
  EXPECT_EQ(out[0], -3);
  EXPECT_EQ(out[1], 70000);
}

TEST(Rows, HalfRowAgreesWithTheScalarOnEveryPattern) {
  std::vector<uint16_t> all(0x10000);
  for (uint32_t h = 0; h < 0x10000; ++h) all[h] = static_cast<uint16_t>(h);
  std::vector<float> out(all.size());
  dequantize_row(DType::kF16, reinterpret_cast<const std::byte*>(all.data()), out.data(),
                 static_cast<int64_t>(all.size()));
  for (uint32_t h = 0; h < 0x10000; ++h) {
    ASSERT_EQ(std::bit_cast<uint32_t>(out[h]),
              std::bit_cast<uint32_t>(half_to_float(static_cast<uint16_t>(h))))
        << std::hex << h;
  }
}

TEST(Rows, EncoderRefusesWhatItCannotDo) {
  float values[256] = {};
  std::byte out[256];
  const Status odd = quantize_row(DType::kQ8_0, values, out, 33);
  ASSERT_FALSE(odd.ok());
  EXPECT_NE(odd.error().message.find("33"), std::string::npos);
  const Status k = quantize_row(DType::kQ4_K, values, out, 256);
  ASSERT_FALSE(k.ok());
  EXPECT_EQ(k.error().code, ErrorCode::kInvalidArgument);
  EXPECT_NE(k.error().message.find("Q4_K"), std::string::npos);
}

TEST(Rows, EncodersTakeNanAndInfinityWithoutUndefinedBehaviour) {
  float values[32] = {std::nanf(""), std::numeric_limits<float>::infinity(), 1.0f};
  std::byte out[64];
  for (const DType dtype : {DType::kQ8_0, DType::kQ4_0, DType::kQ4_1, DType::kF16}) {
    EXPECT_TRUE(quantize_row(dtype, values, out, 32).ok());
  }
}

}  // namespace
}  // namespace capstan::quant
