// Panels of block-quantised weights times integer activations.
//
// Four to six bits: vpmaddubsw multiplies four unsigned quants of a column with four int8
// activations and the products of 16 (6 bits) or 32 elements stay in 16-bit accumulators: modulo
// 2^16 is enough because the final sum, with the quants' offset taken off by the start value, fits.
// Eight bits: activations are scaled so that no pair of products saturates (kXPaired).
// Each block of 32 then adds float(sum) * (weight scale * activation scale) by one FMA.
#include <algorithm>
#include <cstring>

#include "kernels/avx2/linear_blocks.h"
#include "kernels/avx2/linear_formats.h"

namespace capstan::kernels::avx2 {

namespace {

// acc0, acc1 += q0 * x, q1 * x: products of four neighbours along k, added in 16 bits. Assembly,
// because GCC 12 reassociates the sums of intrinsics over the unrolled steps and spills: 22
// multiply-adds per cycle instead of 36 in a tile of four rows.
inline void mac8(__m256i& acc0, __m256i& acc1, __m256i q0, __m256i q1, const std::byte* x) {
  __m256i b, t0, t1;
  asm("vpbroadcastd %[x], %[b]\n\t"
      "vpmaddubsw %[b], %[q0], %[t0]\n\t"
      "vpmaddubsw %[b], %[q1], %[t1]\n\t"
      "vpaddw %[t0], %[acc0], %[acc0]\n\t"
      "vpaddw %[t1], %[acc1], %[acc1]"
      : [acc0] "+x"(acc0), [acc1] "+x"(acc1), [b] "=&x"(b), [t0] "=&x"(t0), [t1] "=&x"(t1)
      : [q0] "x"(q0), [q1] "x"(q1), [x] "m"(*reinterpret_cast<const int*>(x)));
}
// acc0, acc1 += products of uint8 weights and eight activations: two products of two stay modulo
// 2^16 with the start value, and are then widened. qa: elements 0..3, qb: 4..7.
inline void mac_bytes(__m256i& acc0, __m256i& acc1, __m256i qa0, __m256i qa1, __m256i qb0,
                      __m256i qb1, const std::byte* x, const std::byte* start) {
  alignas(32) static constexpr int16_t kOnes[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  __m256i b, t0, t1, u;
  asm("vpbroadcastd %[xa], %[b]\n\t"
      "vpmaddubsw %[b], %[qa0], %[t0]\n\t"
      "vpmaddubsw %[b], %[qa1], %[t1]\n\t"
      "vpbroadcastd %[start], %[b]\n\t"
      "vpaddw %[b], %[t0], %[t0]\n\t"
      "vpaddw %[b], %[t1], %[t1]\n\t"
      "vpbroadcastd %[xb], %[b]\n\t"
      "vpmaddubsw %[b], %[qb0], %[u]\n\t"
      "vpmaddubsw %[b], %[qb1], %[b]\n\t"
      "vpaddw %[u], %[t0], %[t0]\n\t"
      "vpaddw %[b], %[t1], %[t1]\n\t"
      "vpmaddwd %[ones], %[t0], %[t0]\n\t"
      "vpmaddwd %[ones], %[t1], %[t1]\n\t"
      "vpaddd %[t0], %[acc0], %[acc0]\n\t"
      "vpaddd %[t1], %[acc1], %[acc1]"
      : [acc0] "+x"(acc0), [acc1] "+x"(acc1), [b] "=&x"(b), [t0] "=&x"(t0), [t1] "=&x"(t1),
        [u] "=&x"(u)
      : [qa0] "x"(qa0), [qa1] "x"(qa1), [qb0] "x"(qb0), [qb1] "x"(qb1),
        [xa] "m"(*reinterpret_cast<const int*>(x)), [xb] "m"(*reinterpret_cast<const int*>(x + 4)),
        [start] "m"(*reinterpret_cast<const int*>(start)),
        [ones] "m"(*reinterpret_cast<const __m256i*>(kOnes)));
}

// acc += float(sum) * (scale * x scale) [+ scale2 * x sum]. The same sequence for every tile.
template <bool kMin>
inline __m256 add_block(__m256 acc, __m256i sum, __m256 scale, __m256 scale2, __m256 x_scale,
                        __m256 x_sum) {
  acc = _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), _mm256_mul_ps(scale, x_scale), acc);
  if constexpr (kMin) acc = _mm256_fmadd_ps(scale2, x_sum, acc);
  return acc;
}

// One block of 32 of a panel in registers' form. Packed decodes as it goes, for up to one tile of
// rows; Decoded reads what decode_group() left in scratch memory, for more.
template <class F>
struct Packed {
  const std::byte* header;
  const std::byte* block;
  int j;
  const Scales<F::kGroup>& s;

  __m256i q(int h, int t, int v) const { return quants<F>(block, h, t, v); }
  __m256 scale(int v) const { return s.scale[j][v]; }
  __m256 scale2(int v) const { return s.scale2[j][v]; }
  __m256i sub_scale(int h, int v) const {
    if constexpr (F::kSub == 2) return F::sub_scale(header, j, h, v);
    return _mm256_setzero_si256();
  }
};

// Scratch bytes per block: quants [8 steps][2][32], scale, then scale2 or sub-scales.
template <class F>
inline constexpr int kDecodedBlock = 576 + (F::kMin ? 64 : 0) + (F::kSub == 2 ? 128 : 0);

template <class F>
struct Decoded {
  const std::byte* block;

  __m256i q(int h, int t, int v) const { return load(block + (4 * h + t) * 64 + v * 32); }
  __m256 scale(int v) const { return _mm256_castsi256_ps(load(block + 512 + v * 32)); }
  __m256 scale2(int v) const { return _mm256_castsi256_ps(load(block + 576 + v * 32)); }
  __m256i sub_scale(int h, int v) const { return load(block + 576 + h * 64 + v * 32); }
};

inline void put(std::byte* p, __m256i v) { _mm256_store_si256(reinterpret_cast<__m256i*>(p), v); }

template <class F>
void decode_group(const std::byte* header, std::byte* out) {
  const auto scales = F::scales(header);
  for (int j = 0; j < F::kGroup; ++j, out += kDecodedBlock<F>) {
    const Packed<F> b{header, header + F::kHeader + j * F::kBlock, j, scales};
    for (int v = 0; v < 2; ++v) {
      for (int h = 0; h < 2; ++h) {
#pragma GCC unroll 4
        for (int t = 0; t < 4; ++t) put(out + (4 * h + t) * 64 + v * 32, b.q(h, t, v));
        if constexpr (F::kSub == 2) put(out + 576 + h * 64 + v * 32, b.sub_scale(h, v));
      }
      put(out + 512 + v * 32, _mm256_castps_si256(b.scale(v)));
      if constexpr (F::kMin) put(out + 576 + v * 32, _mm256_castps_si256(b.scale2(v)));
    }
  }
}

// acc[r][v] of R rows += one block of 32.
template <class F, int R, class Block>
inline void nibble_block(const Block& w, const std::byte* x, __m256 acc[R][2]) {
  __m256i sum[R][2];
#pragma GCC unroll 2
  for (int h = 0; h < F::kSub; ++h) {
    __m256i part[R][2];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const std::byte* init = x + r * kXRecord + (F::kInit < 0 ? 0 : F::kInit + 4 * h);
      part[r][0] = part[r][1] = F::kInit < 0 ? _mm256_setzero_si256() : broadcast32(init);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8 / F::kSub; ++i) {
      // Both nibbles of one load follow each other.
      const int half = F::kSub == 2 ? h : i & 1, t = F::kSub == 2 ? i : i >> 1;
      const __m256i q0 = w.q(half, t, 0), q1 = w.q(half, t, 1);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r)
        mac8(part[r][0], part[r][1], q0, q1, x + r * kXRecord + 16 * half + 4 * t);
    }
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      const __m256i factor = F::kSub == 2 ? w.sub_scale(h, v) : _mm256_set1_epi16(1);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const __m256i scaled = _mm256_madd_epi16(part[r][v], factor);
        sum[r][v] = h == 0 ? scaled : _mm256_add_epi32(sum[r][v], scaled);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    const __m256 x_scale = broadcast_float(x + r * kXRecord + kXScale);
    const __m256 x_sum = broadcast_float(x + r * kXRecord + kInt8Sum);
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) {
      acc[r][v] = add_block<F::kMin>(acc[r][v], sum[r][v], w.scale(v),
                                     F::kMin ? w.scale2(v) : x_sum, x_scale, x_sum);
    }
  }
}

template <int R>
inline void load_acc(const float* from, __m256 acc[R][2]) {
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < 2; ++v) acc[r][v] = _mm256_load_ps(from + r * kPanelColumns + v * 8);
  }
}
template <int R>
inline void store_acc(const __m256 acc[R][2], float* to) {
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < 2; ++v) _mm256_store_ps(to + r * kPanelColumns + v * 8, acc[r][v]);
  }
}

// Brings `bytes` of weights towards L1: the hardware's prefetchers stop at every 4 KiB.
inline void prefetch(const std::byte* p, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64)
    _mm_prefetch(reinterpret_cast<const char*>(p + i), _MM_HINT_T0);
}
// How far ahead a single tile's pass over a panel prefetches. One row, two threads,
// R1-Distill-1.5B's shape, GB/s with 0 / 1024 / 3072 bytes: Q4_0 27.5 / 29.1 / 28.3, Q4_K 24.3
// / 27.8 / 28.4, Q8_0 28.0 / 29.5 / 28.5.
constexpr int64_t kAhead = 1024;

// Brings the next piece of a panel towards L2 while the tiles of this one are multiplied, a share
// with each tile: all at once they fill the miss buffers and the multiplications wait. 32 rows of
// Q8_0, one thread, weights from DRAM, multiply-adds per cycle with none / all at once / shares:
// 26.0 / 25.0 / 28.5, where 30 is what the kernel does in L1.
class NextPiece {
 public:
  NextPiece(const std::byte* next, int64_t bytes, int rows)
      : at_(next), end_(next + bytes), share_((bytes / std::max(rows / 4, 1) + 127) / 64 * 64) {}
  void fetch_share() {
    for (const std::byte* end = std::min(end_, at_ + share_); at_ < end; at_ += 64)
      _mm_prefetch(reinterpret_cast<const char*>(at_), _MM_HINT_T1);
  }

 private:
  const std::byte *at_, *end_;
  int64_t share_;
};

// Whole panel for one tile of rows, decoded on the way.
template <class F, int R>
void nibble_tile(const std::byte* panel, int64_t k, const std::byte* x, float* out) {
  __m256 acc[R][2];
  for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_ps();
  for (int64_t g = 0; g < k / (32 * F::kGroup); ++g) {
    const auto scales = F::scales(panel);
    for (int j = 0; j < F::kGroup; ++j, x += R * kXRecord) {
      const Packed<F> w{panel, panel + F::kHeader + j * F::kBlock, j, scales};
      prefetch(w.block + kAhead, F::kBlock);
      nibble_block<F, R>(w, x, acc);
    }
    panel += F::kHeader + F::kGroup * F::kBlock;
  }
  store_acc<R>(acc, out);
}

// A decoded piece of a panel for one tile: out += piece * x. The float accumulators stay in L1,
// where two loads and a store per block cost less than their registers would.
template <class F>
void decoded_tile4(const std::byte* piece, int64_t blocks, const std::byte* x, float* out) {
  for (int64_t b = 0; b < blocks; ++b, piece += kDecodedBlock<F>, x += 4 * kXRecord) {
    __m256 sum[4][2];
    if constexpr (F::kSub == 2) {
      scaled_sums4<F::kInit>(piece, piece + 576, x, sum);
    } else {
      nibble_sums4<F::kInit>(piece, x, sum);
    }
    const Decoded<F> w{piece};
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      const __m256 x_scale = broadcast_float(x + r * kXRecord + kXScale);
      const __m256 x_sum = broadcast_float(x + r * kXRecord + kInt8Sum);
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        float* acc = out + r * kPanelColumns + v * 8;
        __m256 y =
            _mm256_fmadd_ps(sum[r][v], _mm256_mul_ps(w.scale(v), x_scale), _mm256_load_ps(acc));
        if constexpr (F::kMin) y = _mm256_fmadd_ps(w.scale2(v), x_sum, y);
        _mm256_store_ps(acc, y);
      }
    }
  }
}

template <class F, int R>
void decoded_tile(const std::byte* piece, int64_t blocks, const std::byte* x, float* out) {
  for (int64_t b = 0; b < blocks; ++b, piece += kDecodedBlock<F>, x += R * kXRecord) {
    __m256 acc[R][2];
    load_acc<R>(out, acc);
    nibble_block<F, R>(Decoded<F>{piece}, x, acc);
    store_acc<R>(acc, out);
  }
}

// Blocks of 32 decoded at a time: 4.5 to 6 KiB, so that they stay in L1 beside x and accumulators.
constexpr int64_t kPieceBlocks = 8;

template <class F>
void nibble_panel(const std::byte* panel, int64_t k, const XChunk& chunk, int rows, float* acc) {
  switch (rows) {
    case 1:
      nibble_tile<F, 1>(panel, k, chunk.int8, acc);
      return;
    case 2:
      nibble_tile<F, 2>(panel, k, chunk.int8, acc);
      return;
    case 3:
      nibble_tile<F, 3>(panel, k, chunk.int8, acc);
      return;
    case 4:
      nibble_tile<F, 4>(panel, k, chunk.int8, acc);
      return;
    default:
      break;
  }
  alignas(64) std::byte piece[kPieceBlocks * kDecodedBlock<F>];
  std::memset(acc, 0, sizeof(float) * kPanelColumns * static_cast<size_t>(rows));
  const int64_t blocks = k / 32;
  for (int64_t b = 0; b < blocks; b += kPieceBlocks) {
    const int64_t n = std::min(blocks - b, kPieceBlocks);
    for (int64_t i = 0; i < n; i += F::kGroup) {
      decode_group<F>(panel, piece + i * kDecodedBlock<F>);
      panel += F::kHeader + F::kGroup * F::kBlock;
    }
    NextPiece next(panel, n / F::kGroup * (F::kHeader + F::kGroup * F::kBlock), rows);
    const std::byte* tile = chunk.int8;
    float* out = acc;
    int left = rows;
    for (; left >= 4; left -= 4, out += 4 * kPanelColumns, tile += 4 * blocks * kXRecord) {
      next.fetch_share();
      decoded_tile4<F>(piece, n, tile + b * 4 * kXRecord, out);
    }
    if (left == 3) decoded_tile<F, 3>(piece, n, tile + b * 3 * kXRecord, out);
    if (left == 2) decoded_tile<F, 2>(piece, n, tile + b * 2 * kXRecord, out);
    if (left == 1) decoded_tile<F, 1>(piece, n, tile + b * kXRecord, out);
  }
}

// Q8_0: the panel's bytes are ready to multiply; a pass over a piece of the panel (4.3 KiB) by all
// rows finds it in L1.

constexpr int kByteHeader = 32, kByteBlock = 544;

template <int R>
inline void byte_block(const std::byte* block, const std::byte* x, __m256 acc[R][2]) {
  __m256i sum[R][2];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) sum[r][0] = sum[r][1] = _mm256_setzero_si256();
#pragma GCC unroll 4
  for (int s = 0; s < 4; ++s) {
    const std::byte* q = block + kByteHeader + s * 128;
    const __m256i qa0 = load(q), qa1 = load(q + 32), qb0 = load(q + 64), qb1 = load(q + 96);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const std::byte* xr = x + r * kXRecord;
      mac_bytes(sum[r][0], sum[r][1], qa0, qa1, qb0, qb1, xr + 8 * s, xr + kPairedInit + 4 * s);
    }
  }
#pragma GCC unroll 2
  for (int v = 0; v < 2; ++v) {
    const __m256 scale = load_half8(block + 16 * v);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) {
      const __m256 x_scale = broadcast_float(x + r * kXRecord + kXScale);
      acc[r][v] = add_block<false>(acc[r][v], sum[r][v], scale, x_scale, x_scale, x_scale);
    }
  }
}

void byte_tile4(const std::byte* panel, int64_t blocks, const std::byte* x, float* out) {
  for (int64_t b = 0; b < blocks; ++b, panel += kByteBlock, x += 4 * kXRecord) {
    __m256 sum[4][2];
    byte_sums4(panel + kByteHeader, x, sum);
    const __m256 scale[2] = {load_half8(panel), load_half8(panel + 16)};
#pragma GCC unroll 4
    for (int r = 0; r < 4; ++r) {
      const __m256 x_scale = broadcast_float(x + r * kXRecord + kXScale);
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        float* acc = out + r * kPanelColumns + v * 8;
        _mm256_store_ps(
            acc, _mm256_fmadd_ps(sum[r][v], _mm256_mul_ps(scale[v], x_scale), _mm256_load_ps(acc)));
      }
    }
  }
}

template <int R>
void byte_tile(const std::byte* panel, int64_t blocks, const std::byte* x, bool first, float* out) {
  __m256 acc[R][2];
  if (first) {
    for (int r = 0; r < R; ++r) acc[r][0] = acc[r][1] = _mm256_setzero_ps();
  } else {
    load_acc<R>(out, acc);
  }
  for (int64_t b = 0; b < blocks; ++b, panel += kByteBlock, x += R * kXRecord) {
    prefetch(panel + kAhead, kByteBlock);
    byte_block<R>(panel, x, acc);
  }
  store_acc<R>(acc, out);
}

void byte_panel(const std::byte* panel, int64_t k, const XChunk& chunk, int rows, float* acc) {
  const int64_t blocks = k / 32;
  const int64_t step = rows > kTileRows ? kPieceBlocks : blocks;
  if (rows >= 4) std::memset(acc, 0, sizeof(float) * kPanelColumns * static_cast<size_t>(rows));
  for (int64_t b = 0; b < blocks; b += step) {
    const int64_t n = std::min(blocks - b, step);
    const std::byte* tile = chunk.paired;
    const std::byte* piece = panel + b * kByteBlock;
    const bool first = b == 0;
    NextPiece next(piece + n * kByteBlock, rows > kTileRows ? n * kByteBlock : 0, rows);
    float* out = acc;
    int left = rows;
    for (; left >= 4; left -= 4, out += 4 * kPanelColumns, tile += 4 * blocks * kXRecord) {
      next.fetch_share();
      byte_tile4(piece, n, tile + b * 4 * kXRecord, out);
    }
    if (left == 3) byte_tile<3>(piece, n, tile + b * 3 * kXRecord, first, out);
    if (left == 2) byte_tile<2>(piece, n, tile + b * 2 * kXRecord, first, out);
    if (left == 1) byte_tile<1>(piece, n, tile + b * kXRecord, first, out);
  }
}

}  // namespace

PanelKernel quantised_panel_kernel(DType dtype) {
  switch (dtype) {
    case DType::kQ8_0:
      return byte_panel;
    case DType::kQ4_0:
      return nibble_panel<Q4_0>;
    case DType::kQ4_1:
      return nibble_panel<Q4_1>;
    case DType::kQ5_0:
      return nibble_panel<Q5_0>;
    case DType::kQ5_1:
      return nibble_panel<Q5_1>;
    case DType::kQ4_K:
      return nibble_panel<Q4_K>;
    case DType::kQ5_K:
      return nibble_panel<Q5_K>;
    case DType::kQ6_K:
      return nibble_panel<Q6_K>;
    default:
      return nullptr;
  }
}

}  // namespace capstan::kernels::avx2
