// 2^x for softmax, the same instruction sequence in every kernel of an instruction set.
#pragma once

namespace capstan::kernels::simd {

/// 2^f on [-0.5, 0.5] as 1 + f*(c0 + f*(c1 + ...)): relative minimax of degree 6, approximation
/// error 2.0e-9. With float rounding the result is within 1 ulp (tested over
/// [-126, 0]). The constant term is exactly 1, so that the largest
/// score of a row gets the probability 1 exactly.
inline constexpr float kExp2Coefficients[6] = {0x1.62e430p-1f, 0x1.ebfbdcp-3f,  0x1.c6aee8p-5f,
                                               0x1.3b2d4cp-7f, 0x1.5f3e54p-10f, 0x1.41fbbcp-13f};

/// Results below 2^-126 are zero (as flush-to-zero makes them in compute threads anyway).
inline constexpr float kExp2Lowest = -126.0f;

}  // namespace capstan::kernels::simd
