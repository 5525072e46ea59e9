// What AMX adds to the AVX-512 linear(): panels of the K formats times int8 activations, for tiles
// of kTallRows rows. Their sums are integers, and what follows is what avx512/ computes with the
// same instructions, so an output's bits are the same in both.
#pragma once

#include "kernels/linear_internal.h"

namespace capstan::kernels::amx {

/// Of the formats with super-blocks of 256; null for other dtypes. Rows beyond the last whole tile
/// are multiplied as without AMX.
PanelKernel super_panel_kernel(DType dtype);

}  // namespace capstan::kernels::amx
