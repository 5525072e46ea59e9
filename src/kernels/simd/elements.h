// How stored elements become vectors of float32: the types that kernels over the cache and over
// panels are instantiated with, for a vector type V.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/simd/fp8.h"

namespace capstan::kernels::simd {

template <class V>
struct ElementF32 {
  static constexpr int kBytes = 4;
  static constexpr bool kScaled = false;
  static typename V::F load(const std::byte* p) {
    return V::load(reinterpret_cast<const float*>(p));
  }
};
template <class V>
struct ElementF16 {
  static constexpr int kBytes = 2;
  static constexpr bool kScaled = false;
  static typename V::F load(const std::byte* p) {
    return V::load_f16(reinterpret_cast<const uint16_t*>(p));
  }
};
template <class V>
struct ElementBF16 {
  static constexpr int kBytes = 2;
  static constexpr bool kScaled = false;
  static typename V::F load(const std::byte* p) {
    return V::load_bf16(reinterpret_cast<const uint16_t*>(p));
  }
};
template <class V>
struct ElementF8 {
  static constexpr int kBytes = 1;
  static constexpr bool kScaled = true;
  /// 2^-8 of the value; the scale makes up for it.
  static typename V::F load(const std::byte* p) { return load_e4m3_small<V>(p); }
};

}  // namespace capstan::kernels::simd
