// Panels of the K formats, whose blocks of 32 share a header of 256, times int8 activations of
// which 256 share a scale (kXSuper). So all within a super-block is integer arithmetic: vpdpbusd
// over a block, times the block's scale, summed; minima by vpdpwssd; then one FMA each. With a
// scale per 32 activations, as the other formats have it, every block takes two or three FMAs of
// the ports that vpdpbusd needs: at 32 rows on Zen 4 Q4_K reaches 67% of the INT8 peak instead of
// 62%, Q6_K 59% instead of 55%. The price: activations are rounded
// more coarsely, by how much depends on their outliers (not measured on a trained model).
#include "kernels/avx512/linear_avx512.h"

namespace capstan::kernels::avx512 {

namespace {

// What a header says, as integers: the scale of each block (or half of one) and the minima in pairs
// of int16.
template <class F>
struct SuperHeader {
  const std::byte* at;

  __m512i scale(int j, int h) const { return sub_scale(at, j, h); }
};

template <int kHighBits>
struct SuperHeader<SuperFormat<kHighBits>> {
  __m512i scales[8];
  __m512i minima[4];

  explicit SuperHeader(const std::byte* header) {
    const auto byte = [&](int i) {
      return _mm_loadu_si128(reinterpret_cast<const __m128i*>(header + 64 + 16 * i));
    };
    const __m128i low6 = _mm_set1_epi8(63), low4 = _mm_set1_epi8(15), bits45 = _mm_set1_epi8(48);
    __m512i min[8];
    for (int j = 0; j < 4; ++j) {
      const __m128i a = byte(j), b = byte(j + 4), c = byte(j + 8);
      const __m128i a_top = _mm_and_si128(_mm_srli_epi16(a, 2), bits45);
      const __m128i b_top = _mm_and_si128(_mm_srli_epi16(b, 2), bits45);
      const __m128i c_high = _mm_and_si128(_mm_srli_epi16(c, 4), low4);
      scales[j] = _mm512_cvtepu8_epi32(_mm_and_si128(a, low6));
      scales[j + 4] = _mm512_cvtepu8_epi32(_mm_or_si128(_mm_and_si128(c, low4), a_top));
      min[j] = _mm512_cvtepu8_epi32(_mm_and_si128(b, low6));
      min[j + 4] = _mm512_cvtepu8_epi32(_mm_or_si128(c_high, b_top));
    }
    for (int p = 0; p < 4; ++p)
      minima[p] = _mm512_or_si512(min[2 * p], _mm512_slli_epi32(min[2 * p + 1], 16));
  }
  __m512i scale(int j, int) const { return scales[j]; }
};

// sum[r] of R rows += block j of a super-block. Magnitudes: 127 * 31 * 32 * 63 (Q5_K) or
// 127 * 32 * 16 * 128 (Q6_K) a block and half, eight or sixteen of which fit 32 bits.
template <class F, int R>
inline void block_product(const SuperHeader<F>& header, const std::byte* block, int j,
                          const std::byte* const x[R], __m512i sum[R]) {
#pragma GCC unroll 2
  for (int h = 0; h < F::kSub; ++h) {
    constexpr int kChains = chains(R);
    __m512i part[R][kChains];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      part[r][0] = F::kOffset == 0 ? _mm512_setzero_si512()
                                   : broadcast32(x[r] + kSuperInit32 + 4 * (2 * j + h));
      for (int c = 1; c < kChains; ++c) part[r][c] = _mm512_setzero_si512();
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8 / F::kSub; ++i) {
      const int half = F::kSub == 2 ? h : i & 1, t = F::kSub == 2 ? i : i >> 1;
      const __m512i q = quants<F>(block, half, t);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) mac(part[r][i % kChains], q, x[r] + 32 * j + 16 * half + 4 * t);
    }
    const __m512i scale = header.scale(j, h);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m512i whole = sum_of<kChains>(part[r]);
      sum[r] = _mm512_add_epi32(sum[r], _mm512_mullo_epi32(whole, scale));
    }
  }
}

// The whole panel for T tiles of R rows.
template <class F, int R, int T = 1>
void tiles(const std::byte* panel, int64_t k, const std::byte* x, float* out) {
  constexpr int kRows = R * T;
  const int64_t tile_bytes = R * (k / 256) * kXSuperRecord;
  __m512 acc[kRows];
  for (int r = 0; r < kRows; ++r) acc[r] = _mm512_setzero_ps();
  for (int64_t g = 0; g < k / 256; ++g, x += R * kXSuperRecord) {
    const SuperHeader<F> header{panel};
    const std::byte* rows[kRows];
    for (int r = 0; r < kRows; ++r) rows[r] = x + r / R * tile_bytes + r % R * kXSuperRecord;
    __m512i sum[kRows];
    for (int r = 0; r < kRows; ++r) sum[r] = _mm512_setzero_si512();
    for (int j = 0; j < 8; ++j) {
      const std::byte* block = panel + F::kHeader + j * F::kBlock;
      prefetch(block + kAhead, F::kBlock);
      block_product<F, kRows>(header, block, j, rows, sum);
    }
    const __m512 d = load_half16(panel);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const __m512 x_scale = broadcast_float(rows[r] + kSuperScale);
      acc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r]), _mm512_mul_ps(d, x_scale), acc[r]);
      if constexpr (F::kMin) {
        __m512i m = _mm512_setzero_si512();
#pragma GCC unroll 4
        for (int p = 0; p < 4; ++p)
          m = _mm512_dpwssd_epi32(m, header.minima[p], broadcast32(rows[r] + kSuperSums + 4 * p));
        acc[r] = _mm512_fnmadd_ps(_mm512_cvtepi32_ps(m),
                                  _mm512_mul_ps(load_half16(panel + 32), x_scale), acc[r]);
      }
    }
    panel += F::kHeader + 8 * F::kBlock;
  }
  for (int r = 0; r < kRows; ++r) _mm512_storeu_ps(out + r * kPanelColumns, acc[r]);
}

template <class F>
void super_panel(const std::byte* panel, int64_t k, const XChunk& chunk, int rows, float* acc) {
  const std::byte* x = chunk.super;
  const int64_t tile_bytes = 4 * (k / 256) * kXSuperRecord;
  for (; rows >= 8; rows -= 8, x += 2 * tile_bytes, acc += 8 * kPanelColumns)
    tiles<F, 4, 2>(panel, k, x, acc);
  for (; rows >= 4; rows -= 4, x += tile_bytes, acc += 4 * kPanelColumns)
    tiles<F, 4>(panel, k, x, acc);
  if (rows == 3) tiles<F, 3>(panel, k, x, acc);
  if (rows == 2) tiles<F, 2>(panel, k, x, acc);
  if (rows == 1) tiles<F, 1>(panel, k, x, acc);
}

}  // namespace

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
