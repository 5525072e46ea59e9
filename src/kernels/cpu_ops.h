// The CPU's op tables.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/ops.h"
#include "platform/thread_pool.h"

namespace capstan::kernels {

enum class Isa : uint8_t { kRef, kAvx2, kAvx512 };

struct CpuOpsOptions {
  /// Unset: the fastest by a short timing at start-up among those the CPU supports.
  std::optional<Isa> isa;
  /// Activations of GGUF-quantised weights are rounded to int8 blocks, those of block-FP8 weights
  /// to BF16 where that is faster; false computes in float32 (slow, exact up to rounding).
  bool quantise_activations = true;
  /// Block-FP8 weights (DeepSeek-V3) are computed as int8 by int8 (PackOptions::fp8_as_int8).
  bool fp8_as_int8 = false;
};

std::vector<Isa> supported_isas();
std::string_view isa_name(Isa isa);
Result<std::shared_ptr<Ops>> make_cpu_ops(const CpuOpsOptions& options, platform::ThreadPool& pool);

}  // namespace capstan::kernels
