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

template <class F>
inline constexpr int kDecodedBlock = 576 + (F::kMin ? 64 : 0) + (F::kSub == 2 ? 128 : 0);

template <class F>
struct Decoded {
  const std::byte* block;

  __m512i q(int h, int t) const { return load(block + (4 * h + t) * 64); }
  __m512 scale() const { return load_floats(block + 512); }
  __m512 scale2() const { return load_floats(block + 576); }
  __m512i sub(int h) const { return load(block + 576 + h * 64); }
};

template <class F>
void decode_group(const std::byte* header, std::byte* out) {
  Scales scales;
  F::scales(header, scales);
  for (int j = 0; j < F::kGroup; ++j, out += kDecodedBlock<F>) {
    const Packed<F> b{header, header + F::kHeader + j * F::kBlock, j, scales};
    for (int h = 0; h < 2; ++h) {
#pragma GCC unroll 4
      for (int t = 0; t < 4; ++t) put(out + (4 * h + t) * 64, b.q(h, t));
      if constexpr (F::kSub == 2) put(out + 576 + h * 64, b.sub(h));
    }
    _mm512_storeu_ps(out + 512, b.scale());
    if constexpr (F::kMin) _mm512_storeu_ps(out + 576, b.scale2());
  }
}

// -offset * (sum of x over the block, or its half h), from the record's pair of int16.
template <class F>
inline __m512i start(const std::byte* x, int h) {
  if constexpr (F::kOffset == 0) return _mm512_setzero_si512();
  const __m512i pair = broadcast32(x + F::kInit + (F::kSub == 2 ? 4 * h : 0));
  const __m512i sum = _mm512_madd_epi16(pair, _mm512_set1_epi16(1));
  return F::kBytes ? _mm512_slli_epi32(sum, 4) : sum;  // 128 = 16 * 8
}

// acc[r] of R rows += one block of 32.
template <class F, int R, class Block>
inline void block_product(const Block& w, const std::byte* const x[R], __m512 acc[R]) {
  __m512i sum[R];
#pragma GCC unroll 2
  for (int h = 0; h < F::kSub; ++h) {
    __m512i part[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) part[r] = start<F>(x[r], h);
#pragma GCC unroll 8
    for (int i = 0; i < 8 / F::kSub; ++i) {
      const int half = F::kSub == 2 ? h : i & 1, t = F::kSub == 2 ? i : i >> 1;
      const __m512i q = w.q(half, t);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r)
        part[r] = _mm512_dpbusd_epi32(part[r], q, broadcast32(x[r] + 16 * half + 4 * t));
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const __m512i scaled = F::kSub == 2 ? _mm512_mullo_epi32(part[r], w.sub(h)) : part[r];
      sum[r] = h == 0 ? scaled : _mm512_add_epi32(sum[r], scaled);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const __m512 x_scale = broadcast_float(x[r] + kXScale);
    acc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r]), _mm512_mul_ps(w.scale(), x_scale), acc[r]);
    if constexpr (F::kMin)
      acc[r] = _mm512_fmadd_ps(w.scale2(), broadcast_float(x[r] + kInt8Sum), acc[r]);
  }
}

// Whole panel for one tile of rows, decoded on the way.
template <class F, int R>
void packed_tile(const std::byte* panel, int64_t k, const std::byte* x, float* out) {
  __m512 acc[R];
  for (int r = 0; r < R; ++r) acc[r] = _mm512_setzero_ps();
  for (int64_t g = 0; g < k / (32 * F::kGroup); ++g) {
    Scales scales;
    F::scales(panel, scales);
    for (int j = 0; j < F::kGroup; ++j, x += R * kXRecord) {
      const Packed<F> w{panel, panel + F::kHeader + j * F::kBlock, j, scales};
      const std::byte* rows[R];
      for (int r = 0; r < R; ++r) rows[r] = x + r * kXRecord;
      block_product<F, R>(w, rows, acc);
    }
    panel += F::kHeader + F::kGroup * F::kBlock;
  }
  for (int r = 0; r < R; ++r) _mm512_storeu_ps(out + r * kPanelColumns, acc[r]);
}

// A decoded piece for T tiles of R rows, `tile_bytes` apart: out += piece * x. Eight rows keep both
// ports busy through vpdpbusd's latency of five cycles.
template <class F, int R, int T>
void decoded_tiles(const std::byte* piece, int64_t blocks, const std::byte* x, int64_t tile_bytes,
                   float* out) {
  constexpr int kRows = R * T;
  __m512 acc[kRows];
  for (int r = 0; r < kRows; ++r) acc[r] = _mm512_loadu_ps(out + r * kPanelColumns);
  for (int64_t b = 0; b < blocks; ++b, piece += kDecodedBlock<F>, x += R * kXRecord) {
    const std::byte* rows[kRows];
    for (int r = 0; r < kRows; ++r) rows[r] = x + r / R * tile_bytes + r % R * kXRecord;
    block_product<F, kRows>(Decoded<F>{piece}, rows, acc);
  }
  for (int r = 0; r < kRows; ++r) _mm512_storeu_ps(out + r * kPanelColumns, acc[r]);
}

constexpr int64_t kPieceBlocks = 8;

template <class F>
void quantised_panel(const std::byte* panel, int64_t k, const XChunk& chunk, int rows, float* acc) {
  switch (rows) {
    case 1:
      packed_tile<F, 1>(panel, k, chunk.int8, acc);
      return;
    case 2:
      packed_tile<F, 2>(panel, k, chunk.int8, acc);
      return;
    case 3:
      packed_tile<F, 3>(panel, k, chunk.int8, acc);
      return;
    case 4:
      packed_tile<F, 4>(panel, k, chunk.int8, acc);
      return;
    default:
      break;
  }
  alignas(64) std::byte piece[kPieceBlocks * kDecodedBlock<F>];
  std::memset(acc, 0, sizeof(float) * kPanelColumns * static_cast<size_t>(rows));
  const int64_t blocks = k / 32;
  const int64_t tile_bytes = 4 * blocks * kXRecord;
  for (int64_t b = 0; b < blocks; b += kPieceBlocks) {
    const int64_t n = std::min(blocks - b, kPieceBlocks);
    for (int64_t i = 0; i < n; i += F::kGroup) {
      decode_group<F>(panel, piece + i * kDecodedBlock<F>);
      panel += F::kHeader + F::kGroup * F::kBlock;
    }
    const std::byte* x = chunk.int8;
    float* out = acc;
    int left = rows;
    for (; left >= 8; left -= 8, out += 8 * kPanelColumns, x += 2 * tile_bytes)
      decoded_tiles<F, 4, 2>(piece, n, x + b * 4 * kXRecord, tile_bytes, out);
    for (; left >= 4; left -= 4, out += 4 * kPanelColumns, x += tile_bytes)
      decoded_tiles<F, 4, 1>(piece, n, x + b * 4 * kXRecord, 0, out);
    if (left == 3) decoded_tiles<F, 3, 1>(piece, n, x + b * 3 * kXRecord, 0, out);
    if (left == 2) decoded_tiles<F, 2, 1>(piece, n, x + b * 2 * kXRecord, 0, out);
    if (left == 1) decoded_tiles<F, 1, 1>(piece, n, x + b * kXRecord, 0, out);
  }
}

}  // namespace

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
