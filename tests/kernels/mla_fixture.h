// Latent attention with random weights and caches, and its definition in float64.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "kernels/mla_projection.h"
#include "kernels/ops_fixture.h"

namespace capstan::kernels {

/// kv_b of one layer in one dtype, and the float32 values that it stands for.
class KvB {
 public:
  KvB(std::mt19937& random, const MlaShape& shape, DType dtype) : shape_(shape) {
    const int rows = shape.heads * (shape.nope_dim + shape.value_dim), cols = shape.rank;
    values_ = random_floats(random, static_cast<size_t>(rows) * static_cast<size_t>(cols),
                            1.0f / std::sqrt(static_cast<float>(cols)));
    bytes_.resize(dtype_bytes(dtype, static_cast<int64_t>(values_.size())));
    view_ = {bytes_.data(), dtype, {rows, cols}, "layer.kv_b_proj.weight"};
    const int64_t scale_rows = (rows + 127) / 128, scale_cols = (cols + 127) / 128;
    if (dtype == DType::kF8E4M3) {
      for (int64_t i = 0; i < scale_rows * scale_cols; ++i) {
        scales_.push_back(0.001f * static_cast<float>(1 + random() % 7));
      }
      scale_view_ = {reinterpret_cast<const std::byte*>(scales_.data()),
                     DType::kF32,
                     {scale_rows, scale_cols},
                     "layer.kv_b_proj.weight_scale_inv"};
      for (size_t i = 0; i < values_.size(); ++i) values_[i] /= scale_of(i);
    }
    const auto n = static_cast<int64_t>(values_.size());
    EXPECT_TRUE(quant::quantize_row(dtype, values_.data(), bytes_.data(), n).ok());
    quant::dequantize_row(dtype, bytes_.data(), values_.data(), n);
    if (dtype == DType::kF8E4M3) {
      for (size_t i = 0; i < values_.size(); ++i) values_[i] *= scale_of(i);
    }
  }
  KvB(const KvB&) = delete;

  const MlaShape& shape() const { return shape_; }
  const std::vector<float>& values() const { return values_; }
  std::vector<std::byte>& bytes() { return bytes_; }
  MlaProjectionSpec spec() const {
    MlaProjectionSpec spec;
    spec.shape = shape_;
    spec.kv_b = view_;
    spec.kv_b_scale = scale_view_;
    return spec;
  }
  /// Row d of K_h, row j of V_h.
  const float* k_row(int head, int d) const { return row(head, d); }
  const float* v_row(int head, int j) const { return row(head, shape_.nope_dim + j); }

 private:
  const float* row(int head, int i) const {
    return values_.data() +
           (int64_t{head} * (shape_.nope_dim + shape_.value_dim) + i) * shape_.rank;
  }
  float scale_of(size_t i) const {
    const auto cols = static_cast<size_t>(shape_.rank);
    return scales_[i / cols / 128 * ((cols + 127) / 128) + i % cols / 128];
  }

  MlaShape shape_;
  std::vector<float> values_, scales_;
  std::vector<std::byte> bytes_;
  TensorView view_, scale_view_;
};

/// A latent cache: one row a token, NaN wherever no token lies.
class LatentCache {
 public:
  LatentCache(const MlaShape& shape, DType dtype, int page_size, int tokens, unsigned seed)
      : cache_(dtype, page_size, 1, shape.cache_dim(), tokens, seed), kv_(cache_.kv()) {
    kv_.page_stride = kv_.head_stride;  // no values of their own
    kv_.value_offset = 0;
    kv_.value_dim = shape.rank;
  }
  const PagedKv& kv() const { return kv_; }
  std::vector<int32_t> take_pages(int tokens) { return cache_.take_pages(tokens); }

 private:
  RandomCache cache_;
  PagedKv kv_;
};

/// One sequence after mla_store: queries and latent rows of every position.
struct LatentSequence {
  MlaShape shape;
  int length = 0;
  std::vector<float> q;      // [length][heads * query_dim]
  std::vector<float> cache;  // [length][cache_dim], as a cache of the dtype holds them

  LatentSequence(std::mt19937& random, const MlaShape& s, int length_, DType dtype)
      : shape(s), length(length_) {
    const auto n = static_cast<size_t>(length);
    q = random_floats(random, n * static_cast<size_t>(s.heads * s.query_dim()), 1.5f);
    cache = random_floats(random, n * static_cast<size_t>(s.cache_dim()));
    std::vector<std::byte> bytes(dtype_bytes(dtype, static_cast<int64_t>(cache.size())));
    (void)quant::quantize_row(dtype, cache.data(), bytes.data(),
                              static_cast<int64_t>(cache.size()));
    quant::dequantize_row(dtype, bytes.data(), cache.data(), static_cast<int64_t>(cache.size()));
  }

  float scale() const { return 1.0f / std::sqrt(static_cast<float>(shape.query_dim())); }
  const float* query(int position) const {
    return q.data() + int64_t{position} * shape.heads * shape.query_dim();
  }
  const float* latent(int position) const {
    return cache.data() + int64_t{position} * shape.cache_dim();
  }

  std::vector<int32_t> store(LatentCache& to) const {
    std::vector<int32_t> pages = to.take_pages(length);
    for (int p = 0; p < length; ++p) {
      (void)quant::quantize_row(to.kv().dtype, latent(p),
                                key_row_of_position(to.kv(), pages.data(), p, 0),
                                shape.cache_dim());
    }
    return pages;
  }

  /// One position in float64 by the absorbed formulas: qa = K^T qn, then attention over cache rows,
  /// then o = V u. [heads * value_dim]
  std::vector<double> dense(const KvB& weights, int position) const {
    const MlaShape& s = shape;
    std::vector<double> out;
    for (int h = 0; h < s.heads; ++h) {
      const float* q_row = query(position) + h * s.query_dim();
      std::vector<double> qa(static_cast<size_t>(s.cache_dim()), 0.0);
      for (int d = 0; d < s.nope_dim; ++d) {
        for (int e = 0; e < s.rank; ++e) {
          qa[static_cast<size_t>(e)] += static_cast<double>(q_row[d]) * weights.k_row(h, d)[e];
        }
      }
      for (int e = 0; e < s.rope_dim; ++e)
        qa[static_cast<size_t>(s.rank + e)] = q_row[s.nope_dim + e];
      std::vector<double> p(static_cast<size_t>(position) + 1), u(static_cast<size_t>(s.rank), 0.0);
      double max = -1e300, sum = 0;
      for (int t = 0; t <= position; ++t) {
        double dot = 0;
        for (int e = 0; e < s.cache_dim(); ++e) dot += qa[static_cast<size_t>(e)] * latent(t)[e];
        p[static_cast<size_t>(t)] = dot * scale();
        max = std::max(max, dot * scale());
      }
      for (double& x : p) sum += x = std::exp(x - max);
      for (int t = 0; t <= position; ++t) {
        for (int e = 0; e < s.rank; ++e) {
          u[static_cast<size_t>(e)] += p[static_cast<size_t>(t)] / sum * latent(t)[e];
        }
      }
      for (int j = 0; j < s.value_dim; ++j) {
        double o = 0;
        for (int e = 0; e < s.rank; ++e) o += u[static_cast<size_t>(e)] * weights.v_row(h, j)[e];
        out.push_back(o);
      }
    }
    return out;
  }
};

/// Queries [first, first + count) of a sequence.
struct LatentPiece {
  const LatentSequence* sequence;
  const std::vector<int32_t>* pages;
  int first;
  int count;
};

/// One call of `run` over the pieces; rows of the result in their order, heads * value_dim each.
template <class Run>
std::vector<float> attend_latent(const Run& run, const PagedKv& kv, const MlaProjection& projection,
                                 MlaForm form, const std::vector<LatentPiece>& pieces) {
  const MlaShape& s = pieces[0].sequence->shape;
  const int width = s.heads * s.query_dim(), stride = width + 5, out_width = s.heads * s.value_dim;
  int rows = 0;
  for (const LatentPiece& p : pieces) rows += p.count;
  std::vector<float> q(static_cast<size_t>(rows) * static_cast<size_t>(stride), NAN);
  std::vector<float> out(static_cast<size_t>(rows) * static_cast<size_t>(out_width), NAN);
  std::vector<SequenceSlice> slices;
  int row = 0;
  for (const LatentPiece& p : pieces) {
    slices.push_back({row, p.count, p.first + p.count, p.pages->data()});
    for (int i = 0; i < p.count; ++i, ++row) {
      std::memcpy(q.data() + int64_t{row} * stride, p.sequence->query(p.first + i),
                  sizeof(float) * static_cast<size_t>(width));
    }
  }
  MlaAttentionArgs args;
  args.shape = s;
  args.q = {q.data(), rows, width, stride};
  args.cache = kv;
  args.projection = &projection;
  args.scale = pieces[0].sequence->scale();
  args.form = form;
  args.sequences = slices;
  args.out = {out.data(), rows, out_width, out_width};
  run(args);
  return out;
}

/// max|x-y| / max|y|; infinite if x is not finite.
inline double relmax(const float* x, const std::vector<double>& y) {
  double difference = 0, largest = 0;
  for (size_t i = 0; i < y.size(); ++i) {
    if (!std::isfinite(x[i])) return INFINITY;
    difference = std::max(difference, std::fabs(x[i] - y[i]));
    largest = std::max(largest, std::fabs(y[i]));
  }
  return difference / largest;
}

}  // namespace capstan::kernels
