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
inline simde__m512i cvtepu8_epi32(__m128i x) {
  return join(_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128(x, 8)));
}
inline simde__m512i cvtepi8_epi32(__m128i x) {
  return join(_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_srli_si128(x, 8)));
}
inline simde__m512 cvtepi32_ps(simde__m512i x) {
  return join(_mm256_cvtepi32_ps(half(x, 0)), _mm256_cvtepi32_ps(half(x, 1)));
}
inline simde__m512i madd_epi16(simde__m512i a, simde__m512i b) {
  return join(_mm256_madd_epi16(half(a, 0), half(b, 0)), _mm256_madd_epi16(half(a, 1), half(b, 1)));
}
// SIMDe has vpdpbusd, byte by byte; this builds and runs ten times faster.
inline __m256i dpbusd(__m256i sum, __m256i u, __m256i s) {
  const __m256i low8 = _mm256_set1_epi16(255);
  const __m256i even =
      _mm256_madd_epi16(_mm256_and_si256(u, low8), _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8));
  const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(s, 8));
  return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
}
inline simde__m512i dpbusd_epi32(simde__m512i sum, simde__m512i u, simde__m512i s) {
  return join(dpbusd(half(sum, 0), half(u, 0), half(s, 0)),
              dpbusd(half(sum, 1), half(u, 1), half(s, 1)));
}

}  // namespace capstan::simde_shim

#undef _mm512_cvtepu8_epi32
#undef _mm512_cvtepi8_epi32
#undef _mm512_cvtepi32_ps
#undef _mm512_madd_epi16
#undef _mm512_dpbusd_epi32
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
#define _mm512_cvtepu8_epi32(x) ::capstan::simde_shim::cvtepu8_epi32(x)
#define _mm512_cvtepi8_epi32(x) ::capstan::simde_shim::cvtepi8_epi32(x)
#define _mm512_cvtepi32_ps(x) ::capstan::simde_shim::cvtepi32_ps(x)
#define _mm512_madd_epi16(a, b) ::capstan::simde_shim::madd_epi16(a, b)
#define _mm512_dpbusd_epi32(sum, u, s) ::capstan::simde_shim::dpbusd_epi32(sum, u, s)
