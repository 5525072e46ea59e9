#include "kernels/peaks.h"

namespace capstan::kernels {

// Assembly for the reason that avx512/peaks_avx512.cpp names.
double bf16_peak_loop(long rounds) {
#define CAPSTAN_DOT(a) "vdpbf16ps %%zmm30, %%zmm31, %%zmm" #a "\n\t"
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
  return static_cast<double>(rounds) * 24 * 32 * 2;
}

}  // namespace capstan::kernels
