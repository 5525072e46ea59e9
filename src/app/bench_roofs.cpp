#include "app/bench_roofs.h"

#include <algorithm>

#include "kernels/peaks.h"
#include "platform/bandwidth.h"

namespace capstan::app {

MachineRoofs measure_roofs(platform::ThreadPool& pool) {
  MachineRoofs roofs;
  roofs.read_bytes_per_s = platform::measure_dram_read(pool);
  // The roof is what the machine can do, with whichever instruction set, not what was chosen.
  for (const kernels::Isa isa : kernels::supported_isas()) {
    const kernels::Peaks peaks = kernels::measure_peaks(isa, pool);
    roofs.int8_ops_per_s = std::max(roofs.int8_ops_per_s, peaks.int8);
    roofs.fp32_ops_per_s = std::max(roofs.fp32_ops_per_s, peaks.fp32);
    roofs.bf16_ops_per_s = std::max(roofs.bf16_ops_per_s, peaks.bf16);
  }
  return roofs;
}

}  // namespace capstan::app
