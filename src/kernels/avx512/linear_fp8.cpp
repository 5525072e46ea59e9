// Panels of F8_E4M3 weights with block scales, times float32 activations.
//
// A code becomes the half-precision number of 2^-8 times its value by moving bits: sign to bit 15,
// the seven others to bits 13..7. vcvtph2ps widens that exactly, subnormals included and whatever
// MXCSR says; avx2/linear_fp8.cpp, where that instruction is slow, has another way. Registers hold
// the columns in the panel's order (0, 8, 1, 9, ...) until a block's sum is added to the output.
//
// Each block of 128 along k is summed from zero, even and odd elements apart, both added at its end
// and to the output by one FMA with the block's scale: the same sequence for every number of rows.
// A panel is read from first to last byte. One row on two Zen 4 threads: 29 to 37 GB/s while DRAM
// gave 33 to 38, 35 to 42 while it gave 55 to 64, 43 from L3; reading eight blocks at once, one sum
// each, 24, 24 and 34. Five to eleven rows decode as they go: 8 rows 112 GMAC/s, by way of L1 67.
#include <algorithm>

#include "kernels/avx512/linear_avx512.h"

namespace capstan::kernels::avx512 {

namespace {

constexpr int64_t kBlock = 128;
constexpr int64_t kPairBytes = 2 * kPanelColumns;
constexpr float kCodeScale = 256.0f;
constexpr int kMostRows = 12;

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

// out += scale * (even + odd), columns in order
template <int R>
inline void fold(const __m512 even[R], const __m512 odd[R], __m512 scale, float* out) {
  const __m512i order = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15);
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
    float* o = out + r * kPanelColumns;
    const __m512 sum = _mm512_permutexvar_ps(order, _mm512_add_ps(even[r], odd[r]));
    _mm512_storeu_ps(o, _mm512_fmadd_ps(sum, scale, _mm512_loadu_ps(o)));
  }
}

template <int R>
inline void coded_block(const std::byte* codes, float scale, int64_t n, const float* x,
                        int64_t stride, float* out) {
  __m512 even[R], odd[R];
  clear<R>(even);
  clear<R>(odd);
  for (int64_t i = 0; i + 2 <= n; i += 2, codes += kPairBytes) {
    _mm_prefetch(reinterpret_cast<const char*>(codes + kAhead), _MM_HINT_T0);
    const PairOfRows w = widen_pair(codes);
    multiply<R>(w.v[0], x + i, stride, even);
    multiply<R>(w.v[1], x + i + 1, stride, odd);
  }
  if (n % 2 != 0) multiply<R>(widen_pair(codes).v[0], x + n - 1, stride, even);
  fold<R>(even, odd, _mm512_set1_ps(scale * kCodeScale), out);
}

template <int R>
void coded_panel(const std::byte* panel, int64_t k, const float* x, int64_t stride, float* out) {
  const auto* scales = reinterpret_cast<const float*>(panel);
  const std::byte* codes = panel + quant::fp8_panel_header(k);
  int64_t i = 0;
  for (; i + kBlock <= k; i += kBlock)
    coded_block<R>(codes + i * kPanelColumns, scales[i / kBlock], kBlock, x + i, stride, out);
  if (i < k)
    coded_block<R>(codes + i * kPanelColumns, scales[i / kBlock], k - i, x + i, stride, out);
}

template <int R>
void decoded_tile(const float* w, int64_t n, __m512 scale, const float* x, int64_t stride,
                  float* out) {
  __m512 even[R], odd[R];
  clear<R>(even);
  clear<R>(odd);
  int64_t i = 0;
  for (; i + 2 <= n; i += 2) {
    multiply<R>(_mm512_loadu_ps(w + i * kPanelColumns), x + i, stride, even);
    multiply<R>(_mm512_loadu_ps(w + (i + 1) * kPanelColumns), x + i + 1, stride, odd);
  }
  if (i < n) multiply<R>(_mm512_loadu_ps(w + i * kPanelColumns), x + i, stride, even);
  fold<R>(even, odd, scale, out);
}

void decode_block(const std::byte* codes, int64_t n, float* w) {
  for (int64_t i = 0; i < n; i += 2, codes += kPairBytes, w += 2 * kPanelColumns) {
    const PairOfRows pair = widen_pair(codes);
    _mm512_storeu_ps(w, pair.v[0]);
    _mm512_storeu_ps(w + kPanelColumns, pair.v[1]);
  }
}

using CodedPanel = void (*)(const std::byte*, int64_t, const float*, int64_t, float*);
constexpr CodedPanel kCoded[kMostRows] = {coded_panel<1>,  coded_panel<2>,  coded_panel<3>,
                                          coded_panel<4>,  coded_panel<5>,  coded_panel<6>,
                                          coded_panel<7>,  coded_panel<8>,  coded_panel<9>,
                                          coded_panel<10>, coded_panel<11>, coded_panel<12>};
}  // namespace

void fp8_panel(const std::byte* panel, int64_t k, const XChunk& chunk, int rows, float* acc) {
  std::fill_n(acc, rows * kPanelColumns, 0.0f);
  const float* x = chunk.f32;
  const int64_t stride = chunk.stride;
  if (rows <= kMostRows) return kCoded[rows - 1](panel, k, x, stride, acc);
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
