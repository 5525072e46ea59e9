// The sum over parts, written once for the widths of vectors that each instruction set has.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "tensor/dtype.h"

namespace capstan::comm::internal {

/// Bits of the 16-bit floats; distinct types, so that templates tell them apart.
struct Half {
  uint16_t bits;
};
struct Brain {
  uint16_t bits;
};

inline float to_float(Brain x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

inline float to_float(Half x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16;
  const uint32_t magnitude = x.bits & 0x7fff;
  if (magnitude >= 0x7c00) {  // infinity; a NaN becomes quiet
    const uint32_t quiet = magnitude > 0x7c00 ? 0x400000 : 0;
    return std::bit_cast<float>(sign | 0x7f800000 | ((magnitude & 0x3ff) << 13) | quiet);
  }
  if (magnitude >= 0x400) {
    return std::bit_cast<float>(sign | ((magnitude << 13) + ((127 - 15) << 23)));
  }
  const float subnormal = static_cast<float>(magnitude) * 0x1p-24f;
  return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(subnormal));
}

inline Brain to_brain(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffff) > 0x7f800000) return {static_cast<uint16_t>((bits >> 16) | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

inline Half to_half(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  const auto sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) {
    return {static_cast<uint16_t>(sign | 0x7e00 | ((magnitude >> 13) & 0x3ff))};
  }
  if (magnitude >= 0x47800000) return {static_cast<uint16_t>(sign | 0x7c00)};  // 65536 and more
  if (magnitude < 0x38800000) {  // below 2^-14: a multiple of 2^-24, as the sum with 0.5 rounds it
    const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
    return {static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000))};
  }
  // The carry of the rounding runs into the exponent and, from 65520 on, to infinity.
  const uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
  return {static_cast<uint16_t>(sign | ((rounded - ((127 - 15) << 23)) >> 13))};
}

template <class T>
inline auto load_scalar(const void* p, int64_t i) {
  T x;
  std::memcpy(&x, static_cast<const std::byte*>(p) + i * static_cast<int64_t>(sizeof(T)),
              sizeof(T));
  if constexpr (std::is_same_v<T, Half> || std::is_same_v<T, Brain>) {
    return to_float(x);
  } else if constexpr (std::is_integral_v<T>) {
    return static_cast<std::make_unsigned_t<T>>(x);  // wraps around without being undefined
  } else {
    return x;
  }
}

template <class T, class Sum>
inline void store_scalar(void* p, int64_t i, Sum sum) {
  T x;
  if constexpr (std::is_same_v<T, Half>) {
    x = to_half(sum);
  } else if constexpr (std::is_same_v<T, Brain>) {
    x = to_brain(sum);
  } else {
    x = static_cast<T>(sum);
  }
  std::memcpy(static_cast<std::byte*>(p) + i * static_cast<int64_t>(sizeof(T)), &x, sizeof(T));
}

template <class In, class Out>
void add_scalar(const void* const* parts, int n, void* out, int64_t from, int64_t to) {
  for (int64_t i = from; i < to; ++i) {
    auto sum = load_scalar<In>(parts[0], i);
    for (int p = 1; p < n; ++p) sum = sum + load_scalar<In>(parts[p], i);
    store_scalar<Out>(out, i, sum);
  }
}

/// Calls F::run<In, Out>() for the types meant.
template <class F>
void dispatch(const void* const* parts, int n, DType in, void* out, DType out_type, int64_t count) {
  switch (in) {
    case DType::kF32:
      if (out_type == DType::kF16) return F::template run<float, Half>(parts, n, out, count);
      if (out_type == DType::kBF16) return F::template run<float, Brain>(parts, n, out, count);
      return F::template run<float, float>(parts, n, out, count);
    case DType::kF16:
      if (out_type == DType::kF32) return F::template run<Half, float>(parts, n, out, count);
      return F::template run<Half, Half>(parts, n, out, count);
    case DType::kBF16:
      if (out_type == DType::kF32) return F::template run<Brain, float>(parts, n, out, count);
      return F::template run<Brain, Brain>(parts, n, out, count);
    case DType::kI32:
      return F::template run<int32_t, int32_t>(parts, n, out, count);
    case DType::kI64:
      return F::template run<int64_t, int64_t>(parts, n, out, count);
    default:
      return;  // can_reduce() was asked before
  }
}

}  // namespace capstan::comm::internal
