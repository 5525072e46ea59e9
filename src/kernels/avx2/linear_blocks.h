// Integer products of one block of 32 with a tile of four rows, in assembly: eight accumulators,
// the quants of a step and the products just fit the sixteen registers, and GCC 12 spills half of
// them whichever way the intrinsics are written. Share of the INT8 peak, 32 rows, one core, all in
// L1, without and with: Q4_0 107 / 120, Q4_K 69 / 111, Q6_K 81 / 106, Q8_0 78 / 94 %. (The peak
// counts vpmaddubsw + vpmaddwd + vpaddd; sums kept in 16 bits need fewer, so 100 % is no limit.)
//
// Steps are four elements along k: quants of step s at w + 64 s (columns 0..7, then 8..15), bytes
// of row r at x + 64 r + 4 s. Results are converted to float. Always inlined: a call passes the
// eight sums through memory and costs a tenth.
#pragma once

#include "kernels/avx2/linear_avx2.h"

namespace capstan::kernels::avx2 {

alignas(32) inline constexpr int16_t kOnes16[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

// clang-format off
#define CAPSTAN_LOAD(s) \
  "vmovdqa 64*" #s "(%[w]), %[q0]\n\t" \
  "vmovdqa 64*" #s "+32(%[w]), %[q1]\n\t"
#define CAPSTAN_FIRST(s, r, a, b) \
  "vpbroadcastd 64*" #r "+4*" #s "(%[x]), %[t0]\n\t" \
  "vpmaddubsw %[t0], %[q0], %[" #a "]\n\t" \
  "vpmaddubsw %[t0], %[q1], %[" #b "]\n\t"
#define CAPSTAN_NEXT(s, r, a, b) \
  "vpbroadcastd 64*" #r "+4*" #s "(%[x]), %[t0]\n\t" \
  "vpmaddubsw %[t0], %[q0], %[t1]\n\t" \
  "vpmaddubsw %[t0], %[q1], %[t0]\n\t" \
  "vpaddw %[t1], %[" #a "], %[" #a "]\n\t" \
  "vpaddw %[t0], %[" #b "], %[" #b "]\n\t"
#define CAPSTAN_START(r, at, a, b) \
  "vpbroadcastd 64*" #r "+%c[" #at "](%[x]), %[t0]\n\t" \
  "vpaddw %[t0], %[" #a "], %[" #a "]\n\t" \
  "vpaddw %[t0], %[" #b "], %[" #b "]\n\t"
#define CAPSTAN_ROWS(M, s) \
  CAPSTAN_LOAD(s) M(s, 0, a0, b0) M(s, 1, a1, b1) M(s, 2, a2, b2) M(s, 3, a3, b3)
#define CAPSTAN_STARTS(at) \
  CAPSTAN_START(0, at, a0, b0) CAPSTAN_START(1, at, a1, b1) \
  CAPSTAN_START(2, at, a2, b2) CAPSTAN_START(3, at, a3, b3)
#define CAPSTAN_EACH(M) \
  M(a0) M(b0) M(a1) M(b1) M(a2) M(b2) M(a3) M(b3)
#define CAPSTAN_WIDEN(a) "vpmaddwd %[q0], %[" #a "], %[" #a "]\n\t"
#define CAPSTAN_FLOAT(a) "vcvtdq2ps %[" #a "], %[" #a "]\n\t"
#define CAPSTAN_OUTPUTS(s) \
  [a0] "=&x"(s[0][0]), [b0] "=&x"(s[0][1]), [a1] "=&x"(s[1][0]), [b1] "=&x"(s[1][1]), \
  [a2] "=&x"(s[2][0]), [b2] "=&x"(s[2][1]), [a3] "=&x"(s[3][0]), [b3] "=&x"(s[3][1])

/// sum[r][v] = products of 32 elements plus the record's start value at kInit (none if negative).
template <int kInit>
[[gnu::always_inline]] inline void nibble_sums4(const std::byte* w, const std::byte* x,
                                                __m256 sum[4][2]) {
  __m256i q0, q1, t0, t1;
  if constexpr (kInit < 0) {
    asm(CAPSTAN_ROWS(CAPSTAN_FIRST, 0) CAPSTAN_ROWS(CAPSTAN_NEXT, 1)
        CAPSTAN_ROWS(CAPSTAN_NEXT, 2) CAPSTAN_ROWS(CAPSTAN_NEXT, 3)
        CAPSTAN_ROWS(CAPSTAN_NEXT, 4) CAPSTAN_ROWS(CAPSTAN_NEXT, 5)
        CAPSTAN_ROWS(CAPSTAN_NEXT, 6) CAPSTAN_ROWS(CAPSTAN_NEXT, 7)
        "vmovdqa %[ones], %[q0]\n\t" CAPSTAN_EACH(CAPSTAN_WIDEN) CAPSTAN_EACH(CAPSTAN_FLOAT)
        : CAPSTAN_OUTPUTS(sum), [q0] "=&x"(q0), [q1] "=&x"(q1), [t0] "=&x"(t0), [t1] "=&x"(t1)
        : [w] "r"(w), [x] "r"(x), [ones] "m"(kOnes16) : "memory");
  } else {
    asm(CAPSTAN_ROWS(CAPSTAN_FIRST, 0) CAPSTAN_STARTS(start)
        CAPSTAN_ROWS(CAPSTAN_NEXT, 1) CAPSTAN_ROWS(CAPSTAN_NEXT, 2)
        CAPSTAN_ROWS(CAPSTAN_NEXT, 3) CAPSTAN_ROWS(CAPSTAN_NEXT, 4)
        CAPSTAN_ROWS(CAPSTAN_NEXT, 5) CAPSTAN_ROWS(CAPSTAN_NEXT, 6) CAPSTAN_ROWS(CAPSTAN_NEXT, 7)
        "vmovdqa %[ones], %[q0]\n\t" CAPSTAN_EACH(CAPSTAN_WIDEN) CAPSTAN_EACH(CAPSTAN_FLOAT)
        : CAPSTAN_OUTPUTS(sum), [q0] "=&x"(q0), [q1] "=&x"(q1), [t0] "=&x"(t0), [t1] "=&x"(t1)
        : [w] "r"(w), [x] "r"(x), [ones] "m"(kOnes16), [start] "i"(kInit) : "memory");
  }
}

/// The same with a factor for each 16 elements: int16 pairs of columns 8v.. at factors + 64h + 32v.
#define CAPSTAN_SCALE(a, at) "vpmaddwd " #at "(%[f]), %[" #a "], %[" #a "]\n\t"
#define CAPSTAN_SCALES(h) \
  CAPSTAN_SCALE(a0, 64*h) CAPSTAN_SCALE(b0, 64*h+32) CAPSTAN_SCALE(a1, 64*h) \
  CAPSTAN_SCALE(b1, 64*h+32) CAPSTAN_SCALE(a2, 64*h) CAPSTAN_SCALE(b2, 64*h+32) \
  CAPSTAN_SCALE(a3, 64*h) CAPSTAN_SCALE(b3, 64*h+32)
#define CAPSTAN_PUT(a, i) "vmovdqa %[" #a "], 32*" #i "(%[p])\n\t"
#define CAPSTAN_GET(a, i) "vpaddd 32*" #i "(%[p]), %[" #a "], %[" #a "]\n\t"
#define CAPSTAN_ALL(M) M(a0, 0) M(b0, 1) M(a1, 2) M(b1, 3) M(a2, 4) M(b2, 5) M(a3, 6) M(b3, 7)

template <int kInit>
[[gnu::always_inline]] inline void scaled_sums4(const std::byte* w, const std::byte* factors,
                                                const std::byte* x, __m256 sum[4][2]) {
  __m256i q0, q1, t0, t1;
  alignas(32) __m256i half[8];
  asm(CAPSTAN_ROWS(CAPSTAN_FIRST, 0) CAPSTAN_STARTS(start)
      CAPSTAN_ROWS(CAPSTAN_NEXT, 1) CAPSTAN_ROWS(CAPSTAN_NEXT, 2) CAPSTAN_ROWS(CAPSTAN_NEXT, 3)
      CAPSTAN_SCALES(0) CAPSTAN_ALL(CAPSTAN_PUT)
      CAPSTAN_ROWS(CAPSTAN_FIRST, 4) CAPSTAN_STARTS(start2)
      CAPSTAN_ROWS(CAPSTAN_NEXT, 5) CAPSTAN_ROWS(CAPSTAN_NEXT, 6) CAPSTAN_ROWS(CAPSTAN_NEXT, 7)
      CAPSTAN_SCALES(1) CAPSTAN_ALL(CAPSTAN_GET) CAPSTAN_EACH(CAPSTAN_FLOAT)
      : CAPSTAN_OUTPUTS(sum), [q0] "=&x"(q0), [q1] "=&x"(q1), [t0] "=&x"(t0), [t1] "=&x"(t1)
      : [w] "r"(w), [x] "r"(x), [f] "r"(factors), [p] "r"(half), [start] "i"(kInit),
        [start2] "i"(kInit + 4) : "memory");
}

/// Q8_0: w has uint8 quants; two products of two stay modulo 2^16 with a start value for eight
/// elements, and are then widened.
#define CAPSTAN_LOAD8(s) \
  "vmovdqa 128*" #s "(%[w]), %[q0]\n\t" \
  "vmovdqa 128*" #s "+32(%[w]), %[q1]\n\t" \
  "vmovdqa 128*" #s "+64(%[w]), %[q2]\n\t" \
  "vmovdqa 128*" #s "+96(%[w]), %[q3]\n\t"
#define CAPSTAN_PAIR8(s, r) \
  "vpbroadcastd 64*" #r "+8*" #s "(%[x]), %[t0]\n\t" \
  "vpmaddubsw %[t0], %[q0], %[t1]\n\t" \
  "vpmaddubsw %[t0], %[q1], %[t0]\n\t" \
  "vpbroadcastd 64*" #r "+4*" #s "+%c[start](%[x]), %[t2]\n\t" \
  "vpaddw %[t2], %[t1], %[t1]\n\t" \
  "vpaddw %[t2], %[t0], %[t0]\n\t" \
  "vpbroadcastd 64*" #r "+8*" #s "+4(%[x]), %[t2]\n\t" \
  "vpmaddubsw %[t2], %[q2], %[t3]\n\t" \
  "vpmaddubsw %[t2], %[q3], %[t2]\n\t" \
  "vpaddw %[t3], %[t1], %[t1]\n\t" \
  "vpaddw %[t2], %[t0], %[t0]\n\t"
#define CAPSTAN_FIRST8(s, r, a, b) \
  CAPSTAN_PAIR8(s, r) \
  "vpmaddwd %[ones], %[t1], %[" #a "]\n\t" \
  "vpmaddwd %[ones], %[t0], %[" #b "]\n\t"
#define CAPSTAN_NEXT8(s, r, a, b) \
  CAPSTAN_PAIR8(s, r) \
  "vpmaddwd %[ones], %[t1], %[t1]\n\t" \
  "vpmaddwd %[ones], %[t0], %[t0]\n\t" \
  "vpaddd %[t1], %[" #a "], %[" #a "]\n\t" \
  "vpaddd %[t0], %[" #b "], %[" #b "]\n\t"
#define CAPSTAN_ROWS8(M, s) \
  CAPSTAN_LOAD8(s) M(s, 0, a0, b0) M(s, 1, a1, b1) M(s, 2, a2, b2) M(s, 3, a3, b3)

[[gnu::always_inline]] inline void byte_sums4(const std::byte* w, const std::byte* x,
                                              __m256 sum[4][2]) {
  __m256i q0, q1, q2, q3, t0, t1, t2, t3;
  asm(CAPSTAN_ROWS8(CAPSTAN_FIRST8, 0) CAPSTAN_ROWS8(CAPSTAN_NEXT8, 1)
      CAPSTAN_ROWS8(CAPSTAN_NEXT8, 2) CAPSTAN_ROWS8(CAPSTAN_NEXT8, 3) CAPSTAN_EACH(CAPSTAN_FLOAT)
      : CAPSTAN_OUTPUTS(sum), [q0] "=&x"(q0), [q1] "=&x"(q1), [q2] "=&x"(q2), [q3] "=&x"(q3),
        [t0] "=&x"(t0), [t1] "=&x"(t1), [t2] "=&x"(t2), [t3] "=&x"(t3)
      : [w] "r"(w), [x] "r"(x), [ones] "m"(kOnes16), [start] "i"(kPairedInit) : "memory");
}

#undef CAPSTAN_LOAD
#undef CAPSTAN_FIRST
#undef CAPSTAN_NEXT
#undef CAPSTAN_START
#undef CAPSTAN_ROWS
#undef CAPSTAN_STARTS
#undef CAPSTAN_EACH
#undef CAPSTAN_WIDEN
#undef CAPSTAN_FLOAT
#undef CAPSTAN_OUTPUTS
#undef CAPSTAN_SCALE
#undef CAPSTAN_SCALES
#undef CAPSTAN_PUT
#undef CAPSTAN_GET
#undef CAPSTAN_ALL
#undef CAPSTAN_LOAD8
#undef CAPSTAN_PAIR8
#undef CAPSTAN_FIRST8
#undef CAPSTAN_NEXT8
#undef CAPSTAN_ROWS8
// clang-format on

}  // namespace capstan::kernels::avx2
