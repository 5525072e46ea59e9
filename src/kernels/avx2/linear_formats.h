// How the AVX2 kernels decode each panel format (layouts: quant/panel.h).
//
// A format F tells: kGroup, panel blocks of 32 per header; kHeader, kBlock, bytes; kHigh, bits
// beyond four; kMin, whether y gets scale2 * (sum of x); kInit, the activation record's field that
// corrects for the offset of unsigned quants, or -1; kSub, integer sub-scales per block.
// value = scale * (q - offset) [* sub-scale] + scale2.
#pragma once

#include "kernels/avx2/linear_avx2.h"

namespace capstan::kernels::avx2 {

// Scales of one group: [block of 32][half of the 16 columns].
template <int kGroup>
struct Scales {
  __m256 scale[kGroup][2];
  __m256 scale2[kGroup][2];
};

// Q4_0, Q5_0: d. Q4_1, Q5_1: d, m; the 5-bit quants are centred by 16 to keep 16-bit sums in
// range, so that m' = m + 16 d.
template <int kHighBits, bool kHasMin>
struct SimpleFormat {
  static constexpr int kGroup = 1;
  static constexpr int kHigh = kHighBits;
  static constexpr bool kMin = kHasMin;
  static constexpr int kSub = 1;
  static constexpr int kHeader = kHasMin ? 64 : 32;
  static constexpr int kBlock = 256 + 64 * kHighBits;
  static constexpr int kInit = kHighBits == 1 ? kInit16 : kHasMin ? -1 : kInit8;

  static Scales<1> scales(const std::byte* header) {
    Scales<1> s;
    for (int v = 0; v < 2; ++v) {
      s.scale[0][v] = load_half8(header + 16 * v);
      if constexpr (kHasMin) {
        s.scale2[0][v] = load_half8(header + 32 + 16 * v);
        if constexpr (kHighBits == 1) {
          s.scale2[0][v] = _mm256_fmadd_ps(_mm256_set1_ps(16.0f), s.scale[0][v], s.scale2[0][v]);
        }
      }
    }
    return s;
  }
};
using Q4_0 = SimpleFormat<0, false>;
using Q4_1 = SimpleFormat<0, true>;
using Q5_0 = SimpleFormat<1, false>;
using Q5_1 = SimpleFormat<1, true>;

// Q4_K, Q5_K: scale = d * sc, scale2 = -dmin * mn (+ 16 * scale for Q5_K, as above).
template <int kHighBits>
struct SuperFormat {
  static constexpr int kGroup = 8;
  static constexpr int kHigh = kHighBits;
  static constexpr bool kMin = true;
  static constexpr int kSub = 1;
  static constexpr int kHeader = 256;
  static constexpr int kBlock = 256 + 64 * kHighBits;
  static constexpr int kInit = kHighBits == 1 ? kInit16 : -1;

  static Scales<8> scales(const std::byte* header) {
    Scales<8> s;
    // Byte i of the 12 of each column; 16 columns in a register.
    const auto byte = [&](int i) {
      return _mm_load_si128(reinterpret_cast<const __m128i*>(header + 64 + 16 * i));
    };
    const __m128i low6 = _mm_set1_epi8(63), low4 = _mm_set1_epi8(15), bits45 = _mm_set1_epi8(48);
    for (int j = 0; j < 4; ++j) {
      const __m128i a = byte(j), b = byte(j + 4), c = byte(j + 8);
      put(s, header, j, _mm_and_si128(a, low6), _mm_and_si128(b, low6));
      // Bits 6 and 7 of a byte are bits 4 and 5 of the scale four further on.
      const __m128i a_top = _mm_and_si128(_mm_srli_epi16(a, 2), bits45);
      const __m128i b_top = _mm_and_si128(_mm_srli_epi16(b, 2), bits45);
      put(s, header, j + 4, _mm_or_si128(_mm_and_si128(c, low4), a_top),
          _mm_or_si128(_mm_and_si128(_mm_srli_epi16(c, 4), low4), b_top));
    }
    return s;
  }

 private:
  static void put(Scales<8>& s, const std::byte* header, int j, __m128i sc, __m128i mn) {
    for (int v = 0; v < 2; ++v) {
      const __m256 d = load_half8(header + 16 * v);
      const __m256 dmin = load_half8(header + 32 + 16 * v);
      const __m256 scale = _mm256_mul_ps(d, widen(sc));
      __m256 scale2 = _mm256_mul_ps(dmin, widen(mn));
      if constexpr (kHighBits == 1) {
        scale2 = _mm256_fmsub_ps(_mm256_set1_ps(16.0f), scale, scale2);
      } else {
        scale2 = _mm256_sub_ps(_mm256_setzero_ps(), scale2);
      }
      s.scale[j][v] = scale;
      s.scale2[j][v] = scale2;
      sc = _mm_srli_si128(sc, 8);
      mn = _mm_srli_si128(mn, 8);
    }
  }
  static __m256 widen(__m128i bytes) { return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)); }
};
using Q4_K = SuperFormat<0>;
using Q5_K = SuperFormat<1>;

// Q6_K: value = d * sub-scale * (q - 32); the sub-scales (one per 16) multiply the integer sums.
struct Q6_K {
  static constexpr int kGroup = 8;
  static constexpr int kHigh = 2;
  static constexpr bool kMin = false;
  static constexpr int kSub = 2;
  static constexpr int kHeader = 288;
  static constexpr int kBlock = 256 + 128;
  static constexpr int kInit = kInit32;

  static Scales<8> scales(const std::byte* header) {
    Scales<8> s;
    for (int v = 0; v < 2; ++v) {
      const __m256 d = load_half8(header + 16 * v);
      for (int j = 0; j < 8; ++j) s.scale[j][v] = d;
    }
    return s;
  }
  /// Sub-scale of block j's half h (elements 16h..) as int16 twice in each dword, columns 8v...
  static __m256i sub_scale(const std::byte* header, int j, int h, int v) {
    const __m256i bytes = _mm256_broadcastsi128_si256(
        _mm_load_si128(reinterpret_cast<const __m128i*>(header + 32 + 16 * (2 * j + h))));
    const int c = 8 * v;
    const __m256i pick = _mm256_setr_epi8(
        -1, c, -1, c, -1, c + 1, -1, c + 1, -1, c + 2, -1, c + 2, -1, c + 3, -1, c + 3,  //
        -1, c + 4, -1, c + 4, -1, c + 5, -1, c + 5, -1, c + 6, -1, c + 6, -1, c + 7, -1, c + 7);
    return _mm256_srai_epi16(_mm256_shuffle_epi8(bytes, pick), 8);
  }
};

/// Unsigned quants of elements 16h + 4t .. +3, columns 8v.., as bytes of each column's dword.
template <class F>
inline __m256i quants(const std::byte* block, int h, int t, int v) {
  const __m256i packed = load(block + t * 64 + v * 32);
  const __m256i low4 = _mm256_set1_epi8(15);
  __m256i q = _mm256_and_si256(h == 0 ? packed : _mm256_srli_epi16(packed, 4), low4);
  if constexpr (F::kHigh == 1) {
    const __m256i high = load(block + 256 + v * 32);
    const int s = 4 * h + t;  // bit s of each byte becomes bit 4
    const __m256i bit = s <= 4 ? _mm256_slli_epi32(high, 4 - s) : _mm256_srli_epi32(high, s - 4);
    q = _mm256_or_si256(q, _mm256_and_si256(bit, _mm256_set1_epi8(16)));
  } else if constexpr (F::kHigh == 2) {
    const __m256i high = load(block + 256 + h * 64 + v * 32);
    const int s = 2 * t;  // bits s,s+1 of each byte become bits 4,5
    const __m256i bits = s <= 4 ? _mm256_slli_epi32(high, 4 - s) : _mm256_srli_epi32(high, s - 4);
    q = _mm256_or_si256(q, _mm256_and_si256(bits, _mm256_set1_epi8(48)));
  }
  return q;
}

}  // namespace capstan::kernels::avx2
