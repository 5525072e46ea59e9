// Panels of float weights, and of block-quantised weights widened to float, times float32
// activations.
#include "kernels/avx2/linear_formats.h"
#include "kernels/avx2/linear_fp8.h"
#include "kernels/dot_choice.h"

namespace capstan::kernels::avx2 {

namespace {

struct Pair {
  __m256 v[2];
};

struct F32Panel {
  static constexpr int kBytes = 64;  // per element of k
  static Pair widen(const std::byte* p) {
    const auto* f = reinterpret_cast<const float*>(p);
    return {{_mm256_load_ps(f), _mm256_load_ps(f + 8)}};
  }
};
struct F16Panel {
  static constexpr int kBytes = 32;
  static Pair widen(const std::byte* p) { return {{load_half8(p), load_half8(p + 16)}}; }
};
struct BF16Panel {
  static constexpr int kBytes = 32;
  static Pair widen(const std::byte* p) {
    const __m256i both = load(p);
    return {{_mm256_castsi256_ps(_mm256_slli_epi32(both, 16)),
             _mm256_castsi256_ps(_mm256_and_si256(both, _mm256_set1_epi32(-65536)))}};
  }
};

// acc[r][*] += panel * x over k elements, one FMA per element in ascending order.
template <class P, int R>
void float_tile(const std::byte* panel, int64_t k, const float* x, int64_t stride, bool first,
                float* out) {
  __m256 acc[R][2];
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < 2; ++v) {
      acc[r][v] = first ? _mm256_setzero_ps() : _mm256_load_ps(out + r * kPanelColumns + v * 8);
    }
  }
  for (int64_t i = 0; i < k; ++i) {
    const Pair w = P::widen(panel + i * P::kBytes);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      const __m256 xr = _mm256_broadcast_ss(x + r * stride + i);
      acc[r][0] = _mm256_fmadd_ps(w.v[0], xr, acc[r][0]);
      acc[r][1] = _mm256_fmadd_ps(w.v[1], xr, acc[r][1]);
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int v = 0; v < 2; ++v) _mm256_store_ps(out + r * kPanelColumns + v * 8, acc[r][v]);
  }
}

// Elements of k whose panel piece (16 KiB as F32) stays in L1 while all rows pass over it.
constexpr int64_t kPiece = 256;

template <class P>
void float_piece(const std::byte* panel, int64_t k, const float* x, int64_t stride, int rows,
                 bool first, float* acc) {
  // Twelve accumulators cover the latency of four cycles at two FMAs a cycle with some to spare.
  for (; rows >= 6; rows -= 6, x += 6 * stride, acc += 6 * kPanelColumns)
    float_tile<P, 6>(panel, k, x, stride, first, acc);
  if (rows == 5) {
    float_tile<P, 5>(panel, k, x, stride, first, acc);
    return;
  }
  if (rows == 4) float_tile<P, 4>(panel, k, x, stride, first, acc);
  if (rows == 3) float_tile<P, 3>(panel, k, x, stride, first, acc);
  if (rows == 2) float_tile<P, 2>(panel, k, x, stride, first, acc);
  if (rows == 1) float_tile<P, 1>(panel, k, x, stride, first, acc);
}

template <class P>
void float_panel(const std::byte* panel, int64_t k, const XChunk& chunk, int rows, float* acc) {
  for (int64_t i = 0; i < k; i += kPiece) {
    const int64_t n = k - i < kPiece ? k - i : kPiece;
    float_piece<P>(panel + i * P::kBytes, n, chunk.f32 + i, chunk.stride, rows, i == 0, acc);
  }
}

// Bytes 4c+j of `q` (columns 8v..) plus `offset`, as floats of element j: out[j*16 + 8v ...].
inline void put_floats(__m256i q, int offset, __m256 scale, __m256 scale2, bool min, int v,
                       float* out) {
  for (int j = 0; j < 4; ++j) {
    const __m256i one =
        _mm256_and_si256(_mm256_srl_epi32(q, _mm_cvtsi32_si128(8 * j)), _mm256_set1_epi32(255));
    const __m256 f = _mm256_cvtepi32_ps(_mm256_add_epi32(one, _mm256_set1_epi32(offset)));
    const __m256 value = min ? _mm256_fmadd_ps(f, scale, scale2) : _mm256_mul_ps(f, scale);
    _mm256_store_ps(out + j * kPanelColumns + v * 8, value);
  }
}

template <class F>
void widen_group(const std::byte* header, float* out) {
  const auto scales = F::scales(header);
  constexpr int kOffset = F::kInit == kInit8    ? -8
                          : F::kInit == kInit16 ? -16
                          : F::kInit == kInit32 ? -32
                                                : 0;
  const std::byte* block = header + F::kHeader;
  for (int j = 0; j < F::kGroup; ++j, block += F::kBlock) {
    for (int h = 0; h < 2; ++h) {
      for (int v = 0; v < 2; ++v) {
        __m256 scale = scales.scale[j][v];
        if constexpr (F::kSub == 2) {
          const __m256i sub = _mm256_srai_epi32(F::sub_scale(header, j, h, v), 16);
          scale = _mm256_mul_ps(scale, _mm256_cvtepi32_ps(sub));
        }
        for (int t = 0; t < 4; ++t) {
          put_floats(quants<F>(block, h, t, v), kOffset, scale, scales.scale2[j][v], F::kMin, v,
                     out + (32 * j + 16 * h + 4 * t) * kPanelColumns);
        }
      }
    }
  }
}

struct Q8_0 {
  static constexpr int kGroup = 1;
  static constexpr int kHeader = 32;
  static constexpr int kBlock = 512;
};
template <>
void widen_group<Q8_0>(const std::byte* header, float* out) {
  for (int t = 0; t < 8; ++t) {
    for (int v = 0; v < 2; ++v) {
      const __m256i q = load(header + 32 + t * 64 + v * 32);
      const __m256 scale = load_half8(header + 16 * v);
      put_floats(q, -128, scale, scale, false, v, out + 4 * t * kPanelColumns);
    }
  }
}

template <class F>
void widened_panel(const std::byte* panel, int64_t k, const XChunk& chunk, int rows, float* acc) {
  alignas(64) float piece[kPiece * kPanelColumns];
  constexpr int64_t kElems = 32 * F::kGroup;
  constexpr int64_t kGroupBytes = F::kHeader + F::kGroup * F::kBlock;
  for (int64_t i = 0; i < k; i += kPiece) {
    const int64_t n = k - i < kPiece ? k - i : kPiece;
    for (int64_t g = 0; g < n / kElems; ++g, panel += kGroupBytes)
      widen_group<F>(panel, piece + g * kElems * kPanelColumns);
    float_piece<F32Panel>(reinterpret_cast<const std::byte*>(piece), n, chunk.f32 + i, chunk.stride,
                          rows, i == 0, acc);
  }
}

}  // namespace

PanelKernel float_panel_kernel(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return float_panel<F32Panel>;
    case DType::kF16:
      return float_panel<F16Panel>;
    case DType::kBF16:
      return float_panel<BF16Panel>;
    case DType::kF8E4M3:
      return fp8_halves_pay() ? fp8_panel_halves : fp8_panel_shifted;
    default:
      return nullptr;
  }
}

PanelKernel widened_panel_kernel(DType dtype) {
  switch (dtype) {
    case DType::kQ8_0:
      return widened_panel<Q8_0>;
    case DType::kQ4_0:
      return widened_panel<Q4_0>;
    case DType::kQ4_1:
      return widened_panel<Q4_1>;
    case DType::kQ5_0:
      return widened_panel<Q5_0>;
    case DType::kQ5_1:
      return widened_panel<Q5_1>;
    case DType::kQ4_K:
      return widened_panel<Q4_K>;
    case DType::kQ5_K:
      return widened_panel<Q5_K>;
    case DType::kQ6_K:
      return widened_panel<Q6_K>;
    default:
      return nullptr;
  }
}

}  // namespace capstan::kernels::avx2
