// Decoding and encoding of stored number formats, one row at a time. The oracle for every panel
// layout: bit-exact against the `gguf` package (GGUF blocks) and IEEE (F16, BF16).
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/result.h"
#include "tensor/dtype.h"

namespace capstan::quant {

/// NaNs keep sign and the top of their payload and become quiet, as F16C does.
float half_to_float(uint16_t h);
uint16_t float_to_half(float f);  // round to nearest, ties to even; overflow to infinity
float bfloat16_to_float(uint16_t b);
uint16_t float_to_bfloat16(float f);  // round to nearest, ties to even
uint8_t float_to_e4m3(float f);       // round to nearest, ties to even; saturates at +-448

/// Decodes `n` elements (a multiple of the block size) of any dtype; integers and bools convert by
/// value. `src` needs no alignment. Products and sums are rounded one by one, never fused, in the
/// order of the `gguf` package, so every CPU gives the same bits.
void dequantize_row(DType dtype, const std::byte* src, float* dst, int64_t n);

/// Encodes F32, F16, BF16, F8_E4M3 (as above), and Q8_0, Q4_0, Q4_1 as ggml's reference does (its
/// `gguf` package, bit for bit, on finite values); other dtypes, and an `n` that is no multiple of
/// the block, are kInvalidArgument.
Status quantize_row(DType dtype, const float* src, std::byte* dst, int64_t n);

}  // namespace capstan::quant
