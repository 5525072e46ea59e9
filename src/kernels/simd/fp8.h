// F8_E4M3 elements as vectors. A byte seeeemmm becomes the half s0eeeemmm0000000, which is the
// value times 2^-8: one shift, one mask, and the conversion of halves, which is exact for
// subnormals too and knows no flush to zero.
#pragma once

#if !defined(CAPSTAN_SIMDE)
#include <immintrin.h>
#endif

#include <cstddef>

namespace capstan::kernels::simd {

/// 2^-8 times the values of V::kLanes bytes. Both NaN codes decode as 480: for weights, which are
/// checked when packed.
template <class V>
typename V::F load_e4m3_small(const std::byte* p) {
  if constexpr (V::kLanes == 8) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    const __m128i high = _mm_unpacklo_epi8(_mm_setzero_si128(), bytes);
    const __m128i half = _mm_and_si128(_mm_srai_epi16(high, 1), _mm_set1_epi16(-0x4001));
    return _mm256_cvtph_ps(half);
  } else {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m256i high = _mm256_slli_epi16(_mm256_cvtepu8_epi16(bytes), 8);
    const __m256i half = _mm256_and_si256(_mm256_srai_epi16(high, 1), _mm256_set1_epi16(-0x4001));
    return _mm512_cvtph_ps(half);
  }
}

/// The same of sixteen bytes, in two vectors of eight.
inline void load_e4m3_pair(const std::byte* p, __m256* out) {
  const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  // The sign extends into the bit that the mask clears.
  const __m256i half = _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(-0x4001));
  out[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(half));
  out[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(half, 1));
}

/// The values of V::kLanes bytes, NaN codes as NaN: for the cache.
template <class V>
typename V::F load_e4m3(const std::byte* p) {
  if constexpr (V::kLanes == 8) {
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
    const __m128i high = _mm_unpacklo_epi8(_mm_setzero_si128(), bytes);
    __m128i half = _mm_and_si128(_mm_srai_epi16(high, 1), _mm_set1_epi16(-0x4001));
    const __m128i code = _mm_set1_epi16(0x3f80);
    half = _mm_or_si128(half, _mm_srli_epi16(_mm_cmpeq_epi16(_mm_and_si128(half, code), code), 1));
    return V::mul(_mm256_cvtph_ps(half), V::set1(256.0f));
  } else {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    const __m256i high = _mm256_slli_epi16(_mm256_cvtepu8_epi16(bytes), 8);
    __m256i half = _mm256_and_si256(_mm256_srai_epi16(high, 1), _mm256_set1_epi16(-0x4001));
    const __m256i code = _mm256_set1_epi16(0x3f80);
    half = _mm256_or_si256(
        half, _mm256_srli_epi16(_mm256_cmpeq_epi16(_mm256_and_si256(half, code), code), 1));
    return V::mul(_mm512_cvtph_ps(half), V::set1(256.0f));
  }
}

}  // namespace capstan::kernels::simd
