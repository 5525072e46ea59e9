#include <immintrin.h>

#include "kernels/avx512/peak_chains.h"
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

double int8_loop(long rounds) {
  for (long i = 0; i < rounds; ++i) CAPSTAN_PEAK_ROUND("vpdpbusd");
  return static_cast<double>(rounds) * kChains * 64 * 2;
}

}  // namespace

const PeakLoops& avx512_peak_loops() {
  static constexpr PeakLoops loops = {fp32_loop, int8_loop};
  return loops;
}

}  // namespace capstan::kernels
