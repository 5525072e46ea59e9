// Latent attention in the naive form: keys and values of one head, expanded for a window of keys,
// against the queries of a prompt. For a vector type V.
//
// Keys and values come as panels (product_impl.h), so scores have one lane per key and the weighted
// sum one lane per value element: every element is a chain of fused multiply-adds in ascending
// order. Windows follow each other in ascending order and carry maximum, sum and weighted values
// along, which is the merge by log-sum-exp; tiles of 64 keys lie at absolute positions, so neither
// windows nor chunks of the prompt show in the bits.
#pragma once

#include "kernels/simd/mla_impl.h"

namespace capstan::kernels::simd {

template <class V, class Row>
void stage_latent_panel(const PagedKv& cache, const int32_t* pages, const MlaShape& s, int first,
                        int key_end, const MlaLatents& to) {
  const int panel = first % kMlaSegment / kMlaColumns, count = std::min(16, key_end - first);
  float* rows = to.rows + int64_t{panel} * kMlaColumns * s.rank;
  float* c = to.c + int64_t{panel} * kMlaColumns * s.rank;
  float* rope = to.rope + int64_t{panel} * kMlaColumns * s.rope_dim;
  constexpr int kStrip = 64;  // elements of sixteen keys decoded at a time
  for (int begin = 0; begin < s.cache_dim(); begin += kStrip) {
    const int n = std::min(kStrip, s.cache_dim() - begin);
    float strip[kMlaColumns][kStrip] = {};
    for (int t = 0; t < count; ++t) {
      const std::byte* row = key_row_of_position(cache, pages, first + t, 0) + begin * Row::kBytes;
      stage_row<V, Row>(row, row, n, n, strip[t]);
    }
    for (int i = 0; i < n; ++i) {
      const int e = begin + i;
      float* out =
          e < s.rank ? c + int64_t{e} * kMlaColumns : rope + int64_t{e - s.rank} * kMlaColumns;
      for (int t = 0; t < kMlaColumns; ++t) out[t] = strip[t][i];
    }
    const int latent = std::min(n, s.rank - begin);
    for (int t = 0; t < kMlaColumns && latent > 0; ++t) {
      std::memcpy(rows + int64_t{t} * s.rank + begin, strip[t],
                  sizeof(float) * static_cast<size_t>(latent));
    }
  }
}

template <class V>
void stage_latents(const PagedKv& cache, const int32_t* pages, const MlaShape& shape, int first,
                   int key_end, const MlaLatents& to) {
  switch (cache.dtype) {
    case DType::kF16:
      return stage_latent_panel<V, ElementF16<V>>(cache, pages, shape, first, key_end, to);
    case DType::kBF16:
      return stage_latent_panel<V, ElementBF16<V>>(cache, pages, shape, first, key_end, to);
    case DType::kF8E4M3:
      return stage_latent_panel<V, CachedF8<V>>(cache, pages, shape, first, key_end, to);
    default:
      return stage_latent_panel<V, ElementF32<V>>(cache, pages, shape, first, key_end, to);
  }
}

template <class V>
class NaiveBlock {
 public:
  explicit NaiveBlock(const MlaNaiveBlock& block)
      : b_(block),
        q_(block.scratch),
        scores_(q_ + int64_t{kMlaNaiveRows} * block.query_dim),
        factors_(scores_ + kMlaNaiveRows * kMlaTile) {}

  /// Queries [first, first + rows) against every key of the window that they see.
  void run(int first, int rows) {
    for (int r = 0; r < rows; ++r) {
      const float* from = b_.q + (first + r) * b_.q_stride;
      float* to = q_ + int64_t{r} * b_.query_dim;
      for (int i = 0; i < b_.query_dim; ++i) to[i] = from[i] * b_.scale;
      if (b_.key_begin == 0) {
        std::fill_n(values(first + r), b_.value_panels * kMlaColumns, 0.0f);
        max_sum(first + r)[0] = kNoScore;
        max_sum(first + r)[1] = 0.0f;
      }
    }
    const int last_key = std::min(b_.key_end, b_.first_position + first + rows);
    for (int tile = b_.key_begin; tile < last_key; tile += kMlaTile) {
      const int skip = std::max(0, tile - b_.first_position - first);  // queries before the tile
      attend_tile(tile, std::min(kMlaTile, last_key - tile), first + skip, skip, rows - skip);
    }
    for (int r = first; r < first + rows; ++r) {
      if (b_.first_position + r >= b_.key_end) continue;  // more windows to come
      const typename V::F inverse = V::set1(1.0f / max_sum(r)[1]);
      for (int i = 0; i < b_.value_panels * kMlaColumns; i += V::kLanes) {
        V::store(values(r) + i, V::mul(V::load(values(r) + i), inverse));
      }
    }
  }

 private:
  float* values(int r) const { return b_.values + r * b_.values_stride; }
  float* max_sum(int r) const { return b_.max_sum + r * b_.max_sum_stride; }

  /// n keys of a tile for queries [first, first + rows), which lie at `at` in the scratch.
  void attend_tile(int tile, int n, int first, int at, int rows) {
    const int panel = (tile - b_.key_begin) / kMlaColumns;
    float* scores = scores_ + at * kMlaTile;
    product_f32<V>(q_ + int64_t{at} * b_.query_dim, b_.query_dim, rows, b_.query_dim,
                   b_.k + int64_t{panel} * b_.query_dim * kMlaColumns,
                   int64_t{b_.query_dim} * kMlaColumns, (n + kMlaColumns - 1) / kMlaColumns, scores,
                   kMlaTile, kMlaColumns);
    const auto seen = [&](int r) { return std::min(n, b_.first_position + first + r + 1 - tile); };
    for (int r = 0; r < rows; ++r) {
      softmax_row<V>(scores + r * kMlaTile, seen(r), max_sum(first + r), factors_ + at + r);
    }
    const float* v = b_.v + int64_t{tile - b_.key_begin} * kMlaColumns;
    const auto weigh = [&]<int P>(int p) {
      for_even_runs<kProductRows>(rows, [&]<int R>(int r) {
        add<P, R, Start::kScaledY>(v, p, 0, seen(r), first, r, at);
        // Later rows of the run see some keys more, which the first must not touch.
        for (int i = 1; i < R; ++i) {
          if (seen(r + i) > seen(r)) {
            add<P, 1, Start::kY>(v, p, seen(r), seen(r + i), first, r + i, at);
          }
        }
      });
    };
    constexpr int kWide = panels_of<V>(kProductRows);
    int p = 0;
    for (; p + kWide <= b_.value_panels; p += kWide) weigh.template operator()<kWide>(p);
    for (; p < b_.value_panels; ++p) weigh.template operator()<1>(p);
  }

  /// Weighted values of keys [begin, end) of the tile for R rows from row r on, P panels from p on.
  template <int P, int R, Start kStart>
  void add(const float* v, int p, int begin, int end, int first, int r, int at) {
    constexpr int64_t kPanel = int64_t{kMlaSegment} * kMlaColumns;
    const float* from = v + p * kPanel + int64_t{begin} * kMlaColumns;
    product_tile<V, ElementF32<V>, kStart, R, P>(
        scores_ + (at + r) * kMlaTile + begin, kMlaTile, end - begin,
        reinterpret_cast<const std::byte*>(from), 4 * kPanel, nullptr, 0, 0, factors_ + at + r,
        values(first + r) + p * kMlaColumns, b_.values_stride, kMlaColumns);
  }

  const MlaNaiveBlock& b_;
  float* q_;
  float* scores_;
  float* factors_;
};

template <class V>
void attend_naive(const MlaNaiveBlock& block) {
  NaiveBlock<V> run(block);
  // Queries before the window see none of it.
  for (int i = std::max(0, block.key_begin - block.first_position); i < block.q_len;
       i += kMlaNaiveRows) {
    run.run(i, std::min(kMlaNaiveRows, block.q_len - i));
  }
}

}  // namespace capstan::kernels::simd
