// Panels of F8_E4M3 weights with block scales, times float32 activations.
//
// A code becomes the half-precision number of 2^-8 times its value by moving bits: sign to bit 15,
// the seven others to bits 13..7. vcvtph2ps widens that exactly, subnormals included and whatever
// MXCSR says. Each block of 128 along k is summed from zero in ascending order, then added to the
// output by one FMA with its scale (times 2^8): the same sequence for every number of rows.
#include <algorithm>

#include "kernels/avx2/linear_avx2.h"

namespace capstan::kernels::avx2 {

namespace {

constexpr int64_t kBlock = 128;
constexpr int64_t kPairBytes = 2 * kPanelColumns;
constexpr float kCodeScale = 256.0f;

// Columns 0..7 and 8..15 of the two elements of a pair.
struct PairOfRows {
  __m256 v[2][2];
};

inline PairOfRows widen_pair(const std::byte* p) {
  const __m256i mask = _mm256_set1_epi16(static_cast<int16_t>(0xbf80));
  const __m256i both = load(p);
  const __m256i odd = _mm256_and_si256(_mm256_srai_epi16(both, 1), mask);
  const __m256i even = _mm256_and_si256(_mm256_srai_epi16(_mm256_slli_epi16(both, 8), 1), mask);
  return {{{_mm256_cvtph_ps(_mm256_castsi256_si128(even)),
            _mm256_cvtph_ps(_mm256_extracti128_si256(even, 1))},
           {_mm256_cvtph_ps(_mm256_castsi256_si128(odd)),
            _mm256_cvtph_ps(_mm256_extracti128_si256(odd, 1))}}};
}

template <int R>
inline void multiply(const __m256 w[2], const float* x, int64_t stride, __m256 acc[R][2]) {
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
    const __m256 xr = _mm256_broadcast_ss(x + r * stride);
    acc[r][0] = _mm256_fmadd_ps(w[0], xr, acc[r][0]);
    acc[r][1] = _mm256_fmadd_ps(w[1], xr, acc[r][1]);
  }
}

template <int R>
inline void clear(__m256 acc[R][2]) {
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_ps();
}

// out += scale * acc
template <int R>
inline void fold(const __m256 acc[R][2], __m256 scale, float* out) {
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < 2; ++v) {
      float* o = out + r * kPanelColumns + v * 8;
      _mm256_store_ps(o, _mm256_fmadd_ps(acc[r][v], scale, _mm256_load_ps(o)));
    }
  }
}

// R rows times B blocks in lockstep: for few rows the chains of FMAs of one block are too few to
// fill two pipes for four cycles. n <= 128 elements of each block; less only with B = 1.
template <int R, int B>
inline void coded_blocks(const std::byte* codes, const float* scales, int64_t n, const float* x,
                         int64_t stride, float* out) {
  __m256 acc[B][R][2];
  for (int b = 0; b < B; ++b) clear<R>(acc[b]);
  for (int64_t i = 0; i + 2 <= n; i += 2, codes += kPairBytes) {
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) {
      const PairOfRows w = widen_pair(codes + b * kBlock * kPanelColumns);
      multiply<R>(w.v[0], x + b * kBlock + i, stride, acc[b]);
      multiply<R>(w.v[1], x + b * kBlock + i + 1, stride, acc[b]);
    }
  }
  if (B == 1 && n % 2 != 0) multiply<R>(widen_pair(codes).v[0], x + n - 1, stride, acc[0]);
  for (int b = 0; b < B; ++b) fold<R>(acc[b], _mm256_set1_ps(scales[b] * kCodeScale), out);
}

// A whole panel for one tile of rows, decoded on the way.
template <int R, int B>
void coded_panel(const std::byte* panel, int64_t k, const float* x, int64_t stride, float* out) {
  const auto* scales = reinterpret_cast<const float*>(panel);
  const std::byte* codes = panel + quant::fp8_panel_header(k);
  int64_t i = 0;
  for (; i + B * kBlock <= k; i += B * kBlock) {
    coded_blocks<R, B>(codes + i * kPanelColumns, scales + i / kBlock, kBlock, x + i, stride, out);
  }
  for (; i < k; i += kBlock) {
    coded_blocks<R, 1>(codes + i * kPanelColumns, scales + i / kBlock, std::min(kBlock, k - i),
                       x + i, stride, out);
  }
}

// One decoded block for a tile of rows.
template <int R>
void decoded_tile(const float* w, int64_t n, __m256 scale, const float* x, int64_t stride,
                  float* out) {
  __m256 acc[R][2];
  clear<R>(acc);
  for (int64_t i = 0; i < n; ++i, w += kPanelColumns) {
    const __m256 pair[2] = {_mm256_load_ps(w), _mm256_load_ps(w + 8)};
    multiply<R>(pair, x + i, stride, acc);
  }
  fold<R>(acc, scale, out);
}

void decode_block(const std::byte* codes, int64_t n, float* w) {
  for (int64_t i = 0; i < n; i += 2, codes += kPairBytes, w += 2 * kPanelColumns) {
    const PairOfRows pair = widen_pair(codes);
    _mm256_store_ps(w, pair.v[0][0]);
    _mm256_store_ps(w + 8, pair.v[0][1]);
    _mm256_store_ps(w + 16, pair.v[1][0]);
    _mm256_store_ps(w + 24, pair.v[1][1]);
  }
}

}  // namespace

void fp8_panel(const std::byte* panel, int64_t k, const XChunk& chunk, int rows, float* acc) {
  std::fill_n(acc, rows * kPanelColumns, 0.0f);
  const float* x = chunk.f32;
  const int64_t stride = chunk.stride;
  switch (rows) {
    case 1:
      return coded_panel<1, 4>(panel, k, x, stride, acc);
    case 2:
      return coded_panel<2, 2>(panel, k, x, stride, acc);
    case 3:
      return coded_panel<3, 1>(panel, k, x, stride, acc);
    case 4:
      return coded_panel<4, 1>(panel, k, x, stride, acc);
    default:
      break;
  }
  alignas(64) float block[kBlock * kPanelColumns];
  const auto* scales = reinterpret_cast<const float*>(panel);
  const std::byte* codes = panel + quant::fp8_panel_header(k);
  for (int64_t i = 0; i < k; i += kBlock, codes += kBlock * kPanelColumns) {
    const int64_t n = std::min(kBlock, k - i);
    decode_block(codes, n, block);
    const __m256 scale = _mm256_set1_ps(scales[i / kBlock] * kCodeScale);
    const float* tile = x + i;
    float* out = acc;
    int left = rows;
    for (; left >= 6; left -= 6, tile += 6 * stride, out += 6 * kPanelColumns)
      decoded_tile<6>(block, n, scale, tile, stride, out);
    if (left == 5) decoded_tile<5>(block, n, scale, tile, stride, out);
    if (left == 4) decoded_tile<4>(block, n, scale, tile, stride, out);
    if (left == 3) decoded_tile<3>(block, n, scale, tile, stride, out);
    if (left == 2) decoded_tile<2>(block, n, scale, tile, stride, out);
    if (left == 1) decoded_tile<1>(block, n, scale, tile, stride, out);
  }
}

}  // namespace capstan::kernels::avx2
