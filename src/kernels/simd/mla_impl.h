// Latent attention in the absorbed form: every head's query against the cached rows themselves, all
// heads sharing one key row whose first `rank` elements are also the value. For a vector type V.
//
// A tile of 64 rows is decoded to float32 once and serves the scores and the weighted sum of all
// heads. Bits of a row: a score has lanes along the key row, one fused multiply-add per lane and
// step, then V::sum4's tree; a tile's maximum, exp2 and sum per row; weighted latents are scaled by
// one factor, then take one fused multiply-add per key in ascending order. Neither the rows that
// share a micro-kernel nor the split of keys among threads shows.
#pragma once

#include <algorithm>
#include <cstring>
#include <limits>

#include "kernels/mla_kernels.h"
#include "kernels/paged_kv.h"
#include "kernels/simd/product_impl.h"
#include "kernels/simd/rows_impl.h"
#include "quant/codecs.h"

namespace capstan::kernels::simd {

inline constexpr float kNoScore = -std::numeric_limits<float>::infinity();

/// Elements of a cached row; unlike weights, F8 may hold NaN.
template <class V>
struct CachedF8 {
  static constexpr int kBytes = 1;
  static typename V::F load(const std::byte* p) { return load_e4m3<V>(p); }
};

template <class V>
float exp2_one(float x) {
  float out[V::kLanes];
  V::store(out, V::exp2(V::set1(x)));
  return out[0];
}

/// A cached row in float32 with zeros behind it. `next`: a row wanted a tile later.
template <class V, class Row>
void stage_row(const std::byte* row, const std::byte* next, int dim, int stride, float* to) {
  int i = 0;
  for (; i + V::kLanes <= dim; i += V::kLanes) {
    if (i * Row::kBytes % 64 < V::kLanes * Row::kBytes) {
      __builtin_prefetch(next + i * Row::kBytes, 0, 2);
    }
    V::store(to + i, Row::load(row + i * Row::kBytes));
  }
  if (i < dim) {
    std::byte tail[V::kLanes * 4] = {};
    std::memcpy(tail, row + i * Row::kBytes, static_cast<size_t>((dim - i) * Row::kBytes));
    V::store(to + i, Row::load(tail));
    i += V::kLanes;
  }
  for (; i < stride; i += V::kLanes) V::store(to + i, V::zero());
}

/// Scores of the rows of a tile become probabilities relative to the row's new maximum; the factor
/// for what was summed before goes to *factor.
template <class V>
void softmax_row(float* scores, int seen, float* max_sum, float* factor) {
  using F = typename V::F;
  const F masked = V::set1(kNoScore);
  F max = masked;
  for (int j = 0; j < seen; j += V::kLanes) {
    const F z = V::first(seen - j, V::load(scores + j), masked);
    V::store(scores + j, z);
    max = V::max(max, z);
  }
  const float old_max = max_sum[0], new_max = std::max(old_max, V::max_lane(max));
  *factor = old_max == new_max ? 1.0f : exp2_one<V>(old_max - new_max);
  const F reference = V::set1(new_max);
  F sum = V::zero();
  for (int j = 0; j < seen; j += V::kLanes) {
    const F p = V::exp2(V::sub(V::load(scores + j), reference));
    V::store(scores + j, p);
    sum = V::add(sum, p);
  }
  max_sum[0] = new_max;
  max_sum[1] = max_sum[1] * *factor + V::sum(sum);
}

/// Scores of R rows against four keys.
template <class V, int R>
void score_tile(const float* keys, int stride, const float* q, float* scores) {
  using F = typename V::F;
  F acc[R][4];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int m = 0; m < 4; ++m) acc[r][m] = V::zero();
  }
  for (int i = 0; i < stride; i += V::kLanes) {
    F x[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      x[r] = V::load(q + r * stride + i);
      V::pin(x[r]);  // GCC would rather load it again for each use: loads are the bottleneck then
    }
#pragma GCC unroll 4
    for (int m = 0; m < 4; ++m) {
      F key = V::load(keys + m * stride + i);
      V::pin(key);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) acc[r][m] = V::fma(x[r], key, acc[r][m]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    V::sum4(acc[r][0], acc[r][1], acc[r][2], acc[r][3], scores + r * kMlaTile);
  }
}

/// result[r] = result[r] * factor[r] + sum of p[r][j] * tile[j] over n rows of the tile, C vectors.
template <class V, int R, int C>
void weigh_tile(const float* tile, int stride, int n, const float* p, const float* factors,
                float* result, int result_stride) {
  using F = typename V::F;
  F acc[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const F f = V::set1(factors[r]);
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      acc[r][c] = V::mul(V::load(result + r * result_stride + c * V::kLanes), f);
    }
  }
  for (int j = 0; j < n; ++j) {
    F w[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) w[r] = V::set1(p[r * kMlaTile + j]);
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      F v = V::load(tile + int64_t{j} * stride + c * V::kLanes);
      V::pin(v);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) acc[r][c] = V::fma(w[r], v, acc[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      V::store(result + r * result_stride + c * V::kLanes, acc[r][c]);
    }
  }
}

/// One segment of one block.
template <class V, class Row>
class LatentSegment {
 public:
  LatentSegment(const MlaBlock& block, int segment, const MlaScratch& scratch, float* state)
      : block_(block),
        scratch_(scratch),
        state_(state),
        dim_(block.cache->head_dim),
        stride_(mla_padded(dim_)),
        values_(mla_padded(block.rank)),
        state_stride_(mla_state_stride(block.rank)),
        begin_(segment * kMlaSegment),
        end_(std::min(begin_ + kMlaSegment, block.key_end())) {}

  void run() {
    locate_rows();
    for (int r = 0; r < block_.rows(); ++r) {
      float* state = state_ + int64_t{r} * state_stride_;
      std::fill(state, state + values_, 0.0f);
      state[values_] = kNoScore;
      state[values_ + 1] = 0.0f;
    }
    for (int tile = begin_; tile < end_; tile += kMlaTile) attend_tile(tile);
  }

 private:
  /// Keys of the segment, and of the tile behind it to fetch ahead.
  void locate_rows() {
    const PagedKv& kv = *block_.cache;
    const int stop = std::min(begin_ + kMlaSegment + kMlaTile, block_.key_end());
    int i = 0;
    for (int key = begin_; key < stop; ++key, ++i) {
      rows_[i] = key_row_of_position(kv, block_.pages, key, 0);
    }
    for (const int last = i - 1; i < kMlaSegment + kMlaTile; ++i) rows_[i] = rows_[last];
  }

  void attend_tile(int tile) {
    const int n = std::min(kMlaTile, end_ - tile);
    for (int j = 0; j < n; ++j) {
      const std::byte* const* row = rows_ + (tile - begin_) + j;
      stage_row<V, Row>(row[0], row[kMlaTile], dim_, stride_, scratch_.tile + int64_t{j} * stride_);
    }
    if (tile + n <= block_.first_position + 1) return attend_rows(0, block_.rows(), n);
    for (int i = 0; i < block_.q_len; ++i) {  // keys that only later queries see
      const int seen = std::min(n, block_.first_position + i + 1 - tile);
      if (seen > 0) attend_rows(i * block_.heads, block_.heads, seen);
    }
  }

  void attend_rows(int first, int rows, int seen) {
    const float* q = block_.q + int64_t{first} * stride_;
    float* scores = scratch_.scores + first * kMlaTile;
    // A run's queries and eight keys share the first level cache; queries of 16 heads do not fit it
    // and would come from the second for every four keys.
    for (int j = 0; j < seen; j += 8) {
      for_even_runs<V::kRows>(rows, [&]<int R>(int r) {
        for (int at = j; at < std::min(seen, j + 8); at += 4) {
          score_tile<V, R>(scratch_.tile + int64_t{at} * stride_, stride_, q + int64_t{r} * stride_,
                           scores + r * kMlaTile + at);
        }
      });
    }
    float* state = state_ + int64_t{first} * state_stride_;
    float* factors = scratch_.factors + first;
    for (int r = 0; r < rows; ++r) {
      softmax_row<V>(scores + r * kMlaTile, seen, state + int64_t{r} * state_stride_ + values_,
                     factors + r);
    }
    const auto weigh = [&]<int C>(int column) {
      for_even_runs<V::kRows>(rows, [&]<int R>(int r) {
        weigh_tile<V, R, C>(scratch_.tile + column, stride_, seen, scores + r * kMlaTile,
                            factors + r, state + int64_t{r} * state_stride_ + column,
                            state_stride_);
      });
    };
    int column = 0;
    for (; column + 4 * V::kLanes <= values_; column += 4 * V::kLanes) {
      weigh.template operator()<4>(column);
    }
    for (; column < values_; column += V::kLanes) weigh.template operator()<1>(column);
  }

  const MlaBlock& block_;
  const MlaScratch& scratch_;
  float* state_;
  const int dim_, stride_, values_, state_stride_, begin_, end_;
  const std::byte* rows_[kMlaSegment + kMlaTile];
};

template <class V>
void attend_latents(const MlaBlock& block, int segment, const MlaScratch& scratch, float* state) {
  switch (block.cache->dtype) {
    case DType::kF16:
      return LatentSegment<V, ElementF16<V>>(block, segment, scratch, state).run();
    case DType::kBF16:
      return LatentSegment<V, ElementBF16<V>>(block, segment, scratch, state).run();
    case DType::kF8E4M3:
      return LatentSegment<V, CachedF8<V>>(block, segment, scratch, state).run();
    default:
      return LatentSegment<V, ElementF32<V>>(block, segment, scratch, state).run();
  }
}

template <class V>
void merge_latent_states(float* total, const float* part, int rows, int rank) {
  const int values = mla_padded(rank), stride = mla_state_stride(rank);
  for (int r = 0; r < rows; ++r, total += stride, part += stride) {
    if (part[values] == kNoScore) continue;  // no keys of this row in the segment
    const float max = std::max(total[values], part[values]);
    const float a = exp2_one<V>(total[values] - max), b = exp2_one<V>(part[values] - max);
    for (int i = 0; i < values; i += V::kLanes) {
      V::store(total + i,
               V::fma(V::load(part + i), V::set1(b), V::mul(V::load(total + i), V::set1(a))));
    }
    total[values + 1] = total[values + 1] * a + part[values + 1] * b;
    total[values] = max;
  }
}

template <class V>
void finish_latents(const MlaBlock& block, const float* total) {
  const int values = mla_padded(block.rank), stride = mla_state_stride(block.rank);
  for (int r = 0; r < block.rows(); ++r, total += stride) {
    float* out = block.out + int64_t{r} * values;
    const typename V::F inverse = V::set1(1.0f / total[values + 1]);
    for (int i = 0; i < values; i += V::kLanes) {
      V::store(out + i, V::mul(V::load(total + i), inverse));
    }
  }
}

template <class V>
void mla_store_row(const MlaStoreArgs& args, int64_t row, float* scratch) {
  const MlaShape& s = args.shape;
  const float* cos = args.cos + row * (s.rope_dim / 2);
  const float* sin = args.sin + row * (s.rope_dim / 2);
  for (int h = 0; h < s.heads; ++h) {
    rotate<V>(args.q.row(row) + int64_t{h} * s.query_dim() + s.nope_dim, cos, sin, s.rope_dim,
              args.rope);
  }
  const float* kv = args.kv.row(row);
  rms_norm_row<V>(kv, args.norm, args.eps, scratch, s.rank);
  std::copy(kv + s.rank, kv + s.cache_dim(), scratch + s.rank);
  rotate<V>(scratch + s.rank, cos, sin, s.rope_dim, args.rope);
  std::byte* slot = key_row_of_slot(args.cache, args.slots[static_cast<size_t>(row)], 0);
  if (args.cache.dtype == DType::kF8E4M3) {
    (void)quant::quantize_row(DType::kF8E4M3, scratch, slot, s.cache_dim());  // cannot fail
  } else {
    store_kv_row<V>(args.cache.dtype, scratch, slot, s.cache_dim());
  }
}

}  // namespace capstan::kernels::simd
