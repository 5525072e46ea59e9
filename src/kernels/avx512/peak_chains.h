// A round of 24 independent multiply-adds, for the loops that measure peaks of arithmetic.
#pragma once

// Assembly throughout, because GCC 12 keeps sums of the intrinsics in memory: half the rate. The
// assembler's own loop over the registers keeps it short.
#define CAPSTAN_PEAK_ROUND(op)                                                                    \
  __asm__ volatile(                                                                               \
      ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23"                      \
      "\n\t" op " %%zmm30, %%zmm31, %%zmm\\i\n\t.endr"                                            \
      :                                                                                           \
      :                                                                                           \
      : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",  \
        "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", \
        "xmm21", "xmm22", "xmm23")
