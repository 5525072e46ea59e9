// What the arithmetic units can do at most, measured: the roofs of prefill.
#pragma once

#include "kernels/cpu_ops.h"
#include "platform/thread_pool.h"

namespace capstan::kernels {

/// Operations per second of all threads of the pool together; a multiply-add counts as two.
struct Peaks {
  double fp32 = 0;  // FLOP/s of float32 fused multiply-adds on registers
  double int8 = 0;  // OP/s of 8-bit dot products on registers: vpmaddubsw, vpmaddwd and vpaddd on
                    // AVX2, vpdpbusd on AVX-512 (AMX's tile products do more)
  double bf16 = 0;  // FLOP/s of vdpbf16ps on registers, 0 where the set or the CPU has none
};

/// Takes about `seconds`. Zeros for Isa::kRef. `isa` must be one that the CPU supports.
Peaks measure_peaks(Isa isa, platform::ThreadPool& pool, double seconds = 0.2);

/// Loops that measure_peaks times: `rounds` times a fixed number of instructions without memory
/// access. They return the operations done.
struct PeakLoops {
  double (*fp32)(long rounds);
  double (*int8)(long rounds);
};
const PeakLoops& avx2_peak_loops();
const PeakLoops& avx512_peak_loops();
/// Likewise, for CPUs with vdpbf16ps.
double bf16_peak_loop(long rounds);

}  // namespace capstan::kernels
