// Panels of weights quantised in blocks of 32 times int8 activations. A block is one product of
// tiles with k = 32, half of what the instruction could take, because its sums have a scale of
// their own. They leave AMX through memory: a core of an Emerald Rapids takes 6 ns for the product
// of 16 x 16 and 23 with storing, converting, scaling and adding them, where vpdpbusd takes 50.
#include <algorithm>

#include "kernels/avx512/linear_avx512.h"
#include "kernels/avx512amx/linear_amx.h"
#include "kernels/avx512amx/tiles.h"

namespace capstan::kernels::amx {

namespace {

using namespace avx512;  // NOLINT: formats and loads

// Blocks decoded together: beside 16 KiB of weights there is room in L1 for tiles of activations.
constexpr int64_t kPieceBlocks = 32;
constexpr int64_t kBytes = 512;  // of a decoded block

struct Piece {
  alignas(64) std::byte quants[kPieceBlocks * kBytes];
  alignas(64) float scale[kPieceBlocks * kPanelColumns];
  alignas(64) float min[kPieceBlocks * kPanelColumns];
};

template <class F>
void decode(const std::byte* panel, int64_t blocks, Piece& piece) {
  const __m512i offset = _mm512_set1_epi8(static_cast<char>(F::kOffset));
  for (int64_t b = 0; b < blocks; ++b, panel += F::kHeader + F::kBlock) {
    prefetch(panel + kAhead, F::kHeader + F::kBlock);
    Scales s;
    F::scales(panel, s);
    _mm512_store_ps(piece.scale + b * kPanelColumns, s.scale[0]);
    if constexpr (F::kMin) _mm512_store_ps(piece.min + b * kPanelColumns, s.scale2[0]);
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      const int half = i & 1, t = i >> 1;
      const __m512i q = quants<F>(panel + F::kHeader, half, t);
      _mm512_store_si512(piece.quants + b * kBytes + (4 * half + t) * 64,
                         _mm512_sub_epi8(q, offset));
    }
  }
}

// Sums of blocks on their way from AMX to the vector units.
struct Ring {
  alignas(64) std::byte sums[4][kTallRows * 64];
};

// The sums of block b of a tile. Two sets of registers in turns: 10 ns a block, one set takes 22.
template <size_t P>
inline void multiply(const Piece& piece, int64_t b, const std::byte* x, Ring& ring) {
  zero_tile<P>();
  load_tile<4 + P>(x + b * kTallRows * kXRecord, kXRecord);
  load_tile<6 + P>(piece.quants + b * kBytes, 64);
  dot_signed<P, 4 + P, 6 + P>();
  store_tile<P>(ring.sums[b & 3], 64);
}

// acc += the sums of block b, by the operations of avx512/linear_quantised.cpp.
template <class F>
inline void add(const Piece& piece, int64_t b, const std::byte* x, const Ring& ring,
                __m512 acc[kTallRows]) {
  const std::byte* sums = ring.sums[b & 3];
  const std::byte* records = x + b * kTallRows * kXRecord;
  const __m512 scale = _mm512_load_ps(piece.scale + b * kPanelColumns);
#pragma GCC unroll 16
  for (int r = 0; r < kTallRows; ++r) {
    const __m512 dot = _mm512_cvtepi32_ps(load(sums + r * 64));
    const __m512 x_scale = broadcast_float(records + r * kXRecord + kXScale);
    acc[r] = _mm512_fmadd_ps(dot, _mm512_mul_ps(scale, x_scale), acc[r]);
    if constexpr (F::kMin) {
      acc[r] = _mm512_fmadd_ps(_mm512_load_ps(piece.min + b * kPanelColumns),
                               broadcast_float(records + r * kXRecord + kInt8Sum), acc[r]);
    }
  }
}

// out[16][16] += the piece times a tile's records.
template <class F>
[[gnu::noinline]] void tile(const Piece& piece, int64_t blocks, const std::byte* x, float* out) {
  __m512 acc[kTallRows];
#pragma GCC unroll 16
  for (int r = 0; r < kTallRows; ++r) acc[r] = _mm512_loadu_ps(out + r * kPanelColumns);
  Ring ring;
  multiply<0>(piece, 0, x, ring);
  int64_t b = 1;
  for (; b + 2 <= blocks; b += 2) {
    multiply<1>(piece, b, x, ring);
    add<F>(piece, b - 1, x, ring, acc);
    multiply<0>(piece, b + 1, x, ring);
    add<F>(piece, b, x, ring, acc);
  }
  if (b < blocks) {
    multiply<1>(piece, b, x, ring);
    add<F>(piece, b - 1, x, ring, acc);
  }
  add<F>(piece, blocks - 1, x, ring, acc);
#pragma GCC unroll 16
  for (int r = 0; r < kTallRows; ++r) _mm512_storeu_ps(out + r * kPanelColumns, acc[r]);
}

constexpr Shapes kShapes = product_shapes(kTallRows, 32);

template <class F, DType kType>
void panel_product(const std::byte* panel, int64_t k, const XChunk& chunk, int rows, float* acc) {
  const int64_t blocks = k / 32, row_bytes = blocks * kXRecord;
  const int tall = rows / kTallRows * kTallRows;
  std::fill(acc, acc + tall * kPanelColumns, 0.0f);
  Piece piece;
  if (tall != 0) configure(kShapes);
  for (int64_t b = 0; tall != 0 && b < blocks; b += kPieceBlocks) {
    const int64_t now = std::min(kPieceBlocks, blocks - b);
    decode<F>(panel + b * (F::kHeader + F::kBlock), now, piece);
    const std::byte* x = chunk.int8 + b * kTallRows * kXRecord;
    for (int r = 0; r < tall; r += kTallRows, x += kTallRows * row_bytes)
      tile<F>(piece, now, x, acc + r * kPanelColumns);
  }
  if (tall != 0) release();
  if (tall == rows) return;
  XChunk rest = chunk;
  rest.int8 += tall * row_bytes;
  avx512::quantised_panel_kernel(kType)(panel, k, rest, rows - tall, acc + tall * kPanelColumns);
}

}  // namespace

PanelKernel quantised_panel_kernel(DType dtype) {
  switch (dtype) {
    case DType::kQ8_0:
      return panel_product<Q8_0, DType::kQ8_0>;
    case DType::kQ4_0:
      return panel_product<Q4_0, DType::kQ4_0>;
    case DType::kQ4_1:
      return panel_product<Q4_1, DType::kQ4_1>;
    case DType::kQ5_0:
      return panel_product<Q5_0, DType::kQ5_0>;
    case DType::kQ5_1:
      return panel_product<Q5_1, DType::kQ5_1>;
    default:
      return super_panel_kernel(dtype);
  }
}

}  // namespace capstan::kernels::amx
