// RMSNorm, RoPE and the store to the paged cache, for a vector type V.
#pragma once

#include <cmath>
#include <cstring>

#include "kernels/ops.h"
#include "kernels/paged_kv.h"

namespace capstan::kernels::simd {

/// The last n % lanes elements with zeros behind them, in one vector.
template <class V>
typename V::F load_tail(const float* x, int n) {
  float padded[V::kLanes] = {};
  std::memcpy(padded, x, sizeof(float) * static_cast<size_t>(n));
  return V::load(padded);
}

template <class V>
void store_tail(float* y, typename V::F value, int n) {
  float padded[V::kLanes];
  V::store(padded, value);
  std::memcpy(y, padded, sizeof(float) * static_cast<size_t>(n));
}

template <class V>
void rms_norm_row(const float* x, const float* weight, float eps, float* y, int64_t n) {
  using F = typename V::F;
  constexpr int kLanes = V::kLanes;
  F sum[4] = {V::zero(), V::zero(), V::zero(), V::zero()};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
    for (int j = 0; j < 4; ++j) {
      const F v = V::load(x + i + j * kLanes);
      sum[j] = V::fma(v, v, sum[j]);
    }
  }
  for (; i + kLanes <= n; i += kLanes) {
    const F v = V::load(x + i);
    sum[0] = V::fma(v, v, sum[0]);
  }
  const int tail = static_cast<int>(n - i);
  if (tail > 0) {
    const F v = load_tail<V>(x + i, tail);
    sum[1] = V::fma(v, v, sum[1]);
  }
  const float total = V::sum(V::add(V::add(sum[0], sum[1]), V::add(sum[2], sum[3])));
  const F scale = V::set1(static_cast<float>(
      1.0 / std::sqrt(static_cast<double>(total) / static_cast<double>(n) + eps)));
  for (i = 0; i + kLanes <= n; i += kLanes) {
    V::store(y + i, V::mul(V::mul(V::load(x + i), scale), V::load(weight + i)));
  }
  if (tail > 0) {
    const F v = V::mul(V::mul(load_tail<V>(x + i, tail), scale), load_tail<V>(weight + i, tail));
    store_tail<V>(y + i, v, tail);
  }
}

template <class V>
void rotate(float* __restrict x, const float* __restrict cos, const float* __restrict sin,
            int rope_dim, RopeStyle style) {
  using F = typename V::F;
  const int half = rope_dim / 2;
  if (style == RopeStyle::kInterleaved) {
    for (int i = 0; i < half; ++i) {  // vectorised by the compiler
      const float a = x[2 * i], b = x[2 * i + 1];
      x[2 * i] = a * cos[i] - b * sin[i];
      x[2 * i + 1] = a * sin[i] + b * cos[i];
    }
    return;
  }
  int i = 0;
  for (; i + V::kLanes <= half; i += V::kLanes) {
    const F a = V::load(x + i), b = V::load(x + half + i);
    const F c = V::load(cos + i), s = V::load(sin + i);
    V::store(x + i, V::fms(a, c, V::mul(b, s)));
    V::store(x + half + i, V::fma(a, s, V::mul(b, c)));
  }
  for (; i < half; ++i) {
    const float a = x[i], b = x[half + i];
    x[i] = a * cos[i] - b * sin[i];
    x[half + i] = a * sin[i] + b * cos[i];
  }
}

template <class V>
void store_kv_row(DType dtype, const float* src, std::byte* dst, int n) {
  if (dtype == DType::kF32) {
    std::memcpy(dst, src, sizeof(float) * static_cast<size_t>(n));
    return;
  }
  const auto store = [&](uint16_t* p, typename V::F v) {
    dtype == DType::kF16 ? V::store_f16(p, v) : V::store_bf16(p, v);
  };
  int i = 0;
  for (; i + V::kLanes <= n; i += V::kLanes) {
    store(reinterpret_cast<uint16_t*>(dst) + i, V::load(src + i));
  }
  if (i < n) {
    uint16_t padded[V::kLanes];
    store(padded, load_tail<V>(src + i, n - i));
    std::memcpy(dst + 2 * i, padded, 2 * static_cast<size_t>(n - i));
  }
}

template <class V>
void qkv_row(const QkvArgs& args, int64_t row) {
  const PagedKv& kv = args.kv;
  const int d = kv.head_dim;
  const float* cos = args.cos + row * (args.rope_dim / 2);
  const float* sin = args.sin + row * (args.rope_dim / 2);
  float* head = args.qkv.row(row);
  for (int h = 0; h < args.q_heads; ++h, head += d) {
    if (args.q_norm != nullptr) rms_norm_row<V>(head, args.q_norm, args.norm_eps, head, d);
    rotate<V>(head, cos, sin, args.rope_dim, args.rope);
  }
  for (int h = 0; h < kv.kv_heads; ++h, head += d) {
    if (args.k_norm != nullptr) rms_norm_row<V>(head, args.k_norm, args.norm_eps, head, d);
    rotate<V>(head, cos, sin, args.rope_dim, args.rope);
    std::byte* slot = key_row_of_slot(kv, args.slots[static_cast<size_t>(row)], h);
    store_kv_row<V>(kv.dtype, head, slot, d);
    store_kv_row<V>(kv.dtype, head + static_cast<int64_t>(kv.kv_heads) * d, slot + kv.value_offset,
                    d);
  }
}

}  // namespace capstan::kernels::simd
