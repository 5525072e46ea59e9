// Matrix multiplication y = W x of the CPU backend: packing and execution, per instruction set.
#pragma once

#include <memory>

#include "base/result.h"
#include "kernels/cpu_ops.h"
#include "kernels/ops.h"
#include "platform/thread_pool.h"

namespace capstan::kernels {

struct PackOptions {
  /// Rounds the activations of block-quantised weights to int8 in blocks of 32, those of F8_E4M3 to
  /// BF16 where the CPU gains by that (dot_choice.h): a cosine difference of 1.3e-6. False:
  /// float32 throughout, several times slower.
  bool quantise_activations = true;
  /// Re-encodes F8_E4M3 weights as Q8_0 and multiplies them with int8 activations, as far as
  /// quantise_activations allows: 1.4 times the prefill speed, 6% more bytes, a cosine difference
  /// below 1e-4 (fp8_as_int8.h). False: as quantise_activations says.
  bool fp8_as_int8 = false;
};

/// Copies the parts of `spec` into panels for `isa`. Refuses, naming the tensor: parts that are
/// not two-dimensional or differ in k, k that is not a multiple of the format's block, dtypes
/// without a kernel, biases of the wrong length, swiglu pairs of unequal shape.
/// Safe to call from several threads at once.
Result<std::unique_ptr<LinearWeight>> pack_linear(Isa isa, const LinearSpec& spec,
                                                  const PackOptions& options = {});

/// Runs one product on every thread of `pool` (one fork and join). `args.weight` must come from
/// pack_linear with the same `isa`; shapes must agree (checked, a mismatch ends the process: it is
/// a bug of the caller). y must not overlap x. Bits of a row of y depend only on that row of x (and
/// of y, for kAdd) and the weight.
void run_linear(Isa isa, const LinearArgs& args, platform::ThreadPool& pool);

}  // namespace capstan::kernels
