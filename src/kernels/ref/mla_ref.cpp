#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/mla_projection.h"
#include "kernels/paged_kv.h"
#include "kernels/ref/ref_ops.h"
#include "quant/codecs.h"

namespace capstan::kernels::ref {
namespace {

/// Keys and values of one head for all positions of a sequence.
struct HeadRows {
  std::vector<double> k, v;  // [kv_len][nope_dim], [kv_len][value_dim]
};

HeadRows expand(const MlaShape& s, const std::vector<float>& cache, int kv_len,
                const MlaMatrix& key, const MlaMatrix& value) {
  std::vector<float> k(static_cast<size_t>(key.k) *
                       static_cast<size_t>((key.panels * kMlaColumns)));
  std::vector<float> v(static_cast<size_t>(value.k) *
                       static_cast<size_t>((value.panels * kMlaColumns)));
  PackedMla::decode(key, k.data());
  PackedMla::decode(value, v.data());
  HeadRows out;
  out.k.assign(static_cast<size_t>(kv_len) * static_cast<size_t>(s.nope_dim), 0.0);
  out.v.assign(static_cast<size_t>(kv_len) * static_cast<size_t>(s.value_dim), 0.0);
  for (int t = 0; t < kv_len; ++t) {
    const float* c = cache.data() + int64_t{t} * s.cache_dim();
    double* kt = out.k.data() + int64_t{t} * s.nope_dim;
    double* vt = out.v.data() + int64_t{t} * s.value_dim;
    for (int d = 0; d < s.nope_dim; ++d) {
      const float* row = k.data() + int64_t{d} * (key.panels * kMlaColumns);
      for (int e = 0; e < s.rank; ++e) kt[d] += static_cast<double>(row[e]) * c[e];
    }
    for (int e = 0; e < s.rank; ++e) {
      const float* row = v.data() + int64_t{e} * (value.panels * kMlaColumns);
      for (int j = 0; j < s.value_dim; ++j) vt[j] += static_cast<double>(row[j]) * c[e];
    }
  }
  return out;
}

}  // namespace

void mla_store(const MlaStoreArgs& args) {
  const MlaShape& s = args.shape;
  std::vector<float> row(static_cast<size_t>(s.cache_dim()));
  for (int64_t t = 0; t < args.kv.rows; ++t) {
    const float* cos = args.cos + t * (s.rope_dim / 2);
    const float* sin = args.sin + t * (s.rope_dim / 2);
    for (int h = 0; h < s.heads; ++h) {
      rotate(args.q.row(t) + int64_t{h} * s.query_dim() + s.nope_dim, cos, sin, s.rope_dim,
             args.rope);
    }
    const float* kv = args.kv.row(t);
    normalise(kv, args.norm, args.eps, row.data(), s.rank);
    std::copy(kv + s.rank, kv + s.cache_dim(), row.begin() + s.rank);
    rotate(row.data() + s.rank, cos, sin, s.rope_dim, args.rope);
    store_row(args.cache.dtype, row.data(),
              key_row_of_slot(args.cache, args.slots[static_cast<size_t>(t)], 0), s.cache_dim());
  }
}

void mla_attention(const MlaAttentionArgs& args) {
  if (args.sequences.empty()) return;  // and perhaps no projection
  const MlaShape& s = args.shape;
  const auto& projection = static_cast<const PackedMla&>(*args.projection);
  for (const SequenceSlice& seq : args.sequences) {
    std::vector<float> cache(static_cast<size_t>(seq.kv_len) * static_cast<size_t>(s.cache_dim()));
    for (int t = 0; t < seq.kv_len; ++t) {
      quant::dequantize_row(args.cache.dtype, key_row_of_position(args.cache, seq.pages, t, 0),
                            cache.data() + int64_t{t} * s.cache_dim(), s.cache_dim());
    }
    for (int h = 0; h < s.heads; ++h) {
      const HeadRows rows = expand(s, cache, seq.kv_len, projection.key(h), projection.value(h));
      for (int i = 0; i < seq.q_len; ++i) {
        const int keys = seq.kv_len - seq.q_len + i + 1;
        const float* q = args.q.row(seq.q_begin + i) + int64_t{h} * s.query_dim();
        std::vector<double> score(static_cast<size_t>(keys), 0.0);
        double max = -std::numeric_limits<double>::infinity();
        for (int t = 0; t < keys; ++t) {
          double& z = score[static_cast<size_t>(t)];
          const double* k = rows.k.data() + int64_t{t} * s.nope_dim;
          const float* kr = cache.data() + int64_t{t} * s.cache_dim() + s.rank;
          for (int d = 0; d < s.nope_dim; ++d) z += q[d] * k[d];
          for (int d = 0; d < s.rope_dim; ++d) z += static_cast<double>(q[s.nope_dim + d]) * kr[d];
          z *= args.scale;
          max = std::max(max, z);
        }
        double sum = 0;
        std::vector<double> o(static_cast<size_t>(s.value_dim), 0.0);
        for (int t = 0; t < keys; ++t) {
          const double p = std::exp(score[static_cast<size_t>(t)] - max);
          sum += p;
          const double* v = rows.v.data() + int64_t{t} * s.value_dim;
          for (int j = 0; j < s.value_dim; ++j) o[static_cast<size_t>(j)] += p * v[j];
        }
        float* out = args.out.row(seq.q_begin + i) + int64_t{h} * s.value_dim;
        for (int j = 0; j < s.value_dim; ++j) {
          out[j] = static_cast<float>(o[static_cast<size_t>(j)] / sum);
        }
      }
    }
  }
}

}  // namespace capstan::kernels::ref
