// What the BF16 dot product adds to the AVX-512 linear(). Needs VBMI and BF16 beside what
// linear_avx512.h needs; whether it is used decides dot_choice.h.
#pragma once

#include "kernels/linear_internal.h"

namespace capstan::kernels::avx512bf16 {

/// F8_E4M3 with block scales; activations as kXBf16.
void fp8_panel(const std::byte* panel, int64_t k, const XChunk& chunk, int rows, float* acc);
/// Activations to records of kXBf16.
void round_bf16(const float* x, int64_t stride, int64_t k, int rows, std::byte* out);

}  // namespace capstan::kernels::avx512bf16
