// Panels of block-quantised weights times int8 activations, by vpdpbusd: unsigned quants times
// signed activations, summed exactly in 32 bits from a start value that takes the quants' offset
// off. Each block of 32 then adds float(sum) * (weight scale * activation scale) by one FMA.
#include <algorithm>
#include <cstring>

#include "kernels/avx512/linear_avx512.h"

namespace capstan::kernels::avx512 {

namespace {

template <class F>
struct Packed {
  const std::byte* header;
  const std::byte* block;
  int j;
  const Scales& s;

  __m512i q(int h, int t) const { return quants<F>(block, h, t); }
  __m512 scale() const { return s.scale[j]; }
  __m512 scale2() const { return s.scale2[j]; }
  __m512i sub(int h) const { return sub_scale(header, j, h); }
};

// -offset * (sum of x over the block, or its half h).
template <class F>
inline __m512i start(const std::byte* x, int h) {
  if constexpr (F::kOffset == 0) return _mm512_setzero_si512();
  return broadcast32(x + F::kInit + (F::kSub == 2 ? 4 * h : 0));
}

// acc += q * four activations, broadcast. Assembly, because GCC 12 broadcasts into a register first
// and copies the sums: 1% (Q8_0), 3% (Q4_K) and 6% (Q4_0) at 512 rows.
inline void mac(__m512i& acc, __m512i q, const std::byte* x) {
#if defined(CAPSTAN_SIMDE)
  acc = _mm512_dpbusd_epi32(acc, q, broadcast32(x));
#else
  __asm__("vpdpbusd %[x]%{1to16%}, %[q], %[acc]"
          : [acc] "+v"(acc)
          : [q] "v"(q), [x] "m"(*reinterpret_cast<const int*>(x)));
#endif
}

// acc[r] of R rows += one block of 32.
template <class F, int R>
inline void block_product(const Packed<F>& w, const std::byte* const x[R], __m512 acc[R]) {
  __m512i sum[R];
#pragma GCC unroll 2
  for (int h = 0; h < F::kSub; ++h) {
    __m512i part[R];
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) part[r] = start<F>(x[r], h);
#pragma GCC unroll 8
    for (int i = 0; i < 8 / F::kSub; ++i) {
      const int half = F::kSub == 2 ? h : i & 1, t = F::kSub == 2 ? i : i >> 1;
      const __m512i q = w.q(half, t);
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) mac(part[r], q, x[r] + 16 * half + 4 * t);
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      const __m512i scaled = F::kSub == 2 ? _mm512_mullo_epi32(part[r], w.sub(h)) : part[r];
      sum[r] = h == 0 ? scaled : _mm512_add_epi32(sum[r], scaled);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r) {
    const __m512 x_scale = broadcast_float(x[r] + kXScale);
    acc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r]), _mm512_mul_ps(w.scale(), x_scale), acc[r]);
    if constexpr (F::kMin)
      acc[r] = _mm512_fmadd_ps(w.scale2(), broadcast_float(x[r] + kInt8Sum), acc[r]);
  }
}

// Brings `bytes` of weights towards L1: the hardware's prefetchers stop at every 4 KiB.
inline void prefetch(const std::byte* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64)
    _mm_prefetch(reinterpret_cast<const char*>(p + i), _MM_HINT_T0);
}
// How far ahead a tile's pass over a panel prefetches. Four rows, two threads of an EPYC of the Zen
// 4 generation, R1-Distill-1.5B's shape, GB/s with 0 / 1024 / 4096 / 8192 bytes: Q4_0 28.8 / 30.8 /
// 33.7 / 31.7, Q4_K 26.2 / 29.3 / 32.0 / 29.4, Q6_K 27.9 / 28.7 / 29.9 / 27.5; one row: no
// difference.
constexpr int64_t kAhead = 4096;

// The whole panel for T tiles of R rows.
template <class F, int R, int T = 1>
void tiles(const std::byte* panel, int64_t k, const std::byte* x, float* out) {
  constexpr int kRows = R * T;
  const int64_t tile_bytes = R * (k / 32) * kXRecord;
  __m512 acc[kRows];
  for (int r = 0; r < kRows; ++r) acc[r] = _mm512_setzero_ps();
  for (int64_t g = 0; g < k / (32 * F::kGroup); ++g) {
    Scales scales;
    F::scales(panel, scales);
    for (int j = 0; j < F::kGroup; ++j, x += R * kXRecord) {
      const Packed<F> w{panel, panel + F::kHeader + j * F::kBlock, j, scales};
      prefetch(w.block + kAhead, F::kBlock);
      const std::byte* rows[kRows];
      for (int r = 0; r < kRows; ++r) rows[r] = x + r / R * tile_bytes + r % R * kXRecord;
      block_product<F, kRows>(w, rows, acc);
    }
    panel += F::kHeader + F::kGroup * F::kBlock;
  }
  for (int r = 0; r < kRows; ++r) _mm512_storeu_ps(out + r * kPanelColumns, acc[r]);
}

// Eight rows keep both ports busy through vpdpbusd's latency, and weights are decoded again for the
// next eight: at 32 and 512 rows of Q4_0 69% of the INT8 peak on Zen 4, where decoding pieces of a
// panel ahead for all rows gave 55 and 64%, and four rows of two panels at once 67 and 71% (Q4_K:
// 62% against 57%).
template <class F>
void quantised_panel(const std::byte* panel, int64_t k, const XChunk& chunk, int rows, float* acc) {
  const std::byte* x = chunk.int8;
  const int64_t tile_bytes = 4 * (k / 32) * kXRecord;
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
    const int first = sum_of_pair(out + kInit32), second = sum_of_pair(out + kInit32 + 4);
    const int all = first + second;  // -32 times the sum of the block
    put_int(out + kInit8, all / 4);
    put_int(out + kInit16, all / 2);
    put_int(out + kInit32, first);
    put_int(out + kInit32 + 4, second);
    put_int(out + kInit128, 4 * all);
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
    case DType::kQ4_K:
      return quantised_panel<Q4_K>;
    case DType::kQ5_K:
      return quantised_panel<Q5_K>;
    case DType::kQ6_K:
      return quantised_panel<Q6_K>;
    default:
      return nullptr;
  }
}

}  // namespace capstan::kernels::avx512
