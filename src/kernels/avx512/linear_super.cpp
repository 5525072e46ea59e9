// Panels of the K formats, whose blocks of 32 share a header of 256, times int8 activations of
// which 256 share a scale (kXSuper). So all within a super-block is integer arithmetic: vpdpbusd
// over a block, times the block's scale, summed; minima by vpdpwssd; then one FMA each. With a
// scale per 32 activations, as the other formats have it, every block takes two or three FMAs of
// the ports that vpdpbusd needs. Zen 4, 32 rows from L1, one thread: Q4_K 81% of vpdpbusd's rate
// (75% with a multiplication per block instead of one for two), Q6_K 71%.
//
// The price is that activations are rounded more coarsely. SmolLM2-135M with its down projections
// in Q4_K (no other matrix of it has rows of 256), 8,821 tokens of English prose: perplexity 32.26
// with float32 activations, 32.42 with a scale per 32 of them, 32.49 with this one.
#include <algorithm>
#include <type_traits>

#include "kernels/avx512/linear_super.h"

namespace capstan::kernels::avx512 {

namespace {

// Records of a super-block: those of T tiles of R rows.
template <int R, int T>
struct Records {
  const std::byte* tile[T];

  Records(const std::byte* x, int64_t tile_bytes) {
    for (int t = 0; t < T; ++t) tile[t] = x + t * tile_bytes;
  }
  const std::byte* operator[](int r) const { return tile[r / R] + r % R * kXSuperRecord; }
};

// part[r] of R rows = start value + products of a block, or of its half h where halves have scales
// of their own. start: of the records' start values; below 0: none.
template <class F, int R, int kLines, class X>
inline void dot_products(const std::byte* block, const std::byte* ahead, int h, const X& x,
                         int64_t at, int64_t start, __m512i part[R]) {
  constexpr int kChains = chains(R);
  __m512i second[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    part[r] = start < 0 ? _mm512_setzero_si512() : broadcast32(x[r] + start);
    if constexpr (kChains == 2) second[r] = _mm512_setzero_si512();
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8 / F::kSub; ++i) {
    const int half = F::kSub == 2 ? h : i & 1, t = F::kSub == 2 ? i : i >> 1;
    if (i + 4 * h < kLines) prefetch(ahead + 64 * (i + 4 * h), 64);
    const __m512i q = quants<F>(block, half, t);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r)
      mac(kChains == 2 && i % 2 == 1 ? second[r] : part[r], q, x[r] + at + 16 * half + 4 * t);
  }
  if constexpr (kChains == 2) {
    for (int r = 0; r < R; ++r) part[r] = _mm512_add_epi32(part[r], second[r]);
  }
}

// sum[r] of R rows += block j and, Q4_K, j + 1 of a super-block. Magnitudes: 127 * 31 * 32 * 63
// (Q5_K) or 127 * 32 * 16 * 128 (Q6_K) a block and half, eight or sixteen of which fit 32 bits.
template <class F, int R, int kLines, class X>
inline void block_product(const SuperHeader<F>& header, const std::byte* block,
                          const std::byte* ahead, int j, const X& x, __m512i sum[R]) {
  if constexpr (std::is_same_v<F, Q4_K>) {
    // One vpdpwssd for two blocks, whose sums fit 16 bits as a record's activations are rounded.
    __m512i even[R], odd[R];
    dot_products<F, R, kLines>(block, ahead, 0, x, 32 * j, -1, even);
    dot_products<F, R, kLines>(block + F::kBlock, ahead + 64 * kLines, 0, x, 32 * j + 32, -1, odd);
    const __m512i scales = header.scales[j / 2];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m512i both =
          _mm512_mask_blend_epi16(0xaaaaaaaa, even[r], _mm512_slli_epi32(odd[r], 16));
      sum[r] = _mm512_dpwssd_epi32(sum[r], both, scales);
    }
  } else {
#pragma GCC unroll 2
    for (int h = 0; h < F::kSub; ++h) {
      __m512i part[R];
      dot_products<F, R, kLines>(block, ahead, h, x, 32 * j,
                                 F::kOffset == 0 ? -1 : kSuperInit32 + 4 * (2 * j + h), part);
      const __m512i scale = header.scale(j, h);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
        sum[r] = _mm512_add_epi32(sum[r], _mm512_mullo_epi32(part[r], scale));
    }
  }
}

// Sums of rows, in registers or in memory.
template <int R>
struct Sums {
  __m512 v[R];

  __m512 get(int r) const { return v[r]; }
  void set(int r, __m512 sum) { v[r] = sum; }
};
struct StoredSums {
  float* out;

  __m512 get(int r) const { return _mm512_loadu_ps(out + r * kPanelColumns); }
  void set(int r, __m512 sum) const { _mm512_storeu_ps(out + r * kPanelColumns, sum); }
};

// Lines that a pass over a super-block prefetches nine times. The first passes share the work
// (streaming from DRAM, two threads, 32 rows of Q4_K: 8% faster than leaving it to the first).
template <class F>
constexpr int lines_of(int passes) {
  constexpr int kAll = (F::kBlock + 63) / 64;
  return passes >= 4 ? (kAll + 3) / 4 : passes >= 2 ? (kAll + 1) / 2 : kAll;
}

// acc[r] of T tiles of R rows += a super-block; x is the first row's record of it. Prefetches
// 9 * kLines lines from `ahead` on.
template <class F, int R, int T, int kLines, class Acc>
inline void super_block(const SuperHeader<F>& header, const std::byte* panel,
                        const std::byte* ahead, const std::byte* x, int64_t tile_bytes, Acc&& acc) {
  prefetch(ahead, 64 * kLines);
  constexpr int kRows = R * T;
  const Records<R, T> rows{x, tile_bytes};
  __m512i sum[kRows];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) sum[r] = _mm512_setzero_si512();
  constexpr int kStep = std::is_same_v<F, Q4_K> ? 2 : 1;
  for (int j = 0; j < 8; j += kStep)
    block_product<F, kRows, kLines>(header, panel + F::kHeader + j * F::kBlock,
                                    ahead + 64 * kLines * (j + 1), j, rows, sum);
  const __m512 d = load_half16(panel);
  const __m512 d_min = F::kMin ? load_half16(panel + 32) : _mm512_setzero_ps();
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
    acc.set(r, add_super(header, sum[r], d, d_min, rows[r], acc.get(r)));
  }
}

// Less than a tile, the whole panel.
template <class F, int R>
[[gnu::noinline]] void few_rows(const std::byte* panel, int64_t k, const std::byte* x, float* out) {
  Sums<R> acc;
  for (int r = 0; r < R; ++r) acc.v[r] = _mm512_setzero_ps();
  for (int64_t g = 0; g < k / 256; ++g, x += R * kXSuperRecord, panel += kSuperBytes<F>) {
    SuperHeader<F> header;
    header.read(panel);
    super_block<F, R, 1, lines_of<F>(1)>(header, panel, panel + kAhead, x, 0, acc);
  }
  for (int r = 0; r < R; ++r) _mm512_storeu_ps(out + r * kPanelColumns, acc.v[r]);
}

// T tiles of four rows, one super-block.
template <class F, int T, int kLines>
[[gnu::noinline]] void some_tiles(const SuperHeader<F>& header, const std::byte* panel,
                                  const std::byte* ahead, const std::byte* x, int64_t tile_bytes,
                                  float* out) {
  super_block<F, 4, T, kLines>(header, panel, ahead, x, tile_bytes, StoredSums{out});
}

// A super-block for all tiles, two at a time; kPasses of which prefetch.
template <class F, int kPasses>
inline void all_tiles(const std::byte* panel, const std::byte* x, int64_t tile_bytes, int tiles,
                      float* out) {
  SuperHeader<F> header;
  header.read(panel);
  constexpr int kLines = lines_of<F>(kPasses);
  const std::byte* ahead = panel + kAhead;
  int t = 0;
  for (; t + 2 <= tiles; t += 2, x += 2 * tile_bytes, out += 8 * kPanelColumns) {
    if (t < 2 * kPasses)
      some_tiles<F, 2, kLines>(header, panel, ahead, x, tile_bytes, out);
    else
      some_tiles<F, 2, 0>(header, panel, ahead, x, tile_bytes, out);
    ahead += 64 * 9 * kLines;
  }
  if (t < tiles) some_tiles<F, 1, kLines>(header, panel, ahead, x, tile_bytes, out);
}

// All tiles take a super-block before the next one's turn, so that its header is read once.
template <class F>
void super_panel(const std::byte* panel, int64_t k, const XChunk& chunk, int rows, float* acc) {
  const int64_t tile_bytes = 4 * (k / 256) * kXSuperRecord;
  const int tiles = rows / 4;
  std::fill(acc, acc + 4 * tiles * kPanelColumns, 0.0f);
  for (int64_t g = 0; tiles > 0 && g < k / 256; ++g) {
    const std::byte* at = panel + g * kSuperBytes<F>;
    const std::byte* x = chunk.super + g * 4 * kXSuperRecord;
    if (tiles >= 7)
      all_tiles<F, 4>(at, x, tile_bytes, tiles, acc);
    else if (tiles >= 3)
      all_tiles<F, 2>(at, x, tile_bytes, tiles, acc);
    else
      all_tiles<F, 1>(at, x, tile_bytes, tiles, acc);
  }
  const std::byte* x = chunk.super + tiles * tile_bytes;
  acc += 4 * tiles * kPanelColumns;
  if (rows % 4 == 3) few_rows<F, 3>(panel, k, x, acc);
  if (rows % 4 == 2) few_rows<F, 2>(panel, k, x, acc);
  if (rows % 4 == 1) few_rows<F, 1>(panel, k, x, acc);
}

inline float largest_of(__m512i floats) {
  const __m256i m =
      _mm256_max_epu32(_mm512_castsi512_si256(floats), _mm512_extracti64x4_epi64(floats, 1));
  __m128i h = _mm_max_epu32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
  h = _mm_max_epu32(h, _mm_shuffle_epi32(h, 0x4e));
  return _mm_cvtss_f32(_mm_castsi128_ps(_mm_max_epu32(h, _mm_shuffle_epi32(h, 0xb1))));
}

inline __m512 neighbours(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
}

// The largest of the sums of eight vectors of 16.
inline float largest_sum(const __m512 v[8]) {
  __m512 four[4];
  __m128 two[2];
  for (int i = 0; i < 4; ++i) four[i] = neighbours(v[2 * i], v[2 * i + 1]);
  for (int i = 0; i < 2; ++i) {
    const __m512d a = _mm512_castps_pd(four[2 * i]), b = _mm512_castps_pd(four[2 * i + 1]);
    const __m512i lanes = _mm512_castps_si512(_mm512_add_ps(
        _mm512_castpd_ps(_mm512_unpacklo_pd(a, b)), _mm512_castpd_ps(_mm512_unpackhi_pd(a, b))));
    const __m256 sum = _mm256_add_ps(_mm256_castsi256_ps(_mm512_castsi512_si256(lanes)),
                                     _mm256_castsi256_ps(_mm512_extracti64x4_epi64(lanes, 1)));
    two[i] = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps(sum, 1));
  }
  __m128 m = _mm_max_ps(two[0], two[1]);
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_shuffle_ps(m, m, 1)));
}

// Activations whose largest magnitude is below this count as zero.
constexpr float kTiny = 1e-30f;

// A record of kXSuper.
inline void super_record(const float* x, std::byte* out) {
  __m512i largest = _mm512_setzero_si512();  // as integers, because then NaN is above all
  __m512 sums[8];
  for (int b = 0; b < 8; ++b) {
    const __m512 first = _mm512_abs_ps(_mm512_loadu_ps(x + 32 * b));
    const __m512 second = _mm512_abs_ps(_mm512_loadu_ps(x + 32 * b + 16));
    sums[b] = _mm512_add_ps(first, second);
    largest = _mm512_max_epu32(
        largest, _mm512_max_epu32(_mm512_castps_si512(first), _mm512_castps_si512(second)));
  }
  const float max = largest_of(largest), sum = largest_sum(sums);
  float factor = max < kTiny ? 0 : 127.0f / max, scale = max < kTiny ? 0 : max / 127.0f;
  if (factor * sum > kSuperBlockSum) {
    factor = kSuperBlockSum / sum;
    scale = sum / kSuperBlockSum;
  }
  const __m512 inverse = _mm512_set1_ps(factor);
  __builtin_memcpy(out + kSuperScale, &scale, sizeof scale);
  __m512i four[4];  // sums of four: dword 4l + i of four[v] is of elements 64v + 16l + 4i
  for (int v = 0; v < 4; ++v) {
    for (int i = 64 * v; i < 64 * (v + 1); i += 16) {
      const __m512i q = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + i), inverse));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(out + i), _mm512_cvtsepi32_epi8(q));
    }
    four[v] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), load(out + 64 * v));
  }
  const auto add_pairs = [](__m512i a, __m512i b) {
    return _mm512_add_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
  };
  const __m512i a = add_pairs(four[0], four[1]), b = add_pairs(four[2], four[3]);
  const __m512i lanes = _mm512_add_epi32(_mm512_unpacklo_epi64(a, b), _mm512_unpackhi_epi64(a, b));
  const __m512i of16 = _mm512_permutexvar_epi32(
      _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), lanes);
  const __m256i of32 = _mm512_cvtepi64_epi32(_mm512_add_epi32(of16, _mm512_srli_epi64(of16, 32)));
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(out + kSuperSums),
      _mm_packs_epi32(_mm256_castsi256_si128(of32), _mm256_extracti128_si256(of32, 1)));
  _mm512_storeu_si512(out + kSuperInit32,
                      _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_slli_epi32(of16, 5)));
}

}  // namespace

void quantise_super(const float* x, int64_t stride, int64_t k, int rows, std::byte* out) {
  for (int r = 0; r < rows; ++r) {
    for (int64_t b = 0; b < k / 256; ++b)
      super_record(x + r * stride + b * 256, out + (b * rows + r) * kXSuperRecord);
  }
}

PanelKernel super_panel_kernel(DType dtype) {
  switch (dtype) {
    case DType::kQ4_K:
      return super_panel<Q4_K>;
    case DType::kQ5_K:
      return super_panel<Q5_K>;
    case DType::kQ6_K:
      return super_panel<Q6_K>;
    default:
      return nullptr;
  }
}

}  // namespace capstan::kernels::avx512
