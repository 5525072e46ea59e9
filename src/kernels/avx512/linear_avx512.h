// Pieces of the AVX-512 linear() that its source files share. Needs F, BW, VL, DQ and VNNI; panels,
// activation records and epilogues are those of AVX2.
#pragma once

#include <immintrin.h>

#include "kernels/linear_internal.h"

namespace capstan::kernels::avx512 {

/// F8_E4M3 with block scales; float32 activations.
void fp8_panel(const std::byte* panel, int64_t k, const XChunk& chunk, int rows, float* acc);
PanelKernel float_panel_kernel(DType dtype);
PanelKernel quantised_panel_kernel(DType dtype);
/// Of the formats with super-blocks of 256.
PanelKernel super_panel_kernel(DType dtype);
PanelKernel widened_panel_kernel(DType dtype);

// Panels are aligned to 32 bytes only: all loads are unaligned ones.
inline __m512i load(const std::byte* p) { return _mm512_loadu_si512(p); }
inline __m512 load_floats(const std::byte* p) { return _mm512_loadu_ps(p); }

inline __m512 load_half16(const std::byte* p) {
  return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
inline __m512i broadcast32(const std::byte* p) {
  int v;
  __builtin_memcpy(&v, p, 4);
  return _mm512_set1_epi32(v);
}
inline __m512 broadcast_float(const std::byte* p) {
  float v;
  __builtin_memcpy(&v, p, 4);
  return _mm512_set1_ps(v);
}

// Unlike AVX2's pairs of int16 the records' start values are int32 here, as vpdpbusd adds them:
// loading one costs no arithmetic.
inline constexpr int kInit128 = 56;
void quantise_int8(const float* x, int64_t stride, int64_t k, int rows, std::byte* out);
void quantise_super(const float* x, int64_t stride, int64_t k, int rows, std::byte* out);

// acc += q * four activations, broadcast. Assembly, because GCC 12 broadcasts into a register first
// and copies the sums: 1% (Q8_0), 2% (Q4_K) and 6% (Q4_0) at 512 rows, one run.
inline void mac(__m512i& acc, __m512i q, const std::byte* x) {
#if defined(CAPSTAN_SIMDE)
  acc = _mm512_dpbusd_epi32(acc, q, broadcast32(x));
#else
  __asm__("vpdpbusd %[x]%{1to16%}, %[q], %[acc]"
          : [acc] "+v"(acc)
          : [q] "v"(q), [x] "m"(*reinterpret_cast<const int*>(x)));
#endif
}

// Sums per row of a block: a row alone would wait for vpdpbusd's latency (Q4_K 48 against 51 GB/s).
constexpr int chains(int rows) { return rows == 1 ? 2 : 1; }
template <int kChains>
inline __m512i sum_of(const __m512i part[kChains]) {
  if constexpr (kChains == 1) return part[0];
  return _mm512_add_epi32(part[0], part[kChains - 1]);
}

// Brings `bytes` of weights towards L1: the hardware's prefetchers stop at every 4 KiB.
inline void prefetch(const std::byte* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64)
    _mm_prefetch(reinterpret_cast<const char*>(p + i), _MM_HINT_T0);
}
// How far ahead a tile's pass over a panel prefetches. Four rows, two threads of an EPYC of the Zen
// 4 generation, R1-Distill-1.5B's shape, GB/s with 0 / 1024 / 4096 / 8192 bytes: Q4_0 28.8 / 30.8 /
// 33.7 / 31.7, Q4_K 26.2 / 29.3 / 32.0 / 29.4, Q6_K 27.9 / 28.7 / 29.9 / 27.5. One row of
// Q4_K while DRAM gave 62 GB/s: 42 with 1024, 47 with 4096; no difference while it gave 35.
constexpr int64_t kAhead = 4096;

// How a panel format decodes; see avx2/linear_formats.h for the fields' meaning. kOffset is what
// the unsigned quants exceed the signed ones by; kInit the record's field that holds -kOffset times
// the sum of x.
struct Scales {
  __m512 scale[8];
  __m512 scale2[8];
};

template <int kHighBits, bool kHasMin>
struct SimpleFormat {
  static constexpr int kGroup = 1;
  static constexpr int kHigh = kHighBits;
  static constexpr bool kMin = kHasMin;
  static constexpr bool kBytes = false;
  static constexpr int kSub = 1;
  static constexpr int kHeader = kHasMin ? 64 : 32;
  static constexpr int kBlock = 256 + 64 * kHighBits;
  static constexpr int kOffset = kHasMin ? 0 : kHighBits == 1 ? 16 : 8;
  static constexpr int kInit = kHighBits == 1 ? kInit16 : kInit8;

  static void scales(const std::byte* header, Scales& s) {
    s.scale[0] = load_half16(header);
    if constexpr (kHasMin) s.scale2[0] = load_half16(header + 32);
  }
};
using Q4_0 = SimpleFormat<0, false>;
using Q4_1 = SimpleFormat<0, true>;
using Q5_0 = SimpleFormat<1, false>;
using Q5_1 = SimpleFormat<1, true>;

struct Q8_0 {
  static constexpr int kGroup = 1;
  static constexpr int kHigh = 0;
  static constexpr bool kMin = false;
  static constexpr bool kBytes = true;
  static constexpr int kSub = 1;
  static constexpr int kHeader = 32;
  static constexpr int kBlock = 512;
  static constexpr int kOffset = 128;
  static constexpr int kInit = kInit128;

  static void scales(const std::byte* header, Scales& s) { s.scale[0] = load_half16(header); }
};

template <int kHighBits>
struct SuperFormat {
  static constexpr int kGroup = 8;
  static constexpr int kHigh = kHighBits;
  static constexpr bool kMin = true;
  static constexpr bool kBytes = false;
  static constexpr int kSub = 1;
  static constexpr int kHeader = 256;
  static constexpr int kBlock = 256 + 64 * kHighBits;
  static constexpr int kOffset = 0;

  static void scales(const std::byte* header, Scales& s) {
    const __m512 d = load_half16(header);
    const __m512 dmin = _mm512_sub_ps(_mm512_setzero_ps(), load_half16(header + 32));
    const auto byte = [&](int i) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(header + 64 + 16 * i));
    };
    const __m128i low6 = _mm_set1_epi8(63), low4 = _mm_set1_epi8(15), bits45 = _mm_set1_epi8(48);
    const auto widen = [](__m128i bytes) {
      return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes));
    };
    for (int j = 0; j < 4; ++j) {
      const __m128i a = byte(j), b = byte(j + 4), c = byte(j + 8);
      const __m128i a_top = _mm_and_si128(_mm_srli_epi16(a, 2), bits45);
      const __m128i b_top = _mm_and_si128(_mm_srli_epi16(b, 2), bits45);
      const __m128i c_low = _mm_and_si128(c, low4);
      const __m128i c_high = _mm_and_si128(_mm_srli_epi16(c, 4), low4);
      s.scale[j] = _mm512_mul_ps(d, widen(_mm_and_si128(a, low6)));
      s.scale2[j] = _mm512_mul_ps(dmin, widen(_mm_and_si128(b, low6)));
      s.scale[j + 4] = _mm512_mul_ps(d, widen(_mm_or_si128(c_low, a_top)));
      s.scale2[j + 4] = _mm512_mul_ps(dmin, widen(_mm_or_si128(c_high, b_top)));
    }
  }
};
using Q4_K = SuperFormat<0>;
using Q5_K = SuperFormat<1>;

struct Q6_K {
  static constexpr int kGroup = 8;
  static constexpr int kHigh = 2;
  static constexpr bool kMin = false;
  static constexpr bool kBytes = false;
  static constexpr int kSub = 2;
  static constexpr int kHeader = 288;
  static constexpr int kBlock = 256 + 128;
  static constexpr int kOffset = 32;

  static void scales(const std::byte* header, Scales& s) {
    const __m512 d = load_half16(header);
    for (int j = 0; j < 8; ++j) s.scale[j] = d;
  }
};

/// Integer scale of block j's half h.
inline __m512i sub_scale(const std::byte* header, int j, int h) {
  return _mm512_cvtepi8_epi32(
      _mm_loadu_si128(reinterpret_cast<const __m128i*>(header + 32 + 16 * (2 * j + h))));
}

/// Unsigned quants of elements 16h + 4t .. +3 of all 16 columns.
template <class F>
inline __m512i quants(const std::byte* block, int h, int t) {
  if constexpr (F::kBytes) {
    return load(block + (4 * h + t) * 64);
  }
  const __m512i packed = load(block + t * 64);
  __m512i q =
      _mm512_and_si512(h == 0 ? packed : _mm512_srli_epi16(packed, 4), _mm512_set1_epi8(15));
  if constexpr (F::kHigh == 1) {
    const __m512i high = load(block + 256);
    const int s = 4 * h + t;
    const __m512i bit = s <= 4 ? _mm512_slli_epi32(high, static_cast<unsigned>(4 - s))
                               : _mm512_srli_epi32(high, static_cast<unsigned>(s - 4));
    q = _mm512_or_si512(q, _mm512_and_si512(bit, _mm512_set1_epi8(16)));
  } else if constexpr (F::kHigh == 2) {
    const __m512i high = load(block + 256 + h * 64);
    const int s = 2 * t;
    const __m512i bits = s <= 4 ? _mm512_slli_epi32(high, static_cast<unsigned>(4 - s))
                                : _mm512_srli_epi32(high, static_cast<unsigned>(s - 4));
    q = _mm512_or_si512(q, _mm512_and_si512(bits, _mm512_set1_epi8(48)));
  }
  return q;
}

}  // namespace capstan::kernels::avx512
