// AVX-512 emulated by SIMDe, plus the few instructions that Debian 12's SIMDe 0.7.4 lacks. Included
// by force before the AVX-512 sources, whose intrinsics' names become SIMDe's.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <immintrin.h>
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

namespace capstan::simde_shim {

inline simde__m512 join(__m256 low, __m256 high) {
  simde__m512_private r;
  r.m256[0] = simde__m256_from_private(simde__m256_to_private(low));
  r.m256[1] = simde__m256_from_private(simde__m256_to_private(high));
  return simde__m512_from_private(r);
}
inline __m256 half(simde__m512 x, int i) { return simde__m512_to_private(x).m256[i]; }
inline __m256i half(simde__m512i x, int i) { return simde__m512i_to_private(x).m256i[i]; }
inline simde__m512i join(__m256i low, __m256i high) {
  simde__m512i_private r;
  r.m256i[0] = low;
  r.m256i[1] = high;
  return simde__m512i_from_private(r);
}

inline simde__m512 cvtph_ps(__m256i x) {
  return join(_mm256_cvtph_ps(_mm256_castsi256_si128(x)),
              _mm256_cvtph_ps(_mm256_extracti128_si256(x, 1)));
}
inline __m256i cvtps_ph(simde__m512 x) {
  return _mm256_set_m128i(_mm256_cvtps_ph(half(x, 1), _MM_FROUND_TO_NEAREST_INT),
                          _mm256_cvtps_ph(half(x, 0), _MM_FROUND_TO_NEAREST_INT));
}
inline simde__m512i cvtepu16_epi32(__m256i x) {
  return join(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(x)),
              _mm256_cvtepu16_epi32(_mm256_extracti128_si256(x, 1)));
}
inline __m256i cvtepi32_epi16(simde__m512i x) {
  alignas(64) int32_t from[16];
  alignas(32) int16_t to[16];
  _mm256_store_si256(reinterpret_cast<__m256i*>(from), half(x, 0));
  _mm256_store_si256(reinterpret_cast<__m256i*>(from) + 1, half(x, 1));
  for (int i = 0; i < 16; ++i) to[i] = static_cast<int16_t>(from[i]);
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(to));
}
inline simde__m512i cvtps_epi32(simde__m512 x) {
  return join(_mm256_cvtps_epi32(half(x, 0)), _mm256_cvtps_epi32(half(x, 1)));
}

}  // namespace capstan::simde_shim

#undef _mm512_cvtph_ps
#undef _mm512_cvtps_ph
#undef _mm512_cvtepu16_epi32
#undef _mm512_cvtepi32_epi16
#undef _mm512_cvtps_epi32
#define _mm512_cvtph_ps(x) ::capstan::simde_shim::cvtph_ps(x)
#define _mm512_cvtps_ph(x, rounding) ::capstan::simde_shim::cvtps_ph(x)
#define _mm512_cvtepu16_epi32(x) ::capstan::simde_shim::cvtepu16_epi32(x)
#define _mm512_cvtepi32_epi16(x) ::capstan::simde_shim::cvtepi32_epi16(x)
#define _mm512_cvtps_epi32(x) ::capstan::simde_shim::cvtps_epi32(x)
