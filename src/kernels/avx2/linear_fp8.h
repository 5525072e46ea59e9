// The AVX2 kernels of F8_E4M3 panels with block scales; activations as kXScaled. They widen codes
// in two ways and give the same bits: fp8_halves_pay() (dot_choice.h) tells which is faster. Apart
// from linear_avx2.h, so that whoever chooses or compares them needs no AVX2 flags.
#pragma once

#include "kernels/linear_internal.h"

namespace capstan::kernels::avx2 {

void fp8_panel_shifted(const std::byte* panel, int64_t k, const XChunk& chunk, int rows,
                       float* acc);
void fp8_panel_halves(const std::byte* panel, int64_t k, const XChunk& chunk, int rows, float* acc);

}  // namespace capstan::kernels::avx2
