#include "kernels/avx512/peak_chains.h"
#include "kernels/peaks.h"

namespace capstan::kernels {

double bf16_peak_loop(long rounds) {
  for (long i = 0; i < rounds; ++i) CAPSTAN_PEAK_ROUND("vdpbf16ps");
  return static_cast<double>(rounds) * 24 * 32 * 2;
}

}  // namespace capstan::kernels
