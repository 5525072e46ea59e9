// The K formats' headers, and how a super-block's sums end up in an output.
#pragma once

#include "kernels/avx512/linear_avx512.h"

namespace capstan::kernels::avx512 {

// What a header says, as integers.
template <class F>
struct SuperHeader {
  const std::byte* at;

  void read(const std::byte* header) { at = header; }
  __m512i scale(int j, int h) const { return sub_scale(at, j, h); }
};

// Two vectors of bytes, 0..127, as pairs of int16.
inline __m512i pairs_of(__m128i low, __m128i high) {
  const __m256i first = _mm256_cvtepu8_epi16(_mm_unpacklo_epi8(low, high));
  const __m256i second = _mm256_cvtepu8_epi16(_mm_unpackhi_epi8(low, high));
  return _mm512_inserti64x4(_mm512_castsi256_si512(first), second, 1);
}

// Minima of the eight blocks in pairs of int16; scales too for Q4_K.
template <int kHighBits>
struct SuperHeader<SuperFormat<kHighBits>> {
  __m512i scales[kHighBits == 0 ? 4 : 8];
  __m512i minima[4];

  void read(const std::byte* header) {
    const auto byte = [&](int i) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(header + 64 + 16 * i));
    };
    const __m128i low6 = _mm_set1_epi8(63), low4 = _mm_set1_epi8(15), bits45 = _mm_set1_epi8(48);
    __m128i scale[8], min[8];
    for (int j = 0; j < 4; ++j) {
      const __m128i a = byte(j), b = byte(j + 4), c = byte(j + 8);
      const __m128i a_top = _mm_and_si128(_mm_srli_epi16(a, 2), bits45);
      const __m128i b_top = _mm_and_si128(_mm_srli_epi16(b, 2), bits45);
      const __m128i c_high = _mm_and_si128(_mm_srli_epi16(c, 4), low4);
      scale[j] = _mm_and_si128(a, low6);
      scale[j + 4] = _mm_or_si128(_mm_and_si128(c, low4), a_top);
      min[j] = _mm_and_si128(b, low6);
      min[j + 4] = _mm_or_si128(c_high, b_top);
    }
    for (int p = 0; p < 4; ++p) {
      minima[p] = pairs_of(min[2 * p], min[2 * p + 1]);
      if constexpr (kHighBits == 0) {
        scales[p] = pairs_of(scale[2 * p], scale[2 * p + 1]);
      } else {
        scales[2 * p] = _mm512_cvtepu8_epi32(scale[2 * p]);
        scales[2 * p + 1] = _mm512_cvtepu8_epi32(scale[2 * p + 1]);
      }
    }
  }
  __m512i scale(int j, int) const { return scales[j]; }
};

template <class F>
constexpr int64_t kSuperBytes = F::kHeader + 8 * F::kBlock;

/// acc + (sum * d - minima * d_min) * the record's scale, where sum is that of a super-block's
/// quants, times their blocks' scales, times activations.
template <class F>
inline __m512 add_super(const SuperHeader<F>& header, __m512i sum, __m512 d, __m512 d_min,
                        const std::byte* record, __m512 acc) {
  __m512 whole = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), d);
  if constexpr (F::kMin) {
    __m512i m = _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int p = 0; p < 4; ++p)
      m = _mm512_dpwssd_epi32(m, header.minima[p], broadcast32(record + kSuperSums + 4 * p));
    whole = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(m), d_min, whole);
  }
  return _mm512_fmadd_ps(whole, broadcast_float(record + kSuperScale), acc);
}

}  // namespace capstan::kernels::avx512
