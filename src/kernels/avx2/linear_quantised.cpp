// Panels of block-quantised weights times integer activations.
//
// Four to six bits: vpmaddubsw multiplies four unsigned quants of a column with four int8
// activations and the products of 16 (6 bits) or 32 elements stay in 16-bit accumulators: modulo
// 2^16 is enough because the final sum, with the quants' offset taken off by the start value, fits.
// Eight bits: vpmaddwd on int16, exact in 32 bits.
// Each block of 32 then adds float(sum) * (weight scale * activation scale) by one FMA.
#include "kernels/avx2/linear_formats.h"

namespace capstan::kernels::avx2 {

namespace {

inline __m256i dot_step(__m256i acc, __m256i q, __m256i x) {
  return _mm256_add_epi16(acc, _mm256_maddubs_epi16(q, x));
}

// Integer sums of one block: sum[row][half of columns].
template <class F, int R>
inline void block_sums(const std::byte* header, int j, const std::byte* block, const std::byte* x,
                       __m256i sum[R][2]) {
  const __m256i ones = _mm256_set1_epi16(1);
  if constexpr (F::kSub == 1) {
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < 2; ++v) {
        sum[r][v] = F::kInit < 0 ? _mm256_setzero_si256()
                                 : broadcast32(x + r * kInt8Record + (F::kInit < 0 ? 0 : F::kInit));
      }
    }
#pragma GCC unroll 4
    for (int t = 0; t < 4; ++t) {
#pragma GCC unroll 2
      for (int h = 0; h < 2; ++h) {
        const __m256i q0 = quants<F>(block, h, t, 0), q1 = quants<F>(block, h, t, 1);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          const __m256i xr = broadcast32(x + r * kInt8Record + 16 * h + 4 * t);
          sum[r][0] = dot_step(sum[r][0], q0, xr);
          sum[r][1] = dot_step(sum[r][1], q1, xr);
        }
      }
    }
    for (int r = 0; r < R; ++r) {
      for (int v = 0; v < 2; ++v) sum[r][v] = _mm256_madd_epi16(sum[r][v], ones);
    }
  } else {
    for (int h = 0; h < 2; ++h) {
      __m256i part[R][2];
      for (int r = 0; r < R; ++r) {
        for (int v = 0; v < 2; ++v)
          part[r][v] = broadcast32(x + r * kInt8Record + F::kInit + 4 * h);
      }
#pragma GCC unroll 4
      for (int t = 0; t < 4; ++t) {
        const __m256i q0 = quants<F>(block, h, t, 0), q1 = quants<F>(block, h, t, 1);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          const __m256i xr = broadcast32(x + r * kInt8Record + 16 * h + 4 * t);
          part[r][0] = dot_step(part[r][0], q0, xr);
          part[r][1] = dot_step(part[r][1], q1, xr);
        }
      }
      for (int v = 0; v < 2; ++v) {
        const __m256i sc = F::sub_scale(header, j, h, v);
        for (int r = 0; r < R; ++r) {
          const __m256i scaled = _mm256_madd_epi16(part[r][v], sc);
          sum[r][v] = h == 0 ? scaled : _mm256_add_epi32(sum[r][v], scaled);
        }
      }
    }
  }
}

// acc += float(sum) * (scale * x scale) [+ scale2 * x sum]. The same sequence for every tile.
template <bool kMin>
inline __m256 add_block(__m256 acc, __m256i sum, __m256 scale, __m256 scale2, __m256 x_scale,
                        __m256 x_sum) {
  acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), _mm256_mul_ps(scale, x_scale), acc);
  if constexpr (kMin) acc = _mm256_fmadd_ps(scale2, x_sum, acc);
  return acc;
}

template <class F, int R>
void nibble_tile(const std::byte* panel, int64_t k, const std::byte* x, float* out) {
  __m256 acc[R][2];
  for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_ps();
  for (int64_t g = 0; g < k / (32 * F::kGroup); ++g) {
    const std::byte* header = panel;
    const auto scales = F::scales(header);
    panel += F::kHeader;
    for (int j = 0; j < F::kGroup; ++j) {
      __m256i sum[R][2];
      block_sums<F, R>(header, j, panel, x, sum);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const __m256 x_scale = broadcast_float(x + r * kInt8Record + kInt8Scale);
        const __m256 x_sum = broadcast_float(x + r * kInt8Record + kInt8Sum);
        for (int v = 0; v < 2; ++v) {
          acc[r][v] = add_block<F::kMin>(acc[r][v], sum[r][v], scales.scale[j][v],
                                         scales.scale2[j][v], x_scale, x_sum);
        }
      }
      panel += F::kBlock;
      x += R * kInt8Record;
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < 2; ++v) _mm256_store_ps(out + r * kPanelColumns + v * 8, acc[r][v]);
  }
}

template <int R>
void byte_tile(const std::byte* panel, int64_t k, const std::byte* x, float* out) {
  constexpr int kHeader = 32, kBlock = 512;
  __m256 acc[R][2];
  for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_ps();
  for (int64_t b = 0; b < k / 32; ++b) {
    const std::byte* block = panel + kHeader;
    __m256i sum[R][2];
    for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int t = 0; t < 8; ++t) {
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        const __m256i bytes = load(block + t * 64 + v * 32);
        const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8);
        const __m256i odd = _mm256_srai_epi16(bytes, 8);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          const std::byte* xr = x + r * kInt16Record + 8 * t;
          sum[r][v] = _mm256_add_epi32(sum[r][v], _mm256_madd_epi16(even, broadcast32(xr)));
          sum[r][v] = _mm256_add_epi32(sum[r][v], _mm256_madd_epi16(odd, broadcast32(xr + 4)));
        }
      }
    }
    const __m256 scale[2] = {load_half8(panel), load_half8(panel + 16)};
    for (int r = 0; r < R; ++r) {
      const __m256 x_scale = broadcast_float(x + r * kInt16Record + kInt16Scale);
      for (int v = 0; v < 2; ++v)
        acc[r][v] = add_block<false>(acc[r][v], sum[r][v], scale[v], x_scale, x_scale, x_scale);
    }
    panel += kHeader + kBlock;
    x += R * kInt16Record;
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < 2; ++v) _mm256_store_ps(out + r * kPanelColumns + v * 8, acc[r][v]);
  }
}

template <class F>
void nibble_panel(const std::byte* panel, int64_t k, const XChunk& chunk, int rows, float* acc) {
  const std::byte* x = chunk.int8;
  const int64_t row_bytes = k / 32 * kInt8Record;
  for (; rows >= 4; rows -= 4, x += 4 * row_bytes, acc += 4 * kPanelColumns)
    nibble_tile<F, 4>(panel, k, x, acc);
  if (rows == 3) nibble_tile<F, 3>(panel, k, x, acc);
  if (rows == 2) nibble_tile<F, 2>(panel, k, x, acc);
  if (rows == 1) nibble_tile<F, 1>(panel, k, x, acc);
}

void byte_panel(const std::byte* panel, int64_t k, const XChunk& chunk, int rows, float* acc) {
  const std::byte* x = chunk.int16;
  const int64_t row_bytes = k / 32 * kInt16Record;
  for (; rows >= 4; rows -= 4, x += 4 * row_bytes, acc += 4 * kPanelColumns)
    byte_tile<4>(panel, k, x, acc);
  if (rows == 3) byte_tile<3>(panel, k, x, acc);
  if (rows == 2) byte_tile<2>(panel, k, x, acc);
  if (rows == 1) byte_tile<1>(panel, k, x, acc);
}

}  // namespace

PanelKernel quantised_panel_kernel(DType dtype) {
  switch (dtype) {
    case DType::kQ8_0:
      return byte_panel;
    case DType::kQ4_0:
      return nibble_panel<Q4_0>;
    case DType::kQ4_1:
      return nibble_panel<Q4_1>;
    case DType::kQ5_0:
      return nibble_panel<Q5_0>;
    case DType::kQ5_1:
      return nibble_panel<Q5_1>;
    case DType::kQ4_K:
      return nibble_panel<Q4_K>;
    case DType::kQ5_K:
      return nibble_panel<Q5_K>;
    case DType::kQ6_K:
      return nibble_panel<Q6_K>;
    default:
      return nullptr;
  }
}

}  // namespace capstan::kernels::avx2
