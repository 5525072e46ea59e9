// Epilogues of linear(), and the AVX2 kernel table.
#include "kernels/avx2/linear_avx2.h"

namespace capstan::kernels::avx2 {

namespace {

// Lanes i < n of a vector of 8.
inline __m256i lanes(int n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

// e^x to 2 ulp for x <= 88; 0 below -87.3. Range reduction by ln 2 in two parts, then the Taylor
// polynomial of degree 7 on [-ln2/2, ln2/2] (remainder 5e-9).
inline __m256 exp8(__m256 x) {
  const __m256 low = _mm256_set1_ps(-87.3f), high = _mm256_set1_ps(88.0f);
  // max/min return the second operand for NaN: keep x there.
  const __m256 v = _mm256_min_ps(high, _mm256_max_ps(low, x));
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(v, _mm256_set1_ps(1.44269504f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), v);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  __m256 p = _mm256_set1_ps(1.0f / 5040);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 720));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
  const __m256i e =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(p, _mm256_castsi256_ps(e));
}

inline __m256 silu8(__m256 x) {
  const __m256 e = exp8(_mm256_sub_ps(_mm256_setzero_ps(), x));
  return _mm256_div_ps(x, _mm256_add_ps(_mm256_set1_ps(1.0f), e));
}

}  // namespace

void store(const float* acc, const float* bias, int rows, int columns, bool add, float* y,
           int64_t stride) {
  for (int v = 0; v * 8 < columns; ++v) {
    const __m256i mask = lanes(columns - v * 8);
    const bool whole = columns - v * 8 >= 8;
    const __m256 b = bias == nullptr ? _mm256_setzero_ps() : _mm256_loadu_ps(bias + v * 8);
    for (int r = 0; r < rows; ++r) {
      float* out = y + r * stride + v * 8;
      __m256 value = _mm256_load_ps(acc + r * kPanelColumns + v * 8);
      if (bias != nullptr) value = _mm256_add_ps(value, b);
      if (whole) {
        if (add) value = _mm256_add_ps(_mm256_loadu_ps(out), value);
        _mm256_storeu_ps(out, value);
      } else {
        if (add) value = _mm256_add_ps(_mm256_maskload_ps(out, mask), value);
        _mm256_maskstore_ps(out, mask, value);
      }
    }
  }
}

void store_swiglu(const float* gate, const float* up, const float* gate_bias, const float* up_bias,
                  int rows, int columns, float* y, int64_t stride) {
  for (int v = 0; v * 8 < columns; ++v) {
    const __m256i mask = lanes(columns - v * 8);
    const bool whole = columns - v * 8 >= 8;  // a masked store is slow on AMD
    for (int r = 0; r < rows; ++r) {
      __m256 g = _mm256_load_ps(gate + r * kPanelColumns + v * 8);
      __m256 u = _mm256_load_ps(up + r * kPanelColumns + v * 8);
      if (gate_bias != nullptr) {
        g = _mm256_add_ps(g, _mm256_loadu_ps(gate_bias + v * 8));
        u = _mm256_add_ps(u, _mm256_loadu_ps(up_bias + v * 8));
      }
      float* out = y + r * stride + v * 8;
      const __m256 value = _mm256_mul_ps(silu8(g), u);
      if (whole) {
        _mm256_storeu_ps(out, value);
      } else {
        _mm256_maskstore_ps(out, mask, value);
      }
    }
  }
}

}  // namespace capstan::kernels::avx2

namespace capstan::kernels {

namespace {
PanelKernel panel_kernel(DType dtype, bool quantise_activations) {
  if (!is_block_quantised(dtype)) return avx2::float_panel_kernel(dtype);
  return quantise_activations ? avx2::quantised_panel_kernel(dtype)
                              : avx2::widened_panel_kernel(dtype);
}
XForm x_form(DType dtype, bool quantise_activations) {
  if (dtype == DType::kF8E4M3) return kXScaled;
  if (!is_block_quantised(dtype) || !quantise_activations) return kXFloat;
  return dtype == DType::kQ8_0 ? kXPaired : kXInt8;
}
}  // namespace

const LinearKernels& avx2_linear_kernels() {
  static constexpr LinearKernels kernels = {
      x_form,           panel_kernel, avx2::quantise_int8, avx2::quantise_paired,
      nullptr,  // no kXSuper
      avx2::scale_rows, avx2::store,  avx2::store_swiglu};
  return kernels;
}

}  // namespace capstan::kernels
