// Panels of F8_E4M3 weights with block scales, times float32 activations.
//
// Two ways to widen a code, which give the same bits; which one is timed once:
//   Shifted  Sign and the seven other bits of a code, moved to bits 31 and 26..20 of a float, are
//            the code's value times 2^-120, subnormal codes included as long as denormals are not
//            taken as zeros (DAZ, which compute threads set, is off in here). Activations come
//            scaled by 2^64, so that products lie in the middle of the range: nothing is lost above
//            2^-70 = 8e-22, nor below 2^64 for one activation. A multiplication of every decoded
//            weight by 2^120 instead costs a third of the speed.
//   Halves   Moved to bits 15 and 13..7 of a half they are 2^-8 times the value, and vcvtph2ps is
//            exact for subnormals. It and the vextracti128 it needs issue once a cycle on Zen 3.
// A denormal factor costs nothing on Zen 3: 21, 39 and 42 multiply-adds a ns for 1, 4 and 32 rows
// on one core, by halves 12, 28 and 41. On Intel's CPUs it seems to cost a microcode assist: a
// prompt of 320 tokens took 2 s by Shifted on an Emerald Rapids where AVX-512's halves took 0.1 s.
//
// Each block of 128 along k is summed from zero in ascending order, then added to the output by one
// FMA with its scale: the same sequence for every number of rows.
#include "kernels/avx2/linear_fp8.h"

#include <xmmintrin.h>

#include <algorithm>

#include "kernels/avx2/linear_avx2.h"

namespace capstan::kernels::avx2 {

namespace {

constexpr int64_t kBlock = 128;
constexpr int64_t kPairBytes = 2 * kPanelColumns;
// Bytes between a read and its prefetch. One row from DRAM on one Zen 3 core: 12.1, 14.8, 14.0 and
// 14.4 weights a ns with 2, 4, 8 and 12 KiB; 6 without.
constexpr int64_t kAhead = 4096;

// Columns 0..7 and 8..15 of the two elements of a pair.
struct PairOfRows {
  __m256 v[2][2];
};

// A way to widen: kUnscale takes back the factors of weights and activations, in_order() puts a
// sum's lanes in the order of columns.
struct Shifted {
  static constexpr float kUnscale = 0x1p120f * 0x1p-64f;

  static PairOfRows widen(const std::byte* p) {
    const __m256i mask = _mm256_set1_epi32(static_cast<int>(0x87f00000));
    const __m256i both = load(p);
    const __m256i odd = _mm256_srai_epi16(both, 4);
    const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(both, 8), 4);
    return {{{_mm256_castsi256_ps(_mm256_and_si256(_mm256_slli_epi32(even, 16), mask)),
              _mm256_castsi256_ps(_mm256_and_si256(even, mask))},
             {_mm256_castsi256_ps(_mm256_and_si256(_mm256_slli_epi32(odd, 16), mask)),
              _mm256_castsi256_ps(_mm256_and_si256(odd, mask))}}};
  }
  static void in_order(__m256 /*sum*/[2]) {}
};

struct Halves {
  static constexpr float kUnscale = 0x1p8f * 0x1p-64f;

  static PairOfRows widen(const std::byte* p) {
    const __m256i mask = _mm256_set1_epi16(static_cast<int16_t>(0xbf80));
    const __m256i both = load(p);
    PairOfRows pair;
    to_floats(_mm256_and_si256(_mm256_srai_epi16(_mm256_slli_epi16(both, 8), 1), mask), pair.v[0]);
    to_floats(_mm256_and_si256(_mm256_srai_epi16(both, 1), mask), pair.v[1]);
    return pair;
  }
  // From the panel's order 0, 8, 1, 9, ...
  static void in_order(__m256 sum[2]) {
    const auto quarters = [](__m256 v) {
      return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(v), 0xd8));
    };
    const __m256 low = quarters(_mm256_shuffle_ps(sum[0], sum[1], 0x88));
    sum[1] = quarters(_mm256_shuffle_ps(sum[0], sum[1], 0xdd));
    sum[0] = low;
  }

 private:
  static void to_floats(__m256i halves, __m256 out[2]) {
    out[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(halves));
    out[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(halves, 1));
  }
};

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

// out += scale * acc, whose lanes are put in order
template <class W, int R>
inline void fold(__m256 acc[R][2], __m256 scale, float* out) {
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) {
    W::in_order(acc[r]);
    for (int v = 0; v < 2; ++v) {
      float* o = out + r * kPanelColumns + v * 8;
      _mm256_store_ps(o, _mm256_fmadd_ps(acc[r][v], scale, _mm256_load_ps(o)));
    }
  }
}

// R rows times B blocks in lockstep: for few rows the chains of FMAs of one block are too few to
// fill two pipes for four cycles. n <= 128 elements of each block; less only with B = 1.
template <class W, int R, int B>
inline void coded_blocks(const std::byte* codes, const float* scales, int64_t n, const float* x,
                         int64_t stride, float* out) {
  __m256 acc[B][R][2];
  for (int b = 0; b < B; ++b) clear<R>(acc[b]);
  for (int64_t i = 0; i + 2 <= n; i += 2, codes += kPairBytes) {
#pragma GCC unroll 4
    for (int b = 0; b < B; ++b) {
      const std::byte* pair = codes + b * kBlock * kPanelColumns;
      _mm_prefetch(reinterpret_cast<const char*>(pair + kAhead), _MM_HINT_T0);
      const PairOfRows w = W::widen(pair);
      multiply<R>(w.v[0], x + b * kBlock + i, stride, acc[b]);
      multiply<R>(w.v[1], x + b * kBlock + i + 1, stride, acc[b]);
    }
  }
  if (B == 1 && n % 2 != 0) multiply<R>(W::widen(codes).v[0], x + n - 1, stride, acc[0]);
  for (int b = 0; b < B; ++b) fold<W, R>(acc[b], _mm256_set1_ps(scales[b] * W::kUnscale), out);
}

// A whole panel for one tile of rows, decoded on the way.
template <class W, int R, int B>
void coded_panel(const std::byte* panel, int64_t k, const float* x, int64_t stride, float* out) {
  const auto* scales = reinterpret_cast<const float*>(panel);
  const std::byte* codes = panel + quant::fp8_panel_header(k);
  int64_t i = 0;
  for (; i + B * kBlock <= k; i += B * kBlock) {
    coded_blocks<W, R, B>(codes + i * kPanelColumns, scales + i / kBlock, kBlock, x + i, stride,
                          out);
  }
  for (; i < k; i += kBlock) {
    coded_blocks<W, R, 1>(codes + i * kPanelColumns, scales + i / kBlock, std::min(kBlock, k - i),
                          x + i, stride, out);
  }
}

// One decoded block for a tile of rows.
template <class W, int R>
void decoded_tile(const float* w, int64_t n, __m256 scale, const float* x, int64_t stride,
                  float* out) {
  __m256 acc[R][2];
  clear<R>(acc);
#pragma GCC unroll 2
  for (int64_t i = 0; i < n; ++i, w += kPanelColumns) {
    const __m256 pair[2] = {_mm256_load_ps(w), _mm256_load_ps(w + 8)};
    multiply<R>(pair, x + i, stride, acc);
  }
  fold<W, R>(acc, scale, out);
}

template <class W>
void decode_block(const std::byte* codes, int64_t n, float* w) {
  for (int64_t i = 0; i < n; i += 2, codes += kPairBytes, w += 2 * kPanelColumns) {
    _mm_prefetch(reinterpret_cast<const char*>(codes + kAhead), _MM_HINT_T0);
    const PairOfRows pair = W::widen(codes);
    _mm256_store_ps(w, pair.v[0][0]);
    _mm256_store_ps(w + 8, pair.v[0][1]);
    _mm256_store_ps(w + 16, pair.v[1][0]);
    _mm256_store_ps(w + 24, pair.v[1][1]);
  }
}

template <class W>
void decoded_panel(const std::byte* panel, int64_t k, const float* x, int64_t stride, int rows,
                   float* acc) {
  alignas(64) float block[kBlock * kPanelColumns];
  const auto* scales = reinterpret_cast<const float*>(panel);
  const std::byte* codes = panel + quant::fp8_panel_header(k);
  const int tiles = (rows + 5) / 6;
  for (int64_t i = 0; i < k; i += kBlock, codes += kBlock * kPanelColumns) {
    const int64_t n = std::min(kBlock, k - i);
    decode_block<W>(codes, n, block);
    const __m256 scale = _mm256_set1_ps(scales[i / kBlock] * W::kUnscale);
    const float* tile = x + i;
    float* out = acc;
    // Tiles of equal height: 8 rows are faster as 4 + 4 than as 6 + 2.
    for (int t = 0; t < tiles; ++t) {
      const int height = rows * (t + 1) / tiles - rows * t / tiles;
      switch (height) {
        case 6:
          decoded_tile<W, 6>(block, n, scale, tile, stride, out);
          break;
        case 5:
          decoded_tile<W, 5>(block, n, scale, tile, stride, out);
          break;
        case 4:
          decoded_tile<W, 4>(block, n, scale, tile, stride, out);
          break;
        default:
          decoded_tile<W, 3>(block, n, scale, tile, stride, out);
      }
      tile += height * stride;
      out += height * kPanelColumns;
    }
  }
}

// Not inlined: no instruction may move across the changes of MXCSR around the call.
template <class W>
__attribute__((noinline)) void multiply_panel(const std::byte* panel, int64_t k, const float* x,
                                              int rows, float* acc) {
  std::fill_n(acc, rows * kPanelColumns, 0.0f);
  switch (rows) {
    case 1:
      return coded_panel<W, 1, 2>(panel, k, x, k, acc);
    case 2:
      return coded_panel<W, 2, 2>(panel, k, x, k, acc);
    case 3:
      return coded_panel<W, 3, 1>(panel, k, x, k, acc);
    case 4:
      return coded_panel<W, 4, 1>(panel, k, x, k, acc);
    case 7:  // decoding twice costs less than the way through memory
    case 8:
      coded_panel<W, 4, 1>(panel, k, x, k, acc);
      return multiply_panel<W>(panel, k, x + 4 * k, rows - 4, acc + 4 * kPanelColumns);
    default:
      return decoded_panel<W>(panel, k, x, k, rows, acc);
  }
}

}  // namespace

void scale_rows(const float* x, int64_t stride, int64_t k, int rows, float* out) {
  constexpr float kScale = 0x1p64f;
  for (int r = 0; r < rows; ++r, x += stride, out += k) {
    for (int64_t i = 0; i < k; ++i) out[i] = x[i] * kScale;
  }
}

void fp8_panel_shifted(const std::byte* panel, int64_t k, const XChunk& chunk, int rows,
                       float* acc) {
  constexpr unsigned kDenormalsAreZeros = 0x40;
  const unsigned csr = _mm_getcsr();
  _mm_setcsr(csr & ~kDenormalsAreZeros);
  multiply_panel<Shifted>(panel, k, chunk.scaled, rows, acc);
  _mm_setcsr(csr);
}

void fp8_panel_halves(const std::byte* panel, int64_t k, const XChunk& chunk, int rows,
                      float* acc) {
  multiply_panel<Halves>(panel, k, chunk.scaled, rows, acc);
}

}  // namespace capstan::kernels::avx2
