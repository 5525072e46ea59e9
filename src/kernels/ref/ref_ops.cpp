#include "kernels/ref/ref_ops.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/paged_kv.h"
#include "kernels/router.h"
#include "quant/codecs.h"

namespace capstan::kernels::ref {
namespace {

/// 1 / sqrt(mean(x^2) + eps)
double inverse_rms(const float* x, int64_t n, float eps) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
  return 1.0 / std::sqrt(sum / static_cast<double>(n) + eps);
}

}  // namespace

void normalise(const float* x, const float* weight, float eps, float* y, int64_t n) {
  const double scale = inverse_rms(x, n, eps);
  for (int64_t i = 0; i < n; ++i) y[i] = static_cast<float>(x[i] * scale * weight[i]);
}

void rotate(float* x, const float* cos, const float* sin, int rope_dim, RopeStyle style) {
  const int half = rope_dim / 2;
  for (int i = 0; i < half; ++i) {
    const int a = style == RopeStyle::kHalfSplit ? i : 2 * i;
    const int b = style == RopeStyle::kHalfSplit ? i + half : 2 * i + 1;
    const double xa = x[a], xb = x[b], c = cos[i], s = sin[i];
    x[a] = static_cast<float>(xa * c - xb * s);
    x[b] = static_cast<float>(xa * s + xb * c);
  }
}

void store_row(DType dtype, const float* src, std::byte* dst, int n) {
  std::vector<float> row(src, src + n);
  if (dtype == DType::kF16) {
    for (float& v : row) {
      if (v > kMaxHalf) v = kMaxHalf;
      if (v < -kMaxHalf) v = -kMaxHalf;
    }
  }
  (void)quant::quantize_row(dtype, row.data(), dst, n);  // cache dtypes cannot fail
}

void embed(const EmbedArgs& args) {
  const int64_t h = args.table->cols();
  const size_t row_bytes = dtype_bytes(args.table->dtype, h);
  for (size_t t = 0; t < args.ids.size(); ++t) {
    quant::dequantize_row(args.table->dtype,
                          args.table->data + static_cast<size_t>(args.ids[t]) * row_bytes,
                          args.y.row(static_cast<int64_t>(t)), h);
  }
}

void rms_norm(const RmsNormArgs& args) {
  for (int64_t t = 0; t < args.x.rows; ++t) {
    normalise(args.x.row(t), args.weight, args.eps, args.y.row(t), args.x.cols);
  }
}

void qkv_rope_store(const QkvArgs& args) {
  const PagedKv& kv = args.kv;
  const int d = kv.head_dim;
  for (int64_t t = 0; t < args.qkv.rows; ++t) {
    const float* cos = args.cos + t * (args.rope_dim / 2);
    const float* sin = args.sin + t * (args.rope_dim / 2);
    float* head = args.qkv.row(t);
    for (int h = 0; h < args.q_heads + kv.kv_heads; ++h, head += d) {
      const bool is_query = h < args.q_heads;
      const float* norm = is_query ? args.q_norm : args.k_norm;
      if (norm != nullptr) normalise(head, norm, args.norm_eps, head, d);
      rotate(head, cos, sin, args.rope_dim, args.rope);
      if (!is_query) {
        const int kv_head = h - args.q_heads;
        std::byte* slot = key_row_of_slot(kv, args.slots[t], kv_head);
        store_row(kv.dtype, head, slot, d);
        store_row(kv.dtype, head + kv.kv_heads * d, slot + kv.value_offset, d);
      }
    }
  }
}

void attention(const AttentionArgs& args) {
  const PagedKv& kv = args.kv;
  const int d = kv.head_dim;
  const int group = args.q_heads / kv.kv_heads;
  std::vector<double> score, out(d);
  std::vector<float> row(d);
  for (const SequenceSlice& seq : args.sequences) {
    for (int i = 0; i < seq.q_len; ++i) {
      const int keys = seq.kv_len - seq.q_len + i + 1;
      for (int h = 0; h < args.q_heads; ++h) {
        const float* q = args.q.row(seq.q_begin + i) + static_cast<int64_t>(h) * d;
        score.assign(keys, 0.0);
        double max = -std::numeric_limits<double>::infinity();
        for (int j = 0; j < keys; ++j) {
          quant::dequantize_row(kv.dtype, key_row_of_position(kv, seq.pages, j, h / group),
                                row.data(), d);
          for (int e = 0; e < d; ++e) score[j] += static_cast<double>(q[e]) * row[e];
          score[j] *= args.scale;
          max = std::max(max, score[j]);
        }
        double sum = 0;
        std::fill(out.begin(), out.end(), 0.0);
        for (int j = 0; j < keys; ++j) {
          const double p = std::exp(score[j] - max);
          sum += p;
          quant::dequantize_row(kv.dtype,
                                key_row_of_position(kv, seq.pages, j, h / group) + kv.value_offset,
                                row.data(), d);
          for (int e = 0; e < d; ++e) out[e] += p * row[e];
        }
        float* y = args.out.row(seq.q_begin + i) + static_cast<int64_t>(h) * d;
        for (int e = 0; e < d; ++e) y[e] = static_cast<float>(out[e] / sum);
      }
    }
  }
}

void route(const RouteArgs& args) {
  RouterScratch<double> scratch;
  const int top_k = args.router->top_k;
  for (int64_t t = 0; t < args.logits.rows; ++t) {
    route_row(*args.router, args.logits.row(t), scratch, args.experts + t * top_k,
              args.weights + t * top_k);
  }
}

}  // namespace capstan::kernels::ref
