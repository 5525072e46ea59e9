// Y = X B with B in panels of 16 columns (MlaMatrix), for a vector type V: activations broadcast,
// one lane an output.
//
// Bits of an output: one fused multiply-add per k, ascending, from zero (or from what y holds). F8
// weights are multiplied by their block's scale first, as dequantisation does. Tiles, k-blocks and
// decoding ahead change nothing of it.
#pragma once

#include <algorithm>
#include <type_traits>

#include "kernels/mla_kernels.h"
#include "kernels/simd/elements.h"

namespace capstan::kernels::simd {

/// One row of a panel, in 16 / V::kLanes vectors.
template <class V, class B>
void load_row(const std::byte* row, typename V::F* out) {
  if constexpr (B::kScaled && V::kLanes == 8) {
    load_e4m3_pair(row, out);
  } else {
#pragma GCC unroll 2
    for (int v = 0; v < kMlaColumns / V::kLanes; ++v) {
      out[v] = B::load(row + v * V::kLanes * B::kBytes);
    }
  }
}

enum class Start : uint8_t { kZero, kY, kScaledY };  // what the sum starts from

inline constexpr int kProductRows = 6;
/// Rows of B between two reads and writes of y: a panel of so many (16 KiB) stays in the first
/// level cache while all rows of x pass.
inline constexpr int kProductDepth = 256;
inline constexpr int kScaleRows = 128;

/// R rows times P panels. `scales` (kScaled): of row 0's block, one per panel; next block
/// scale_stride further; row i belongs to block (i + k_offset) / 128.
template <class V, class B, Start kStart, int R, int P>
void product_tile(const float* x, int64_t x_stride, int k, const std::byte* b, int64_t b_stride,
                  const float* scales, int scale_stride, int k_offset, const float* factors,
                  float* y, int64_t y_row, int64_t y_panel) {
  using F = typename V::F;
  constexpr int kParts = kMlaColumns / V::kLanes;
  F acc[R][P][kParts];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
      for (int v = 0; v < kParts; ++v) {
        const float* from = y + r * y_row + p * y_panel + v * V::kLanes;
        if constexpr (kStart == Start::kZero) acc[r][p][v] = V::zero();
        if constexpr (kStart == Start::kY) acc[r][p][v] = V::load(from);
        if constexpr (kStart == Start::kScaledY) {
          acc[r][p][v] = V::mul(V::load(from), V::set1(factors[r]));
        }
      }
    }
  }
  for (int begin = 0; begin < k;) {
    int end = k;
    F scale[P];
    if constexpr (B::kScaled) {
      const int block = (begin + k_offset) / kScaleRows;
      end = std::min(k, (block + 1) * kScaleRows - k_offset);
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) scale[p] = V::set1(scales[block * scale_stride + p] * 256.0f);
    }
    for (int i = begin; i < end; ++i) {
      F w[P][kParts];
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p) {
        const std::byte* row = b + p * b_stride + int64_t{i} * (kMlaColumns * B::kBytes);
        // A single row of x streams weights from memory: fetch what the next P panels hold here.
        if constexpr (R == 1 && P > 1) {
          constexpr int kRowsPerLine = 64 / (kMlaColumns * B::kBytes);
          if (i % kRowsPerLine == 0) __builtin_prefetch(row + P * b_stride, 0, 2);
        }
        load_row<V, B>(row, w[p]);
        if constexpr (B::kScaled) {
#pragma GCC unroll 2
          for (int v = 0; v < kParts; ++v) w[p][v] = V::mul(w[p][v], scale[p]);
        }
      }
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        const F a = V::set1(x[r * x_stride + i]);
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
          for (int v = 0; v < kParts; ++v) acc[r][p][v] = V::fma(a, w[p][v], acc[r][p][v]);
        }
      }
    }
    begin = end;
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 2
      for (int v = 0; v < kParts; ++v) {
        V::store(y + r * y_row + p * y_panel + v * V::kLanes, acc[r][p][v]);
      }
    }
  }
}

/// Calls f.operator()<R>(row) over `rows` in the fewest runs of at most kMax rows, of nearly equal
/// length: a last run of one row would wait for its own multiply-adds.
template <int kMax, class F>
void for_even_runs(int rows, F&& f) {
  const int runs = (rows + kMax - 1) / kMax;
  for (int i = 0; i < runs; ++i) {
    const int begin = rows * i / runs;
    switch (rows * (i + 1) / runs - begin) {
      case 1:
        f.template operator()<1>(begin);
        break;
      case 2:
        f.template operator()<2>(begin);
        break;
      case 3:
        f.template operator()<3>(begin);
        break;
      case 4:
        if constexpr (kMax >= 4) f.template operator()<4>(begin);
        break;
      case 5:
        if constexpr (kMax >= 5) f.template operator()<5>(begin);
        break;
      default:
        if constexpr (kMax >= 6) f.template operator()<6>(begin);
        break;
    }
  }
}

/// Panels that a tile of R rows takes side by side, so that enough sums are in flight: 12 of AVX2's
/// 16 registers, 24 of AVX-512's 32, but at most four panels (each is a stream from memory).
template <class V>
constexpr int panels_of(int rows) {
  const int parts = kMlaColumns / V::kLanes, sums = V::kLanes == 16 ? 24 : 12;
  const int panels = sums / (rows * parts);
  return panels >= 4 ? 4 : panels >= 2 ? 2 : 1;
}

/// Float32 panels times any number of rows, panel by panel, one k-block after the other.
template <class V>
void product_f32(const float* x, int64_t x_stride, int rows, int k, const float* b,
                 int64_t b_stride, int panels, float* y, int64_t y_row, int64_t y_panel) {
  const auto run = [&]<int P>(int panel) {
    for (int begin = 0; begin < k; begin += kProductDepth) {
      const int depth = std::min(kProductDepth, k - begin);
      const auto* from =
          reinterpret_cast<const std::byte*>(b + panel * b_stride + int64_t{begin} * kMlaColumns);
      for_even_runs<kProductRows>(rows, [&]<int R>(int r) {
        const float* x_run = x + r * x_stride + begin;
        float* y_run = y + r * y_row + panel * y_panel;
        if (begin == 0) {
          product_tile<V, ElementF32<V>, Start::kZero, R, P>(x_run, x_stride, depth, from,
                                                             4 * b_stride, nullptr, 0, 0, nullptr,
                                                             y_run, y_row, y_panel);
        } else {
          product_tile<V, ElementF32<V>, Start::kY, R, P>(x_run, x_stride, depth, from,
                                                          4 * b_stride, nullptr, 0, 0, nullptr,
                                                          y_run, y_row, y_panel);
        }
      });
    }
  };
  constexpr int kWide = panels_of<V>(kProductRows);
  int panel = 0;
  for (; panel + kWide <= panels; panel += kWide) run.template operator()<kWide>(panel);
  for (; panel < panels; ++panel) run.template operator()<1>(panel);
}

/// One panel of B in float32, rows `stride` floats apart.
template <class V, class B>
void decode_panel(const MlaMatrix& b, int panel, float* out, int64_t stride) {
  const std::byte* from = b.panel(panel);
  for (int i = 0; i < b.k; ++i) {
    typename V::F scale = V::zero();
    if constexpr (B::kScaled) {
      scale = V::set1(b.scales[(i + b.k_offset) / kScaleRows * b.panels + panel] * 256.0f);
    }
    for (int v = 0; v < kMlaColumns; v += V::kLanes) {
      typename V::F w = B::load(from + (i * kMlaColumns + v) * B::kBytes);
      if constexpr (B::kScaled) w = V::mul(w, scale);
      V::store(out + i * stride + v, w);
    }
  }
}

/// Calls f.operator()<Element>() for the matrix's dtype.
template <class V, class F>
void with_element(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kF16:
      return f.template operator()<ElementF16<V>>();
    case DType::kBF16:
      return f.template operator()<ElementBF16<V>>();
    case DType::kF8E4M3:
      return f.template operator()<ElementF8<V>>();
    default:
      return f.template operator()<ElementF32<V>>();
  }
}

template <class V>
void decode_rows(const MlaMatrix& b, float* out) {
  with_element<V>(b.dtype, [&]<class B>() {
    for (int p = 0; p < b.panels; ++p) {
      decode_panel<V, B>(b, p, out + p * kMlaColumns, int64_t{b.panels} * kMlaColumns);
    }
  });
}

template <class V, class B>
void product_of(const MlaProduct& a) {
  const int last = a.first_panel + a.panels;
  if (a.rows > kProductRows) {
    for (int p = a.first_panel; p < last; ++p) {
      const float* panel = reinterpret_cast<const float*>(a.b.panel(p));
      if constexpr (!std::is_same_v<B, ElementF32<V>>) {
        decode_panel<V, B>(a.b, p, a.scratch, kMlaColumns);
        panel = a.scratch;
      }
      product_f32<V>(a.x, a.x_stride, a.rows, a.b.k, panel, 0, 1,
                     a.y + (p - a.first_panel) * a.y_panel, a.y_row, 0);
    }
    return;
  }
  for_even_runs<kProductRows>(a.rows, [&]<int R>(int r) {
    const auto run = [&]<int P>(int p) {
      product_tile<V, B, Start::kZero, R, P>(
          a.x + r * a.x_stride, a.x_stride, a.b.k, a.b.panel(p), a.b.panel_stride * B::kBytes,
          B::kScaled ? a.b.scales + p : nullptr, a.b.panels, a.b.k_offset, nullptr,
          a.y + r * a.y_row + (p - a.first_panel) * a.y_panel, a.y_row, a.y_panel);
    };
    constexpr int kSide = panels_of<V>(R);
    int p = a.first_panel;
    for (; p + kSide <= last; p += kSide) run.template operator()<kSide>(p);
    for (; p < last; ++p) run.template operator()<1>(p);
  });
}

template <class V>
void product(const MlaProduct& args) {
  with_element<V>(args.b.dtype, [&]<class B>() { product_of<V, B>(args); });
}

}  // namespace capstan::kernels::simd
