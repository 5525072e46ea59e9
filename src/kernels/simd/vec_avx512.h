// Sixteen float lanes on AVX-512 F/BW/VL/DQ. FP32 FMA throughout: the BF16 dot product instruction
// runs at half its rate on the machines measured. Include only from files built with those flags,
// or with CAPSTAN_SIMDE after SIMDe's headers, which emulate the instructions in tests on older
// CPUs.
#pragma once

#if !defined(CAPSTAN_SIMDE)
#include <immintrin.h>
#endif

#include <cstdint>

#include "kernels/simd/exp2.h"

namespace capstan::kernels::simd {

struct VecAvx512 {
  using F = __m512;
  static constexpr int kLanes = 16;
  /// 6*4 accumulators + 6 + 1 of the 32 registers.
  static constexpr int kRows = 6;

  static F zero() { return _mm512_setzero_ps(); }
  static F set1(float x) { return _mm512_set1_ps(x); }
  static F load(const float* p) { return _mm512_loadu_ps(p); }
  static void store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static F add(F a, F b) { return _mm512_add_ps(a, b); }
  static F sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F max(F a, F b) { return _mm512_max_ps(a, b); }
  static F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F fms(F a, F b, F c) { return _mm512_fmsub_ps(a, b, c); }

  /// Keeps a value in its register: the compiler must not load it again.
#if defined(CAPSTAN_SIMDE)  // a vector is a struct there
  static void pin(F&) {}
#else
  static void pin(F& x) { __asm__("" : "+v"(x)); }
#endif

  static F load_f16(const uint16_t* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  }
  static F load_bf16(const uint16_t* p) {
    const __m512i x =
        _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16));
  }
  /// Saturates at +-65504. The limit is the first operand, so that min and max let NaN through.
  static void store_f16(uint16_t* p, F x) {
    x = _mm512_max_ps(set1(-65504.0f), _mm512_min_ps(set1(65504.0f), x));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
  }
  /// Round to nearest even; NaN stays NaN.
  static void store_bf16(uint16_t* p, F x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x400000));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    rounded = _mm512_srli_epi32(_mm512_mask_blend_epi32(nan, rounded, quiet), 16);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(rounded));
  }

  /// Lane i is x[i] where i < n, else other[i].
  static F first(int n, F x, F other) {
    const auto keep = static_cast<__mmask16>(n >= 16 ? 0xffffu : n <= 0 ? 0u : (1u << n) - 1);
    return _mm512_mask_blend_ps(keep, other, x);
  }

  /// Sums of the lanes of four vectors, stored to out[0..3]; every sum is the same tree: per
  /// 128-bit quarter (0+2)+(1+3), then quarters (0+2)+(1+3).
  static void sum4(F a, F b, F c, F d, float* out) {
    const F ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    const F cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const F abcd = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, _MM_SHUFFLE(1, 0, 1, 0)),
                                 _mm512_shuffle_ps(ab, cd, _MM_SHUFFLE(3, 2, 3, 2)));
    const __m512d wide = _mm512_castps_pd(abcd);
    const __m256 half = _mm256_add_ps(_mm256_castpd_ps(_mm512_castpd512_pd256(wide)),
                                      _mm256_castpd_ps(_mm512_extractf64x4_pd(wide, 1)));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
  }
  static float sum(F x) {
    float out[4];
    sum4(x, x, x, x, out);
    return out[0];
  }
  static float max_lane(F x) {
    const __m512d wide = _mm512_castps_pd(x);
    const __m256 half = _mm256_max_ps(_mm256_castpd_ps(_mm512_castpd512_pd256(wide)),
                                      _mm256_castpd_ps(_mm512_extractf64x4_pd(wide, 1)));
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    m = _mm_max_ss(m, _mm_movehdup_ps(m));
    return _mm_cvtss_f32(m);
  }

  static F exp2(F x) {
    const F n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const F f = _mm512_sub_ps(x, n);
    F p = set1(kExp2Coefficients[5]);
    for (int i = 4; i >= 0; --i) p = fma(p, f, set1(kExp2Coefficients[i]));
    p = fma(p, f, set1(1.0f));
    const __m512i exponent = _mm512_slli_epi32(_mm512_cvtps_epi32(n), 23);
    p = _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p), exponent));
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, set1(kExp2Lowest), _CMP_NLT_UQ), p);
  }
};

}  // namespace capstan::kernels::simd
