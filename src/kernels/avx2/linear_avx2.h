// Pieces of the AVX2 linear() that its source files share.
#pragma once

#include <immintrin.h>

#include "kernels/linear_internal.h"

namespace capstan::kernels::avx2 {

PanelKernel float_panel_kernel(DType dtype);
PanelKernel quantised_panel_kernel(DType dtype);
/// Block-quantised weights with float32 activations.
PanelKernel widened_panel_kernel(DType dtype);

void quantise_int8(const float* x, int64_t stride, int64_t k, int rows, std::byte* out);
void quantise_paired(const float* x, int64_t stride, int64_t k, int rows, std::byte* out);
void scale_rows(const float* x, int64_t stride, int64_t k, int rows, float* out);
void store(const float* acc, const float* bias, int rows, int columns, bool add, float* y,
           int64_t stride);
void store_swiglu(const float* gate, const float* up, const float* gate_bias, const float* up_bias,
                  int rows, int columns, float* y, int64_t stride);

inline __m256i load(const std::byte* p) {
  return _mm256_load_si256(reinterpret_cast<const __m256i*>(p));
}
inline __m256i broadcast32(const std::byte* p) {
  int v;
  __builtin_memcpy(&v, p, 4);
  return _mm256_set1_epi32(v);
}
inline __m256 broadcast_float(const std::byte* p) {
  return _mm256_broadcast_ss(reinterpret_cast<const float*>(p));
}
inline __m256 load_half8(const std::byte* p) {
  return _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
}

}  // namespace capstan::kernels::avx2
