// The epilogue of experts(): adds an expert's share to the rows of the tokens that chose it.
#include <immintrin.h>

#include "kernels/experts.h"

namespace capstan::kernels::avx2 {

void add_weighted(const float* acc, const float* bias, const ExpertUse* uses, int rows, int columns,
                  const MatrixView& y, int64_t column) {
  for (int v = 0; v * 8 < columns; ++v) {
    const __m256i mask = _mm256_cmpgt_epi32(_mm256_set1_epi32(columns - v * 8),
                                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    const bool whole = columns - v * 8 >= 8;
    for (int r = 0; r < rows; ++r) {
      float* out = y.row(uses[r].token) + column + v * 8;
      __m256 value = _mm256_load_ps(acc + r * kPanelColumns + v * 8);
      if (bias != nullptr) value = _mm256_add_ps(value, _mm256_loadu_ps(bias + v * 8));
      const __m256 weight = _mm256_set1_ps(uses[r].weight);
      if (whole) {
        _mm256_storeu_ps(out, _mm256_fmadd_ps(weight, value, _mm256_loadu_ps(out)));
      } else {
        _mm256_maskstore_ps(out, mask,
                            _mm256_fmadd_ps(weight, value, _mm256_maskload_ps(out, mask)));
      }
    }
  }
}

}  // namespace capstan::kernels::avx2
