// Panels of weights quantised in blocks of 32 times int8 activations, by vpdpbusd: unsigned quants
// times signed activations, summed exactly in 32 bits from a start value that takes the quants'
// offset off. Each block then adds float(sum) * (weight scale * activation scale) by one FMA.
#include <cstring>

#include "kernels/avx512/linear_avx512.h"

namespace capstan::kernels::avx512 {

namespace {

// acc[r] of R rows += one block of 32.
template <class F, int R>
inline void block_product(const std::byte* header, const Scales& w, const std::byte* const x[R],
                          __m512 acc[R]) {
  constexpr int kChains = chains(R);
  __m512i sum[R][kChains];
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
    sum[r][0] = F::kOffset == 0 ? _mm512_setzero_si512() : broadcast32(x[r] + F::kInit);
    for (int c = 1; c < kChains; ++c) sum[r][c] = _mm512_setzero_si512();
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) {
    const int half = i & 1, t = i >> 1;  // both nibbles of one load follow each other
    const __m512i q = quants<F>(header + F::kHeader, half, t);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) mac(sum[r][i % kChains], q, x[r] + 16 * half + 4 * t);
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
    const __m512 x_scale = broadcast_float(x[r] + kXScale);
    const __m512 dot = _mm512_cvtepi32_ps(sum_of<kChains>(sum[r]));
    acc[r] = _mm512_fmadd_ps(dot, _mm512_mul_ps(w.scale[0], x_scale), acc[r]);
    if constexpr (F::kMin)
      acc[r] = _mm512_fmadd_ps(w.scale2[0], broadcast_float(x[r] + kInt8Sum), acc[r]);
  }
}

// The whole panel for T tiles of R rows.
template <class F, int R, int T = 1>
void tiles(const std::byte* panel, int64_t k, const std::byte* x, float* out) {
  constexpr int kRows = R * T;
  const int64_t tile_bytes = R * (k / 32) * kXRecord;
  __m512 acc[kRows];
  for (int r = 0; r < kRows; ++r) acc[r] = _mm512_setzero_ps();
  for (int64_t b = 0; b < k / 32; ++b, x += R * kXRecord) {
    Scales scales;
    F::scales(panel, scales);
    prefetch(panel + kAhead, F::kHeader + F::kBlock);
    const std::byte* rows[kRows];
    for (int r = 0; r < kRows; ++r) rows[r] = x + r / R * tile_bytes + r % R * kXRecord;
    block_product<F, kRows>(panel, scales, rows, acc);
    panel += F::kHeader + F::kBlock;
  }
  for (int r = 0; r < kRows; ++r) _mm512_storeu_ps(out + r * kPanelColumns, acc[r]);
}

// Eight rows and more keep both ports busy through vpdpbusd's latency, and weights are decoded
// again for the next twelve: at 32 and 512 rows of Q4_0 70% of the INT8 peak on Zen 4, where
// decoding pieces of a panel ahead for all rows gave 57 and 69%, and four rows of two panels at
// once 67 and 71%.
template <class F>
void quantised_panel(const std::byte* panel, int64_t k, const XChunk& chunk, int rows, float* acc) {
  const std::byte* x = chunk.int8;
  const int64_t tile_bytes = 4 * (k / 32) * kXRecord;
  for (; rows >= 12; rows -= 12, x += 3 * tile_bytes, acc += 12 * kPanelColumns)
    tiles<F, 4, 3>(panel, k, x, acc);
  for (; rows >= 8; rows -= 8, x += 2 * tile_bytes, acc += 8 * kPanelColumns)
    tiles<F, 4, 2>(panel, k, x, acc);
  for (; rows >= 4; rows -= 4, x += tile_bytes, acc += 4 * kPanelColumns)
    tiles<F, 4>(panel, k, x, acc);
  if (rows == 3) tiles<F, 3>(panel, k, x, acc);
  if (rows == 2) tiles<F, 2>(panel, k, x, acc);
  if (rows == 1) tiles<F, 1>(panel, k, x, acc);
}

void put_int(std::byte* p, int v) { std::memcpy(p, &v, 4); }
// Of a pair of int16.
int sum_of_pair(const std::byte* p) {
  int16_t pair[2];
  std::memcpy(pair, p, 4);
  return pair[0] + pair[1];
}

}  // namespace

void quantise_int8(const float* x, int64_t stride, int64_t k, int rows, std::byte* out) {
  avx2_linear_kernels().quantise_int8(x, stride, k, rows, out);
  const int64_t records = k / 32 * rows;
  for (std::byte* end = out + records * kXRecord; out != end; out += kXRecord) {
    const int sum = sum_of_pair(out + kInit8);  // -8 times the block's
    put_int(out + kInit8, sum);
    put_int(out + kInit16, 2 * sum);
    put_int(out + kInit128, 16 * sum);
  }
}

PanelKernel quantised_panel_kernel(DType dtype) {
  switch (dtype) {
    case DType::kQ8_0:
      return quantised_panel<Q8_0>;
    case DType::kQ4_0:
      return quantised_panel<Q4_0>;
    case DType::kQ4_1:
      return quantised_panel<Q4_1>;
    case DType::kQ5_0:
      return quantised_panel<Q5_0>;
    case DType::kQ5_1:
      return quantised_panel<Q5_1>;
    default:
      return super_panel_kernel(dtype);
  }
}

}  // namespace capstan::kernels::avx512
