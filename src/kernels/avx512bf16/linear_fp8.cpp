// Panels of F8_E4M3 weights with block scales, times BF16 activations.
//
// Every E4M3 value is a BF16 number, and two tables of 128 bytes (vpermi2b) give its halves, for
// subnormal codes a normal number: vdpbf16ps takes denormals as zeros. It adds two products in
// float32, 32 multiply-adds where an FMA does 16.
//
// Each block of 128 along k is summed from zero, elements 4i and 4i+1 in one sum, 4i+2 and 4i+3 in
// another, added at its end and to the output by one FMA with the block's scale: the same sequence
// for every number of rows. One sum would wait for vdpbf16ps: one row from L2, two Zen 4 threads,
// 55 GB/s with one sum, 78 with two, 77 with four. A panel is read from first to last byte; in the
// loop that this one came from, reads of two to eight blocks at once got 13 to 25 GB/s from DRAM
// where one stream got 50.
//
// One term of BF16 per activation is a cosine difference of 1.3e-6 and at most 1.8e-3 of the
// largest output. Sums of two and three terms: 2.5e-6 and 4.6e-7 of the largest, 99 and 51 GMAC/s
// at four rows where one term runs at 150; float32 (avx512/linear_fp8.cpp) is as fast as two.
#include <immintrin.h>

#include <algorithm>
#include <array>

#include "kernels/avx512bf16/linear_bf16.h"

namespace capstan::kernels::avx512bf16 {

namespace {

constexpr int64_t kBlock = 128;
constexpr int64_t kStep = 4;  // elements of k in 64 bytes of codes
constexpr int kMostRows = 12;
// How far ahead codes are prefetched; see avx512/linear_avx512.h.
constexpr int64_t kAhead = 4096;

/// High halves of the floats of codes 0 to 127; code 127, a NaN that packing refuses, as 480.
constexpr uint16_t bf16_of(int code) {
  int exponent = code >> 3, mantissa = code & 7;
  if (exponent == 0) {
    if (mantissa == 0) return 0;
    for (exponent = 1; mantissa < 8; --exponent) mantissa *= 2;
  }
  return static_cast<uint16_t>((exponent + 120) << 7 | (mantissa & 7) << 4);
}

struct Bytes {
  alignas(64) std::array<uint8_t, 64> v;
};
/// Bytes `first` to first + 63 of the low (half 0) or high halves' table.
constexpr Bytes half_table(int half, int first) {
  Bytes t{};
  for (size_t i = 0; i < 64; ++i)
    t.v[i] = static_cast<uint8_t>(bf16_of(first + static_cast<int>(i)) >> 8 * half);
  return t;
}
/// Where the two halves of 16 columns' pairs lie among 64 low and 64 high halves: columns in order
/// from the panel's words 0, 8, 1, 9, ...; `pair` 0 or 1.
constexpr Bytes interleaving(int pair) {
  Bytes t{};
  for (size_t c = 0; c < 16; ++c) {
    const size_t word = c % 8 * 2 + c / 8;
    for (size_t e = 0; e < 2; ++e) {
      const size_t code = static_cast<size_t>(pair) * 32 + word * 2 + e;
      t.v[c * 4 + e * 2] = static_cast<uint8_t>(code);
      t.v[c * 4 + e * 2 + 1] = static_cast<uint8_t>(64 + code);
    }
  }
  return t;
}
constexpr Bytes kLow[2] = {half_table(0, 0), half_table(0, 64)};
constexpr Bytes kHigh[2] = {half_table(1, 0), half_table(1, 64)};
constexpr Bytes kPairs[2] = {interleaving(0), interleaving(1)};

struct Tables {
  __m512i low[2], high[2], pairs[2], sign;
};
inline Tables tables() {
  const auto get = [](const Bytes& b) { return _mm512_loadu_si512(b.v.data()); };
  return {{get(kLow[0]), get(kLow[1])},
          {get(kHigh[0]), get(kHigh[1])},
          {get(kPairs[0]), get(kPairs[1])},
          _mm512_set1_epi8(static_cast<char>(0x80))};
}

/// Elements 4i, 4i+1 and 4i+2, 4i+3 of sixteen columns.
struct Step {
  __m512i v[2];
};
inline Step decode(const Tables& t, __m512i codes) {
  const __m512i low = _mm512_permutex2var_epi8(t.low[0], codes, t.low[1]);
  const __m512i magnitude = _mm512_permutex2var_epi8(t.high[0], codes, t.high[1]);
  const __m512i high = _mm512_or_si512(magnitude, _mm512_and_si512(codes, t.sign));
  return {{_mm512_permutex2var_epi8(low, t.pairs[0], high),
           _mm512_permutex2var_epi8(low, t.pairs[1], high)}};
}

// acc += w * a pair of activations, broadcast. Assembly for the reason that linear_avx512.h names.
inline void mac(__m512& acc, __m512i w, const std::byte* x) {
#if defined(CAPSTAN_SIMDE)
  uint32_t pair;
  __builtin_memcpy(&pair, x, 4);
  const auto low = [](__m512i v) { return _mm512_castsi512_ps(_mm512_slli_epi32(v, 16)); };
  const auto high = [](__m512i v) {
    return _mm512_castsi512_ps(_mm512_and_si512(v, _mm512_set1_epi32(-65536)));
  };
  const __m512i both = _mm512_set1_epi32(static_cast<int>(pair));
  acc = _mm512_fmadd_ps(high(w), high(both), _mm512_fmadd_ps(low(w), low(both), acc));
#else
  __asm__("vdpbf16ps %[x]%{1to16%}, %[w], %[acc]"
          : [acc] "+v"(acc)
          : [w] "v"(w), [x] "m"(*reinterpret_cast<const int*>(x)));
#endif
}

/// Where the records of R rows' block are: tiles of four rows, and one of the rest.
template <int R>
struct Rows {
  const std::byte* tile[(R + kTileRows - 1) / kTileRows];

  const std::byte* row(int r) const { return tile[r / kTileRows] + r % kTileRows * kXBf16Record; }
  void next_block() {
    for (int t = 0; t * kTileRows < R; ++t)
      tile[t] += std::min(kTileRows, R - t * kTileRows) * kXBf16Record;
  }
};

template <int R>
inline void multiply(const Step& w, const Rows<R>& x, int64_t i, __m512 acc[2][R]) {
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) mac(acc[0][r], w.v[0], x.row(r) + 2 * i);
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) mac(acc[1][r], w.v[1], x.row(r) + 2 * i + 4);
}

template <int R>
inline void clear(__m512 acc[2][R]) {
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) acc[0][r] = acc[1][r] = _mm512_setzero_ps();
}

/// out += scale * the block's sums.
template <int R>
inline void fold(const __m512 acc[2][R], float scale, float* out) {
  const __m512 factor = _mm512_set1_ps(scale);
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
    float* o = out + r * kPanelColumns;
    const __m512 sum = _mm512_add_ps(acc[0][r], acc[1][r]);
    _mm512_storeu_ps(o, _mm512_fmadd_ps(sum, factor, _mm512_loadu_ps(o)));
  }
}

template <int R>
inline void whole_block(const Tables& t, const std::byte* codes, float scale, const Rows<R>& x,
                        float* out) {
  __m512 acc[2][R];
  clear<R>(acc);
  for (int64_t i = 0; i < kBlock; i += kStep, codes += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(codes + kAhead), _MM_HINT_T0);
    multiply<R>(decode(t, _mm512_loadu_si512(codes)), x, i, acc);
  }
  fold<R>(acc, scale, out);
}

/// The last n < 128 elements.
template <int R>
void rest_of_block(const Tables& t, const std::byte* codes, int64_t n, float scale,
                   const Rows<R>& x, float* out) {
  __m512 acc[2][R];
  clear<R>(acc);
  for (int64_t i = 0; i < n; i += kStep, codes += 64) {
    // The panel may end with half a step; the records' zeros make the other half count nothing.
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(codes));
    const __m512i step =
        n - i > 2 ? _mm512_loadu_si512(codes) : _mm512_inserti64x4(_mm512_setzero_si512(), half, 0);
    multiply<R>(decode(t, step), x, i, acc);
  }
  fold<R>(acc, scale, out);
}

/// The whole panel for R rows. Weights are decoded again for the next twelve: 206 GMAC/s from L2 on
/// two Zen 4 threads, 87% of the BF16 peak; 164 to 194 in a prefill of 512 rows.
template <int R>
void tile(const std::byte* panel, int64_t k, const std::byte* records, float* out) {
  const Tables t = tables();
  const auto* scales = reinterpret_cast<const float*>(panel);
  const std::byte* codes = panel + quant::fp8_panel_header(k);
  Rows<R> x;
  const int64_t tile_bytes = kTileRows * ((k + kBlock - 1) / kBlock) * kXBf16Record;
  for (int i = 0; i * kTileRows < R; ++i) x.tile[i] = records + i * tile_bytes;
  std::fill_n(out, R * kPanelColumns, 0.0f);
  int64_t i = 0;
  for (; i + kBlock <= k; i += kBlock, codes += kBlock * kPanelColumns) {
    whole_block<R>(t, codes, scales[i / kBlock], x, out);
    x.next_block();
  }
  if (i < k) rest_of_block<R>(t, codes, k - i, scales[i / kBlock], x, out);
}

using Tile = void (*)(const std::byte*, int64_t, const std::byte*, float*);
constexpr Tile kTiles[kMostRows] = {tile<1>, tile<2>, tile<3>, tile<4>,  tile<5>,  tile<6>,
                                    tile<7>, tile<8>, tile<9>, tile<10>, tile<11>, tile<12>};

/// To nearest even; NaNs stay NaNs.
inline __m256i to_bf16(__m512 v) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x00400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_mask_mov_epi32(up, nan, quiet), 16));
}

}  // namespace

void round_bf16(const float* x, int64_t stride, int64_t k, int rows, std::byte* out) {
  for (int64_t i = 0; i < k; i += kBlock) {
    const int64_t n = std::min(kBlock, k - i);
    for (int r = 0; r < rows; ++r, out += kXBf16Record) {
      const float* from = x + r * stride + i;
      auto* to = reinterpret_cast<__m256i*>(out);
      for (int64_t j = 0; j < kBlock; j += 16, ++to) {
        if (j + 16 <= n) {
          _mm256_storeu_si256(to, to_bf16(_mm512_loadu_ps(from + j)));
          continue;
        }
        float rest[16] = {};
        if (j < n) std::copy_n(from + j, n - j, rest);
        _mm256_storeu_si256(to, to_bf16(_mm512_loadu_ps(rest)));
      }
    }
  }
}

void fp8_panel(const std::byte* panel, int64_t k, const XChunk& chunk, int rows, float* acc) {
  const std::byte* x = chunk.bf16;
  const int64_t row_bytes = (k + kBlock - 1) / kBlock * kXBf16Record;
  while (rows > kMostRows) {
    // Sixteen rows as two halves 182 GMAC/s, as twelve and four 166.
    const int now = rows <= 16 ? 8 : kMostRows;
    kTiles[now - 1](panel, k, x, acc);
    rows -= now;
    x += now * row_bytes;
    acc += now * kPanelColumns;
  }
  kTiles[rows - 1](panel, k, x, acc);
}

}  // namespace capstan::kernels::avx512bf16
