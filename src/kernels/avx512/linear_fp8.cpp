// Panels of F8_E4M3 weights with block scales, times float32 activations.
//
// A code becomes the half-precision number of 2^-8 times its value by moving bits: sign to bit 15,
// the seven others to bits 13..7. vcvtph2ps widens that exactly, subnormals included and whatever
// MXCSR says; avx2/linear_fp8.cpp, where that instruction is slow, has another way. Registers hold
// the columns in the panel's order (0, 8, 1, 9, ...) until a block's sum is added to the output.
#include <algorithm>

#include "kernels/avx512/linear_avx512.h"

namespace capstan::kernels::avx512 {

namespace {

constexpr int64_t kBlock = 128;
constexpr int64_t kPairBytes = 2 * kPanelColumns;
constexpr float kCodeScale = 256.0f;

// The two elements of a pair.
struct PairOfRows {
  __m512 v[2];
};

inline PairOfRows widen_pair(const std::byte* p) {
  const __m256i mask = _mm256_set1_epi16(static_cast<int16_t>(0xbf80));
  const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i odd = _mm256_and_si256(_mm256_srai_epi16(both, 1), mask);
  const __m256i even = _mm256_and_si256(_mm256_srai_epi16(_mm256_slli_epi16(both, 8), 1), mask);
  return {{_mm512_cvtph_ps(even), _mm512_cvtph_ps(odd)}};
}

template <int R>
inline void multiply(__m512 w, const float* x, int64_t stride, __m512 acc[R]) {
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) acc[r] = _mm512_fmadd_ps(w, _mm512_set1_ps(x[r * stride]), acc[r]);
}

template <int R>
inline void clear(__m512 acc[R]) {
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) acc[r] = _mm512_setzero_ps();
}

// out += scale * acc, columns in order
template <int R>
inline void fold(const __m512 acc[R], __m512 scale, float* out) {
  const __m512i order = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
    float* o = out + r * kPanelColumns;
    _mm512_storeu_ps(
        o, _mm512_fmadd_ps(_mm512_permutexvar_ps(order, acc[r]), scale, _mm512_loadu_ps(o)));
  }
}

template <int R, int B>
inline void coded_blocks(const std::byte* codes, const float* scales, int64_t n, const float* x,
                         int64_t stride, float* out) {
  __m512 acc[B][R];
  for (int b = 0; b < B; ++b) clear<R>(acc[b]);
  for (int64_t i = 0; i + 2 <= n; i += 2, codes += kPairBytes) {
#pragma GCC unroll 8
    for (int b = 0; b < B; ++b) {
      const std::byte* pair = codes + b * kBlock * kPanelColumns;
      _mm_prefetch(reinterpret_cast<const char*>(pair + kAhead), _MM_HINT_T0);
      const PairOfRows w = widen_pair(pair);
      multiply<R>(w.v[0], x + b * kBlock + i, stride, acc[b]);
      multiply<R>(w.v[1], x + b * kBlock + i + 1, stride, acc[b]);
    }
  }
  if (B == 1 && n % 2 != 0) multiply<R>(widen_pair(codes).v[0], x + n - 1, stride, acc[0]);
  for (int b = 0; b < B; ++b) fold<R>(acc[b], _mm512_set1_ps(scales[b] * kCodeScale), out);
}

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

template <int R>
void decoded_tile(const float* w, int64_t n, __m512 scale, const float* x, int64_t stride,
                  float* out) {
  __m512 acc[R];
  clear<R>(acc);
  for (int64_t i = 0; i < n; ++i)
    multiply<R>(_mm512_loadu_ps(w + i * kPanelColumns), x + i, stride, acc);
  fold<R>(acc, scale, out);
}

void decode_block(const std::byte* codes, int64_t n, float* w) {
  for (int64_t i = 0; i < n; i += 2, codes += kPairBytes, w += 2 * kPanelColumns) {
    const PairOfRows pair = widen_pair(codes);
    _mm512_storeu_ps(w, pair.v[0]);
    _mm512_storeu_ps(w + kPanelColumns, pair.v[1]);
  }
}

}  // namespace

void fp8_panel(const std::byte* panel, int64_t k, const XChunk& chunk, int rows, float* acc) {
  std::fill_n(acc, rows * kPanelColumns, 0.0f);
  const float* x = chunk.f32;
  const int64_t stride = chunk.stride;
  switch (rows) {
    case 1:
      return coded_panel<1, 8>(panel, k, x, stride, acc);
    case 2:
      return coded_panel<2, 4>(panel, k, x, stride, acc);
    case 3:
      return coded_panel<3, 2>(panel, k, x, stride, acc);
    case 4:
      return coded_panel<4, 2>(panel, k, x, stride, acc);
    default:
      break;
  }
  alignas(64) float block[kBlock * kPanelColumns];
  const auto* scales = reinterpret_cast<const float*>(panel);
  const std::byte* codes = panel + quant::fp8_panel_header(k);
  for (int64_t i = 0; i < k; i += kBlock, codes += kBlock * kPanelColumns) {
    const int64_t n = std::min(kBlock, k - i);
    decode_block(codes, n, block);
    const __m512 scale = _mm512_set1_ps(scales[i / kBlock] * kCodeScale);
    const float* tile = x + i;
    float* out = acc;
    int left = rows;
    for (; left >= 12; left -= 12, tile += 12 * stride, out += 12 * kPanelColumns)
      decoded_tile<12>(block, n, scale, tile, stride, out);
    for (; left >= 4; left -= 4, tile += 4 * stride, out += 4 * kPanelColumns)
      decoded_tile<4>(block, n, scale, tile, stride, out);
    if (left == 3) decoded_tile<3>(block, n, scale, tile, stride, out);
    if (left == 2) decoded_tile<2>(block, n, scale, tile, stride, out);
    if (left == 1) decoded_tile<1>(block, n, scale, tile, stride, out);
  }
}

}  // namespace capstan::kernels::avx512
