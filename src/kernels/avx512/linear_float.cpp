// Panels of float weights, and of block-quantised weights widened to float, times float32
// activations; and the AVX-512 kernel table.
#include "kernels/avx512/linear_avx512.h"
#include "kernels/avx512bf16/linear_bf16.h"
#include "kernels/dot_choice.h"

namespace capstan::kernels::avx512 {

namespace {

struct F32Panel {
  static constexpr int kBytes = 64;  // per element of k
  static __m512 widen(const std::byte* p) { return load_floats(p); }
};
struct F16Panel {
  static constexpr int kBytes = 32;
  static __m512 widen(const std::byte* p) { return load_half16(p); }
};
struct BF16Panel {
  static constexpr int kBytes = 32;
  static __m512 widen(const std::byte* p) {
    // Columns i and i+8 share a dword.
    const __m256i both = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    const __m256i low = _mm256_slli_epi32(both, 16);
    const __m256i high = _mm256_and_si256(both, _mm256_set1_epi32(-65536));
    return _mm512_castsi512_ps(_mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1));
  }
};

template <class P, int R>
void float_tile(const std::byte* panel, int64_t k, const float* x, int64_t stride, bool first,
                float* out) {
  __m512 acc[R];
  for (int r = 0; r < R; ++r)
    acc[r] = first ? _mm512_setzero_ps() : _mm512_loadu_ps(out + r * kPanelColumns);
  for (int64_t i = 0; i < k; ++i) {
    const __m512 w = P::widen(panel + i * P::kBytes);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r)
      acc[r] = _mm512_fmadd_ps(w, _mm512_set1_ps(x[r * stride + i]), acc[r]);
  }
  for (int r = 0; r < R; ++r) _mm512_storeu_ps(out + r * kPanelColumns, acc[r]);
}

// Elements of k whose panel piece (16 KiB as F32) stays in L1 while all rows pass over it.
constexpr int64_t kPiece = 256;

template <class P>
void float_piece(const std::byte* panel, int64_t k, const float* x, int64_t stride, int rows,
                 bool first, float* acc) {
  for (; rows >= 12; rows -= 12, x += 12 * stride, acc += 12 * kPanelColumns)
    float_tile<P, 12>(panel, k, x, stride, first, acc);
  for (; rows >= 4; rows -= 4, x += 4 * stride, acc += 4 * kPanelColumns)
    float_tile<P, 4>(panel, k, x, stride, first, acc);
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

template <class F>
void widen_group(const std::byte* header, float* out) {
  Scales scales;
  F::scales(header, scales);
  const std::byte* block = header + F::kHeader;
  for (int j = 0; j < F::kGroup; ++j, block += F::kBlock) {
    for (int h = 0; h < 2; ++h) {
      __m512 scale = scales.scale[j];
      if constexpr (F::kSub == 2)
        scale = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(sub_scale(header, j, h)));
      for (int t = 0; t < 4; ++t) {
        const __m512i q = quants<F>(block, h, t);
        for (int b = 0; b < 4; ++b) {
          const __m512i one = _mm512_and_si512(_mm512_srli_epi32(q, static_cast<unsigned>(8 * b)),
                                               _mm512_set1_epi32(255));
          const __m512 f = _mm512_cvtepi32_ps(_mm512_sub_epi32(one, _mm512_set1_epi32(F::kOffset)));
          const __m512 value =
              F::kMin ? _mm512_fmadd_ps(f, scale, scales.scale2[j]) : _mm512_mul_ps(f, scale);
          _mm512_storeu_ps(out + (32 * j + 16 * h + 4 * t + b) * kPanelColumns, value);
        }
      }
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
      return fp8_panel;
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

}  // namespace capstan::kernels::avx512

namespace capstan::kernels {

namespace {
bool in_bf16(DType dtype, bool quantise_activations) {
  if (dtype != DType::kF8E4M3 || !quantise_activations) return false;
#if defined(CAPSTAN_SIMDE)
  return true;
#else
  return bf16_dot_pays();
#endif
}
PanelKernel panel_kernel(DType dtype, bool quantise_activations) {
  if (in_bf16(dtype, quantise_activations)) return avx512bf16::fp8_panel;
  if (!is_block_quantised(dtype)) return avx512::float_panel_kernel(dtype);
  return quantise_activations ? avx512::quantised_panel_kernel(dtype)
                              : avx512::widened_panel_kernel(dtype);
}
XForm x_form(DType dtype, bool quantise_activations) {
  if (in_bf16(dtype, quantise_activations)) return kXBf16;
  if (!is_block_quantised(dtype) || !quantise_activations) return kXFloat;
  return avx512::super_panel_kernel(dtype) != nullptr ? kXSuper : kXInt8;
}
}  // namespace

const LinearKernels& avx512_linear_kernels() {
  static const LinearKernels kernels = [] {
    LinearKernels k = avx2_linear_kernels();  // epilogues
    k.panel = panel_kernel;
    k.x_form = x_form;
    k.quantise_int8 = avx512::quantise_int8;
    k.quantise_super = avx512::quantise_super;
    k.round_bf16 = avx512bf16::round_bf16;
    return k;
  }();
  return kernels;
}

}  // namespace capstan::kernels
