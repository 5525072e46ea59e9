// Panels of the K formats times int8 activations of which 256 share a scale. A quant times its
// block's scale takes more than a byte, so it is cut in a low and a high part, each a byte: the
// sums of both over a super-block are those of avx512/linear_super.cpp, whole numbers both, and
// nothing is left to do between two products. Twice the products, at their full k of 64, take AMX
// as long as one product per block would, and spare the vector units scaling every block.
#include <algorithm>
#include <type_traits>

#include "kernels/avx512/linear_super.h"
#include "kernels/avx512amx/linear_amx.h"
#include "kernels/avx512amx/tiles.h"

namespace capstan::kernels::amx {

namespace {

using namespace avx512;  // NOLINT: formats and loads

constexpr int kSteps = 4;  // of 64 elements of k
constexpr int64_t kStepBytes = 1024;
constexpr size_t kSpan = kTallRows * kXSuperRecord;  // of a tile of records

/// A super-block's quants times scales, as left operands want them: 4096 elements of each part.
struct Parts {
  alignas(64) std::byte low[kSteps * kStepBytes];
  alignas(64) std::byte high[kSteps * kStepBytes];
};

/// The scale of block j, or of its half h, in both words of each column's dword.
template <class F>
inline __m512i word_scale(const SuperHeader<F>& header, int j, int h) {
  if constexpr (std::is_same_v<F, Q4_K>) {
    const __m512i pair = header.scales[j / 2];
    const __m512i other = j % 2 == 0 ? _mm512_slli_epi32(pair, 16) : _mm512_srli_epi32(pair, 16);
    return _mm512_mask_blend_epi16(j % 2 == 0 ? 0xaaaaaaaa : 0x55555555, pair, other);
  } else {
    const __m512i scale = header.scale(j, h);
    return _mm512_mask_blend_epi16(0xaaaaaaaa, scale, _mm512_slli_epi32(scale, 16));
  }
}

// Q4_K, Q5_K: quants up to 31 times scales up to 63 as q * (s mod 8) + 8 q * (s / 8), bytes without
// a sign. One multiplication of words makes two of bytes, as no product exceeds one.
template <class F>
struct Split {
  static constexpr int kShift = 3;
  __m512i low_scale, high_scale;

  explicit Split(__m512i scale)
      : low_scale(_mm512_and_si512(scale, _mm512_set1_epi16(7))),
        high_scale(_mm512_srli_epi16(scale, 3)) {}
  void operator()(__m512i q, std::byte* low, std::byte* high) const {
    _mm512_store_si512(low, _mm512_mullo_epi16(q, low_scale));
    _mm512_store_si512(high, _mm512_mullo_epi16(q, high_scale));
  }
};
// Q6_K: -32..31 times -128..127 as p mod 128 + 128 (p / 128), bytes with a sign.
template <>
struct Split<Q6_K> {
  static constexpr int kShift = 7;
  __m512i scale;

  explicit Split(__m512i s) : scale(s) {}
  void operator()(__m512i unsigned_q, std::byte* low, std::byte* high) const {
    const __m512i q = _mm512_sub_epi8(unsigned_q, _mm512_set1_epi8(Q6_K::kOffset));
    const __m512i even = _mm512_mullo_epi16(_mm512_srai_epi16(_mm512_slli_epi16(q, 8), 8), scale);
    const __m512i odd = _mm512_mullo_epi16(_mm512_srai_epi16(q, 8), scale);
    const __m512i both =
        _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaa, even, _mm512_slli_epi16(odd, 8));
    _mm512_store_si512(low, _mm512_and_si512(both, _mm512_set1_epi8(127)));
    _mm512_store_si512(high,
                       _mm512_mask_blend_epi8(0xaaaaaaaaaaaaaaaa, _mm512_srai_epi16(even, 7),
                                              _mm512_slli_epi16(_mm512_srai_epi16(odd, 7), 8)));
  }
};

template <class F>
void decode(const SuperHeader<F>& header, const std::byte* panel, Parts& parts) {
  prefetch(panel + kAhead, F::kHeader);
  for (int j = 0; j < 8; ++j) {
    const std::byte* block = panel + F::kHeader + j * F::kBlock;
    prefetch(block + kAhead, F::kBlock);
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const Split<F> split(word_scale<F>(header, j, half));
#pragma GCC unroll 4
      for (int t = 0; t < 4; ++t) {
        const int64_t at = j * 512 + (4 * half + t) * 64;
        split(quants<F>(block, half, t), parts.low + at, parts.high + at);
      }
    }
  }
}

template <class F, size_t C, size_t A, size_t B>
inline void dot() {
  if constexpr (std::is_same_v<F, Q6_K>)
    dot_signed<C, A, B>();
  else
    dot_unsigned<C, A, B>();
}

struct Sums {
  alignas(64) std::byte low[16 * 64];
  alignas(64) std::byte high[16 * 64];
};

// out[16][16] += low and high sums of a tile.
template <class F>
inline void add(const SuperHeader<F>& header, const Sums& sums, __m512 d, __m512 d_min,
                const std::byte* x, float* out) {
#pragma GCC unroll 4
  for (int r = 0; r < kTallRows; ++r) {
    const __m512i high = _mm512_slli_epi32(load(sums.high + r * 64), Split<F>::kShift);
    const __m512i sum = _mm512_add_epi32(high, load(sums.low + r * 64));
    float* o = out + r * kPanelColumns;
    _mm512_storeu_ps(o,
                     add_super(header, sum, d, d_min, x + r * kXSuperRecord, _mm512_loadu_ps(o)));
  }
}

// One super-block of T tiles; x is the first tile's records of it.
template <class F, int T>
[[gnu::noinline]] void tiles(const SuperHeader<F>& header, const Parts& parts, __m512 d,
                             __m512 d_min, const std::byte* x, int64_t tile_bytes, float* out) {
  zero_tile<0>();
  zero_tile<1>();
  if constexpr (T == 2) {
    zero_tile<2>();
    zero_tile<3>();
  }
#pragma GCC unroll 4
  for (int s = 0; s < kSteps; ++s) {
    load_tile<6>(parts.low + s * kStepBytes, 64);
    load_tile<4, kSpan>(x + 64 * s, kXSuperRecord);
    dot<F, 0, 4, 6>();
    load_tile<7>(parts.high + s * kStepBytes, 64);
    dot<F, 1, 4, 7>();
    if constexpr (T == 2) {
      load_tile<5, kSpan>(x + tile_bytes + 64 * s, kXSuperRecord);
      dot<F, 2, 5, 6>();
      dot<F, 3, 5, 7>();
    }
  }
  Sums sums[T];
  store_tile<0>(sums[0].low, 64);
  store_tile<1>(sums[0].high, 64);
  if constexpr (T == 2) {
    store_tile<2>(sums[1].low, 64);
    store_tile<3>(sums[1].high, 64);
  }
  for (int t = 0; t < T; ++t)
    add<F>(header, sums[t], d, d_min, x + t * tile_bytes, out + t * kTallRows * kPanelColumns);
}

constexpr Shapes kShapes = product_shapes(kTallRows, 64);

template <class F, DType kType>
void panel_product(const std::byte* panel, int64_t k, const XChunk& chunk, int rows, float* acc) {
  const int64_t tile_bytes = kTallRows * (k / 256) * kXSuperRecord;
  const int tall = rows / kTallRows * kTallRows;
  std::fill(acc, acc + tall * kPanelColumns, 0.0f);
  Parts parts;
  if (tall != 0) configure(kShapes);
  for (int64_t g = 0; tall != 0 && g < k / 256; ++g) {
    const std::byte* at = panel + g * kSuperBytes<F>;
    SuperHeader<F> header;
    header.read(at);
    decode<F>(header, at, parts);
    const __m512 d = load_half16(at);
    const __m512 d_min = F::kMin ? load_half16(at + 32) : _mm512_setzero_ps();
    const std::byte* x = chunk.super + g * kTallRows * kXSuperRecord;
    int r = 0;
    for (; r + 2 * kTallRows <= tall; r += 2 * kTallRows, x += 2 * tile_bytes)
      tiles<F, 2>(header, parts, d, d_min, x, tile_bytes, acc + r * kPanelColumns);
    if (r < tall) tiles<F, 1>(header, parts, d, d_min, x, 0, acc + r * kPanelColumns);
  }
  if (tall != 0) release();
  if (tall == rows) return;
  XChunk rest = chunk;
  rest.super += tall / kTallRows * tile_bytes;
  avx512::super_panel_kernel(kType)(panel, k, rest, rows - tall, acc + tall * kPanelColumns);
}

}  // namespace

PanelKernel super_panel_kernel(DType dtype) {
  switch (dtype) {
    case DType::kQ4_K:
      return panel_product<Q4_K, DType::kQ4_K>;
    case DType::kQ5_K:
      return panel_product<Q5_K, DType::kQ5_K>;
    case DType::kQ6_K:
      return panel_product<Q6_K, DType::kQ6_K>;
    default:
      return nullptr;
  }
}

}  // namespace capstan::kernels::amx
