// Block-quantised FP8 checkpoints (DeepSeek-V3): E4M3 "fn" codes (bias 7, no infinity, largest
// finite 448, NaN 0x7F and 0xFF) and one float scale per block of 128 x 128 weights, or per 128
// channels of one row of activations. The encoder of single codes is float_to_e4m3 (codecs.h).
#pragma once

#include <cstddef>
#include <cstdint>

namespace capstan::quant {

inline constexpr int kFp8Block = 128;
inline constexpr float kMaxE4M3 = 448.0f;

float e4m3_to_float(uint8_t code);

/// Blocks along `n` elements; the last one may be partial.
constexpr int64_t fp8_blocks(int64_t n) { return (n + kFp8Block - 1) / kFp8Block; }

/// Rows [first_row, first_row + rows) of a matrix of `k` columns:
/// dst[r][c] = code * scales[(first_row + r) / 128][c / 128], rounded once to float32.
/// `codes` and `dst` begin at first_row, `scales` [ceil(n/128)][ceil(k/128)] at the matrix's
/// beginning.
void dequantize_fp8_blocks(const std::byte* codes, const float* scales, int64_t first_row,
                           int64_t rows, int64_t k, float* dst);

/// One row of activations, per slice of 128 (the last may be partial): scale = max(max|x|, floor) /
/// 448, code = e4m3(x / scale). DeepSeek's kernels use a floor of 1e-4, SGLang's 1e-10.
void quantize_fp8_slices(const float* x, int64_t k, float floor, std::byte* codes, float* scales);

/// Index of the first NaN code among `n`, or -1.
int64_t find_fp8_nan(const std::byte* codes, int64_t n);

}  // namespace capstan::quant
