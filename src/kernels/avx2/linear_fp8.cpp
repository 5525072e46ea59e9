// Panels of F8_E4M3 weights with block scales, times float32 activations.
//
// Sign and the seven other bits of a code, moved to bits 31 and 26..20 of a float, are the code's
// value times 2^-120, subnormal codes included as long as denormals are not taken as zeros (DAZ,
// which compute threads set, is off in here; on Zen 3 a denormal factor costs nothing). Activations
// come scaled by 2^64, so that products lie in the middle of the range: nothing is lost above
// 2^-70 = 8e-22, nor below 2^64 for one activation. A multiplication of every decoded weight by
// 2^120 instead costs a third of the speed; half precision and vcvtph2ps, exact without either
// trick, more, because that instruction and the vextracti128 it needs issue once a cycle.
//
// Each block of 128 along k is summed from zero in ascending order, then added to the output by one
// FMA with its scale: the same sequence for every number of rows.
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

// Takes back 2^-120 of the weights and 2^64 of the activations.
constexpr float kUnscale = 0x1p56f;

inline PairOfRows widen_pair(const std::byte* p) {
  const __m256i mask = _mm256_set1_epi32(static_cast<int>(0x87f00000));
  const __m256i both = load(p);
  const __m256i odd = _mm256_srai_epi16(both, 4);
  const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(both, 8), 4);
  return {{{_mm256_castsi256_ps(_mm256_and_si256(_mm256_slli_epi32(even, 16), mask)),
            _mm256_castsi256_ps(_mm256_and_si256(even, mask))},
           {_mm256_castsi256_ps(_mm256_and_si256(_mm256_slli_epi32(odd, 16), mask)),
            _mm256_castsi256_ps(_mm256_and_si256(odd, mask))}}};
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
      const std::byte* pair = codes + b * kBlock * kPanelColumns;
      _mm_prefetch(reinterpret_cast<const char*>(pair + kAhead), _MM_HINT_T0);
      const PairOfRows w = widen_pair(pair);
      multiply<R>(w.v[0], x + b * kBlock + i, stride, acc[b]);
      multiply<R>(w.v[1], x + b * kBlock + i + 1, stride, acc[b]);
    }
  }
  if (B == 1 && n % 2 != 0) multiply<R>(widen_pair(codes).v[0], x + n - 1, stride, acc[0]);
  for (int b = 0; b < B; ++b) fold<R>(acc[b], _mm256_set1_ps(scales[b] * kUnscale), out);
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
#pragma GCC unroll 2
  for (int64_t i = 0; i < n; ++i, w += kPanelColumns) {
    const __m256 pair[2] = {_mm256_load_ps(w), _mm256_load_ps(w + 8)};
    multiply<R>(pair, x + i, stride, acc);
  }
  fold<R>(acc, scale, out);
}

void decode_block(const std::byte* codes, int64_t n, float* w) {
  for (int64_t i = 0; i < n; i += 2, codes += kPairBytes, w += 2 * kPanelColumns) {
    _mm_prefetch(reinterpret_cast<const char*>(codes + kAhead), _MM_HINT_T0);
    const PairOfRows pair = widen_pair(codes);
    _mm256_store_ps(w, pair.v[0][0]);
    _mm256_store_ps(w + 8, pair.v[0][1]);
    _mm256_store_ps(w + 16, pair.v[1][0]);
    _mm256_store_ps(w + 24, pair.v[1][1]);
  }
}

void decoded_panel(const std::byte* panel, int64_t k, const float* x, int64_t stride, int rows,
                   float* acc) {
  alignas(64) float block[kBlock * kPanelColumns];
  const auto* scales = reinterpret_cast<const float*>(panel);
  const std::byte* codes = panel + quant::fp8_panel_header(k);
  const int tiles = (rows + 5) / 6;
  for (int64_t i = 0; i < k; i += kBlock, codes += kBlock * kPanelColumns) {
    const int64_t n = std::min(kBlock, k - i);
    decode_block(codes, n, block);
    const __m256 scale = _mm256_set1_ps(scales[i / kBlock] * kUnscale);
    const float* tile = x + i;
    float* out = acc;
    // Tiles of equal height: 8 rows are faster as 4 + 4 than as 6 + 2.
    for (int t = 0; t < tiles; ++t) {
      const int height = rows * (t + 1) / tiles - rows * t / tiles;
      switch (height) {
        case 6:
          decoded_tile<6>(block, n, scale, tile, stride, out);
          break;
        case 5:
          decoded_tile<5>(block, n, scale, tile, stride, out);
          break;
        case 4:
          decoded_tile<4>(block, n, scale, tile, stride, out);
          break;
        default:
          decoded_tile<3>(block, n, scale, tile, stride, out);
      }
      tile += height * stride;
      out += height * kPanelColumns;
    }
  }
}

// Not inlined: no instruction may move across the changes of MXCSR around the call.
__attribute__((noinline)) void multiply_panel(const std::byte* panel, int64_t k, const float* x,
                                              int rows, float* acc) {
  std::fill_n(acc, rows * kPanelColumns, 0.0f);
  switch (rows) {
    case 1:
      return coded_panel<1, 2>(panel, k, x, k, acc);
    case 2:
      return coded_panel<2, 2>(panel, k, x, k, acc);
    case 3:
      return coded_panel<3, 1>(panel, k, x, k, acc);
    case 4:
      return coded_panel<4, 1>(panel, k, x, k, acc);
    case 7:  // decoding twice costs less than the way through memory
    case 8:
      coded_panel<4, 1>(panel, k, x, k, acc);
      return multiply_panel(panel, k, x + 4 * k, rows - 4, acc + 4 * kPanelColumns);
    default:
      return decoded_panel(panel, k, x, k, rows, acc);
  }
}

}  // namespace

void scale_rows(const float* x, int64_t stride, int64_t k, int rows, float* out) {
  constexpr float kScale = 0x1p64f;
  for (int r = 0; r < rows; ++r, x += stride, out += k) {
    for (int64_t i = 0; i < k; ++i) out[i] = x[i] * kScale;
  }
}

void fp8_panel(const std::byte* panel, int64_t k, const XChunk& chunk, int rows, float* acc) {
  constexpr unsigned kDenormalsAreZeros = 0x40;
  const unsigned csr = _mm_getcsr();
  _mm_setcsr(csr & ~kDenormalsAreZeros);
  multiply_panel(panel, k, chunk.scaled, rows, acc);
  _mm_setcsr(csr);
}

}  // namespace capstan::kernels::avx2
