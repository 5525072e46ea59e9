// What AMX adds to the AVX-512 linear(): panels of quantised weights times int8 activations, for
// tiles of kTallRows rows. Their sums are integers, and what follows is what avx512/ computes with
// the same instructions, so an output's bits are the same in both.
#pragma once

#include "kernels/linear_internal.h"

namespace capstan::kernels::amx {

/// Null for dtypes that are not block-quantised. Rows beyond the last whole tile
/// are multiplied as without AMX.
PanelKernel quantised_panel_kernel(DType dtype);
/// Of the formats with super-blocks of 256.
PanelKernel super_panel_kernel(DType dtype);

}  // namespace capstan::kernels::amx
