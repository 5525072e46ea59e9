// Sums of parts: every version against arithmetic in double, to the bit.
#include "comm/reduce.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>

#include "comm/shared_copy.h"
#include "comm/values.h"
#include "platform/cpu.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace capstan::comm {
namespace {

std::vector<internal::AddParts> versions() {
  std::vector<internal::AddParts> all = {internal::add_parts_plain()};
  if (platform::isa_support().avx2 && internal::add_parts_avx2() != nullptr) {
    all.push_back(internal::add_parts_avx2());
  }
  return all;
}

TEST(AddParts, AllTypesCountsAndPlaces) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kI32, DType::kI64}) {
    const size_t width = dtype_bytes(dtype, 1);
    for (const int ranks : {1, 2, 3, 8}) {
      for (const int64_t count : {0, 1, 7, 8, 31, 32, 33, 257}) {
        std::vector<int> order(ranks);
        std::vector<std::vector<std::byte>> parts;
        for (int r = 0; r < ranks; ++r) {
          order[r] = r;
          parts.push_back(values(dtype, r, count + 1));
        }
        const auto expected = sums(dtype, {order}, count, 1);
        for (const auto add : versions()) {
          for (int place = -1; place < ranks; ++place) {  // the result over any of the parts
            auto copies = parts;
            std::vector<std::byte> own((count + 1) * width);
            std::vector<const void*> pointers;
            for (auto& part : copies) pointers.push_back(part.data() + width);  // unaligned
            std::byte* out = (place < 0 ? own : copies[place]).data() + width;
            add(pointers.data(), ranks, dtype, out, dtype, count);
            EXPECT_TRUE(same(out, expected.data(), expected.size()))
                << dtype_info(dtype).name << " x " << count << ", " << ranks << " parts";
          }
        }
      }
    }
  }
}

TEST(AddParts, EverySixteenBitPatternGoesThroughUnchanged) {
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    std::vector<uint16_t> in(65536);
    for (size_t i = 0; i < in.size(); ++i) in[i] = static_cast<uint16_t>(i);
    for (const auto add : versions()) {
      std::vector<uint16_t> out(in.size());
      std::vector<float> wide(in.size());
      const void* part = in.data();
      add(&part, 1, dtype, out.data(), dtype, 65536);
      add(&part, 1, dtype, wide.data(), DType::kF32, 65536);
      for (size_t i = 0; i < in.size(); ++i) {
        const int bits = 15 - exponent_bits(dtype);
        const bool special =
            ((i >> bits) & ((1u << exponent_bits(dtype)) - 1)) == (1u << exponent_bits(dtype)) - 1;
        const bool nan = special && (i & ((1u << bits) - 1)) != 0;
        if (nan) {
          EXPECT_EQ(out[i], i | (1u << (bits - 1)));  // made quiet
          EXPECT_TRUE(std::isnan(wide[i]));
        } else {
          EXPECT_EQ(out[i], i);
          if (!special) {
            EXPECT_EQ(wide[i], from_16(in[i], exponent_bits(dtype)));
          }
        }
      }
    }
  }
}

TEST(AddParts, RoundsOnceToNearestEven) {
  for (const DType dtype : {DType::kF16, DType::kBF16}) {
    std::vector<float> in;
    for (uint64_t i = 0; i < 200000; ++i) {
      const auto bits = static_cast<uint32_t>(scramble(i));
      const float x = std::bit_cast<float>(bits);
      if (std::isfinite(x)) in.push_back(x);
      // Around ties and the ends of the range of F16.
      in.push_back(static_cast<float>(std::ldexp(2049.0 + static_cast<double>(i % 4096), -18)));
      in.push_back(static_cast<float>(std::ldexp(static_cast<double>(i % 100), -26)));
      in.push_back(65472.0f + static_cast<float>(i % 64));
    }
    const auto count = static_cast<int64_t>(in.size());
    for (const auto add : versions()) {
      std::vector<uint16_t> out(in.size());
      const void* part = in.data();
      add(&part, 1, DType::kF32, out.data(), dtype, count);
      for (size_t i = 0; i < in.size(); ++i) {
        ASSERT_EQ(out[i], to_16(in[i], exponent_bits(dtype))) << in[i];
      }
    }
  }
}

#if defined(__x86_64__)
TEST(AddParts, DoesNotDependOnTheThreadsFloatingPointMode) {
  const std::vector<float> a(37, 1e-39f);
  const std::vector<float> b(37, 2e-39f);
  const void* parts[] = {a.data(), b.data()};
  std::vector<float> plain(37), flushed(37);
  add_parts(parts, 2, DType::kF32, plain.data(), DType::kF32, 37);
  const unsigned before = _mm_getcsr();
  _mm_setcsr(before | 0x8040);  // FTZ and DAZ, as compute threads have them
  add_parts(parts, 2, DType::kF32, flushed.data(), DType::kF32, 37);
  EXPECT_EQ(_mm_getcsr() & 0x8040, 0x8040u);
  _mm_setcsr(before);
  EXPECT_TRUE(same(plain.data(), flushed.data(), 37 * 4));
  EXPECT_GT(plain[0], 0);
}
#endif

TEST(CopyOut, AllSizesAndPlaces) {
  const auto source = values(DType::kI64, 3, 4096);
  for (const size_t bytes : {size_t{0}, size_t{1}, size_t{8191}, size_t{8192}, size_t{8193},
                             size_t{20001}, size_t{30000}}) {
    for (const size_t to : {0, 1, 63, 64}) {
      for (const size_t from : {0, 5, 64}) {
        std::vector<std::byte> target(source.size() + 128, std::byte{0xab});
        copy_out(target.data() + to, source.data() + from, bytes);
        ASSERT_TRUE(same(target.data() + to, source.data() + from, bytes));
        for (size_t i = 0; i < to; ++i) ASSERT_EQ(target[i], std::byte{0xab});
        for (size_t i = to + bytes; i < target.size(); ++i) ASSERT_EQ(target[i], std::byte{0xab});
      }
    }
  }
}

}  // namespace
}  // namespace capstan::comm
