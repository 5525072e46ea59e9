// A round of 24 independent multiply-adds, for the loops that measure peaks of arithmetic.
#pragma once

// Assembly throughout, because GCC 12 keeps sums of the intrinsics in memory: half the rate.
#define CAPSTAN_PEAK_OP(op, a) op " %%zmm30, %%zmm31, %%zmm" #a "\n\t"
#define CAPSTAN_PEAK_OPS(op, a, b, c, d, e, f)                                     \
  CAPSTAN_PEAK_OP(op, a) CAPSTAN_PEAK_OP(op, b) CAPSTAN_PEAK_OP(op, c)             \
  CAPSTAN_PEAK_OP(op, d) CAPSTAN_PEAK_OP(op, e) CAPSTAN_PEAK_OP(op, f)
#define CAPSTAN_PEAK_ROUND(op)                                                     \
  __asm__ volatile(CAPSTAN_PEAK_OPS(op, 0, 1, 2, 3, 4, 5)                          \
                       CAPSTAN_PEAK_OPS(op, 6, 7, 8, 9, 10, 11)                    \
                           CAPSTAN_PEAK_OPS(op, 12, 13, 14, 15, 16, 17)            \
                               CAPSTAN_PEAK_OPS(op, 18, 19, 20, 21, 22, 23)        \
                   :                                                               \
                   :                                                               \
                   : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6",       \
                     "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13",   \
                     "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19",         \
                     "xmm20", "xmm21", "xmm22", "xmm23")
