#include <immintrin.h>

#include "kernels/peaks.h"

namespace capstan::kernels {
namespace {

constexpr int kChains = 24;  // independent sums: latency times instructions a cycle, and more

double fp32_loop(long rounds) {
  __m512 acc[kChains];
  for (__m512& a : acc) a = _mm512_setzero_ps();
  __m512 x = _mm512_set1_ps(1.0f), y = _mm512_set1_ps(1e-9f);
  for (long i = 0; i < rounds; ++i) {
    // Hides the operands' values, or the compiler would see through the loop.
    __asm__ volatile("" : "+v"(x), "+v"(y));
#pragma GCC unroll 24
    for (int c = 0; c < kChains; ++c) acc[c] = _mm512_fmadd_ps(x, y, acc[c]);
  }
  for (__m512& a : acc) __asm__ volatile("" : "+v"(a));
  return static_cast<double>(rounds) * kChains * 16 * 2;
}

// Assembly throughout, because GCC 12 keeps sums of the intrinsic in memory: half the rate.
double int8_loop(long rounds) {
#define CAPSTAN_DOT(a) "vpdpbusd %%zmm30, %%zmm31, %%zmm" #a "\n\t"
#define CAPSTAN_DOTS(a, b, c, d, e, f) \
  CAPSTAN_DOT(a) CAPSTAN_DOT(b) CAPSTAN_DOT(c) CAPSTAN_DOT(d) CAPSTAN_DOT(e) CAPSTAN_DOT(f)
  for (long i = 0; i < rounds; ++i) {
    __asm__ volatile(CAPSTAN_DOTS(0, 1, 2, 3, 4, 5) CAPSTAN_DOTS(6, 7, 8, 9, 10, 11)
                         CAPSTAN_DOTS(12, 13, 14, 15, 16, 17) CAPSTAN_DOTS(18, 19, 20, 21, 22, 23)
                     :
                     :
                     : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8",
                       "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "xmm16",
                       "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23");
  }
#undef CAPSTAN_DOTS
#undef CAPSTAN_DOT
  return static_cast<double>(rounds) * kChains * 64 * 2;
}

}  // namespace

const PeakLoops& avx512_peak_loops() {
  static constexpr PeakLoops loops = {fp32_loop, int8_loop};
  return loops;
}

}  // namespace capstan::kernels
