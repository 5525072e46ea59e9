// Known values of every type, and the sums that operations must give.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "tensor/dtype.h"

namespace capstan::comm {

/// memcmp() that may be asked about nothing.
inline bool same(const void* a, const void* b, size_t bytes) {
  return bytes == 0 || std::memcmp(a, b, bytes) == 0;
}

inline uint64_t scramble(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

/// A float of 16 significant bits or fewer in a 16-bit type's own bits, and back. Written apart
/// from the code under test: through double arithmetic instead of bits.
inline double from_16(uint16_t bits, int exponent_bits) {
  const int mantissa_bits = 15 - exponent_bits;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
  const double fraction =
      static_cast<double>(bits & ((1 << mantissa_bits) - 1)) / (1 << mantissa_bits);
  const double magnitude =
      exponent == 0 ? std::ldexp(fraction, 1 - bias) : std::ldexp(1 + fraction, exponent - bias);
  return bits & 0x8000 ? -magnitude : magnitude;
}

/// To nearest, ties to even; finite values only; overflow to infinity.
inline uint16_t to_16(double x, int exponent_bits) {
  const int mantissa_bits = 15 - exponent_bits;
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const uint16_t sign = std::signbit(x) ? 0x8000 : 0;
  x = std::abs(x);
  if (x == 0) return sign;
  int exponent = std::max(std::ilogb(x), 1 - bias);
  const double steps = std::nearbyint(std::ldexp(x, mantissa_bits - exponent));  // ties to even
  if (steps == std::ldexp(1.0, mantissa_bits + 1)) ++exponent;
  if (exponent > bias)
    return static_cast<uint16_t>(sign | (((1 << exponent_bits) - 1) << mantissa_bits));
  const double full = std::ldexp(1.0, mantissa_bits);
  if (steps < full) return static_cast<uint16_t>(sign | static_cast<uint16_t>(steps));  // subnormal
  const double mantissa = steps >= 2 * full ? 0 : steps - full;
  return static_cast<uint16_t>(sign | ((exponent + bias) << mantissa_bits) |
                               static_cast<int>(mantissa));
}

inline int exponent_bits(DType t) { return t == DType::kF16 ? 5 : 8; }

/// Element `i` of rank `rank`: signed, of many magnitudes, so that the order of additions shows.
inline void put_value(void* at, DType dtype, int rank, int64_t i) {
  const uint64_t h = scramble(static_cast<uint64_t>(i) * 64 + static_cast<uint64_t>(rank));
  const double x =
      std::ldexp(static_cast<double>(static_cast<int64_t>(h >> 20)) / (int64_t{1} << 43) - 1.0,
                 static_cast<int>(h % 9) - 4);
  switch (dtype) {
    case DType::kF32: {
      const auto v = static_cast<float>(x);
      std::memcpy(at, &v, 4);
      return;
    }
    case DType::kF16:
    case DType::kBF16: {
      const uint16_t v = to_16(x, exponent_bits(dtype));
      std::memcpy(at, &v, 2);
      return;
    }
    case DType::kI32: {
      const auto v = static_cast<int32_t>(h);
      std::memcpy(at, &v, 4);
      return;
    }
    default:
      std::memcpy(at, &h, 8);
  }
}

inline std::vector<std::byte> values(DType dtype, int rank, int64_t count, int64_t first = 0) {
  const size_t width = dtype_bytes(dtype, 1);
  std::vector<std::byte> out(width * static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    put_value(out.data() + width * static_cast<size_t>(i), dtype, rank, first + i);
  }
  return out;
}

/// The sum over `groups` of the sums over their ranks, each in order: what a group of so many nodes
/// must give, to the bit.
inline std::vector<std::byte> sums(DType dtype, const std::vector<std::vector<int>>& groups,
                                   int64_t count, int64_t first = 0) {
  const size_t width = dtype_bytes(dtype, 1);
  std::vector<std::byte> out(width * static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    float f = 0;
    uint64_t u = 0;
    for (size_t g = 0; g < groups.size(); ++g) {
      float part = 0;
      for (size_t r = 0; r < groups[g].size(); ++r) {
        std::byte raw[8] = {};
        put_value(raw, dtype, groups[g][r], first + i);
        float x = 0;
        if (dtype == DType::kF32) {
          std::memcpy(&x, raw, 4);
        } else if (dtype == DType::kF16 || dtype == DType::kBF16) {
          uint16_t bits;
          std::memcpy(&bits, raw, 2);
          x = static_cast<float>(from_16(bits, exponent_bits(dtype)));
        } else {
          uint64_t v = 0;
          std::memcpy(&v, raw, width);
          u += v;
        }
        part = r == 0 ? x : part + x;
      }
      f = g == 0 ? part : f + part;
    }
    std::byte* at = out.data() + width * static_cast<size_t>(i);
    if (dtype == DType::kF32) {
      std::memcpy(at, &f, 4);
    } else if (dtype == DType::kF16 || dtype == DType::kBF16) {
      const uint16_t bits = to_16(f, exponent_bits(dtype));
      std::memcpy(at, &bits, 2);
    } else {
      std::memcpy(at, &u, width);
    }
  }
  return out;
}

}  // namespace capstan::comm
