#include "kernels/peaks.h"

#include <gtest/gtest.h>

#include "platform/cpu.h"

namespace capstan::kernels {
namespace {

TEST(Peaks, AreRatesThatAProcessorCanHave) {
  platform::ThreadPool pool(1);
  for (const Isa isa : supported_isas()) {
    const Peaks peaks = measure_peaks(isa, pool, 0.02);
    if (isa == Isa::kRef) {
      EXPECT_EQ(peaks.fp32, 0);
      continue;
    }
    // One core: above 100 MFLOP/s even under sanitizers and load; no core does 64 FMAs of 16 lanes
    // a cycle at 6 GHz, which a loop that the compiler removed would seem to do.
    EXPECT_GT(peaks.fp32, 1e8);
    EXPECT_LT(peaks.fp32, 1e13);
    EXPECT_GT(peaks.int8, 1e8);
    EXPECT_LT(peaks.int8, 1e14);
    const bool has_bf16 = isa == Isa::kAvx512 && platform::isa_support().avx512_bf16;
    EXPECT_EQ(peaks.bf16 > 1e8, has_bf16);
    EXPECT_LT(peaks.bf16, 5e13);
  }
}

TEST(Peaks, CountTheirOperations) {
  for (const Isa isa : supported_isas()) {
    if (isa == Isa::kRef) continue;
    const PeakLoops& loops = isa == Isa::kAvx2 ? avx2_peak_loops() : avx512_peak_loops();
    EXPECT_EQ(loops.fp32(10), isa == Isa::kAvx2 ? 10 * 12 * 16 : 10 * 24 * 32);
    EXPECT_EQ(loops.int8(10), isa == Isa::kAvx2 ? 10 * 12 * 64 : 10 * 24 * 128);
  }
  if (platform::isa_support().avx512_bf16) {
    EXPECT_EQ(bf16_peak_loop(10), 10 * 24 * 64);
  }
}

}  // namespace
}  // namespace capstan::kernels
