#include <immintrin.h>

#include "kernels/peaks.h"

namespace capstan::kernels {
namespace {

// 12 independent chains cover a latency of 4 to 6 cycles at two instructions a cycle and leave
// registers for the operands.
constexpr int kChains = 12;

double fp32_loop(long rounds) {
  __m256 acc[kChains];
  for (__m256& a : acc) a = _mm256_setzero_ps();
  __m256 x = _mm256_set1_ps(1.0f), y = _mm256_set1_ps(1e-9f);
  for (long i = 0; i < rounds; ++i) {
    // Hides the operands' values, or the compiler would see through the loop.
    __asm__ volatile("" : "+x"(x), "+x"(y));
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) acc[c] = _mm256_fmadd_ps(x, y, acc[c]);
  }
  for (__m256& a : acc) __asm__ volatile("" : "+x"(a));
  return static_cast<double>(rounds) * kChains * 8 * 2;
}

double int8_loop(long rounds) {
  __m256i acc[kChains];
  for (__m256i& a : acc) a = _mm256_setzero_si256();
  __m256i x = _mm256_set1_epi8(3), y = _mm256_set1_epi8(5);
  const __m256i ones = _mm256_set1_epi16(1);
  for (long i = 0; i < rounds; ++i) {
#pragma GCC unroll 12
    for (int c = 0; c < kChains; ++c) {
      __asm__ volatile("" : "+x"(x));  // each product is computed anew
      const __m256i pairs = _mm256_maddubs_epi16(x, y);
      acc[c] = _mm256_add_epi32(acc[c], _mm256_madd_epi16(pairs, ones));
    }
  }
  for (__m256i& a : acc) __asm__ volatile("" : "+x"(a));
  return static_cast<double>(rounds) * kChains * 32 * 2;
}

}  // namespace

const PeakLoops& avx2_peak_loops() {
  static constexpr PeakLoops loops = {fp32_loop, int8_loop};
  return loops;
}

}  // namespace capstan::kernels
