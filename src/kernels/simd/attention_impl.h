// Attention of one block over the paged cache, for a vector type V: online softmax in tiles of
// kKeyTile keys, partial results per kKeySegment keys.
//
// Bits of a row. Score (row, key): lanes along head_dim, one fused multiply-add per lane and step,
// then V::sum4's tree. Tile: maximum, exp2, old sums and values scaled by one factor, new ones
// added in ascending key order, one fused multiply-add per key. Nothing of this depends on which
// other rows or keys share a micro-kernel, so any blocking below gives the same bits.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <limits>
#include <type_traits>

#include "kernels/cpu_kernels.h"
#include "kernels/paged_kv.h"
#include "kernels/simd/elements.h"

#define CAPSTAN_ALWAYS_INLINE inline __attribute__((always_inline))

namespace capstan::kernels::simd {

inline constexpr float kLog2E = 1.44269504088896340736f;
inline constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

template <class V>
float exp2_scalar(float x) {
  float out[V::kLanes];
  V::store(out, V::exp2(V::set1(x)));
  return out[0];
}

/// Rows of the cache by pointer; `offset` leads from the key's row to its value's. A tile's worth
/// of pointers lies behind the tile's.
struct CacheRows {
  const std::byte* const* rows;
  int64_t offset;
  const std::byte* operator[](int j) const { return rows[j] + offset; }
  const std::byte* next_tile(int j) const { return rows[j + kKeyTile] + offset; }
};
/// Rows decoded to float32 in scratch memory.
struct StagedRows {
  const std::byte* base;
  int64_t stride;  // bytes
  const std::byte* operator[](int j) const { return base + j * stride; }
};

/// Fetches one line that the same phase of the next tile will read, into the second-level cache.
/// Runs of a page are too short for the hardware's prefetchers, a core keeps only some two dozen
/// misses in flight, and one demand miss stalls everything: so hints are spread evenly over the
/// arithmetic and a whole tile (about 1 us) ahead. Measured on Zen 3, one thread, head_dim 64, F16:
/// 48% of the read bandwidth without, 56% with hints for the tile's values while its keys are
/// scored, 71% like this (19 GB/s of reads against 13.5).
CAPSTAN_ALWAYS_INLINE void prefetch(const std::byte* p) { __builtin_prefetch(p, 0, 2); }

/// Scores of R rows against the first n keys, four at a time; keys up to the next multiple of four
/// must be readable.
template <class V, class Element, int R, bool kPrefetch, class Rows>
void score_rows(const Rows& keys, int n, const float* q, int q_stride, int chunks, float* scores) {
  using F = typename V::F;
  for (int j = 0; j < n; j += 4) {
    const std::byte* k[4] = {keys[j], keys[j + 1], keys[j + 2], keys[j + 3]};
    F acc[R][4];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
      for (int m = 0; m < 4; ++m) acc[r][m] = V::zero();
    }
    // While four chunks are multiplied, each of the four rows has four chunks fetched.
    constexpr int kFetch = 4 * V::kLanes * Element::kBytes;
    const std::byte* next[4];
    if constexpr (kPrefetch) {
      for (int m = 0; m < 4; ++m) next[m] = keys.next_tile(j + m);
    }
    for (int c = 0; c < chunks; ++c) {
      const int i = c * V::kLanes;
      if constexpr (kPrefetch) {
#pragma GCC unroll 4
        for (int b = 0; b < kFetch; b += 64) prefetch(next[c % 4] + c / 4 * kFetch + b);
      }
      F x[R];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) {
        x[r] = V::load(q + r * q_stride + i);
        V::pin(x[r]);  // GCC would rather load it again for each use, and loads are the bottleneck
      }
#pragma GCC unroll 4
      for (int m = 0; m < 4; ++m) {
        const F key = Element::load(k[m] + i * Element::kBytes);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) acc[r][m] = V::fma(x[r], key, acc[r][m]);
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      V::sum4(acc[r][0], acc[r][1], acc[r][2], acc[r][3], scores + r * kKeyTile + j);
    }
  }
}

/// result[r] = result[r] * factor[r] + sum over keys of p[r][key] * values[key], for R rows and C
/// vectors starting at element i0.
template <class V, class Element, int R, int C, bool kPrefetch, class Rows>
void add_values(const Rows& values, int n, int i0, const float* p, const float* factor,
                float* result, int stride) {
  using F = typename V::F;
  F acc[R][C];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const F f = V::set1(factor[r]);
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      acc[r][c] = V::mul(V::load(result + r * stride + i0 + c * V::kLanes), f);
    }
  }
  for (int j = 0; j < n; ++j) {
    const std::byte* row = values[j];
    if constexpr (kPrefetch) {
#pragma GCC unroll 4
      for (int b = 0; b < C * V::kLanes * Element::kBytes; b += 64) {
        prefetch(values.next_tile(j) + i0 * Element::kBytes + b);
      }
    }
    F w[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) w[r] = V::set1(p[r * kKeyTile + j]);
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      const F v = Element::load(row + (i0 + c * V::kLanes) * Element::kBytes);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) acc[r][c] = V::fma(w[r], v, acc[r][c]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) {
      V::store(result + r * stride + i0 + c * V::kLanes, acc[r][c]);
    }
  }
}

template <class V, class Element, int R, bool kPrefetch, class Rows>
void add_values_all(const Rows& values, int n, int chunks, const float* p, const float* factor,
                    float* result, int stride) {
  int c = 0;
  for (; c + 4 <= chunks; c += 4) {
    add_values<V, Element, R, 4, kPrefetch>(values, n, c * V::kLanes, p, factor, result, stride);
  }
  for (; c + 2 <= chunks; c += 2) {
    add_values<V, Element, R, 2, kPrefetch>(values, n, c * V::kLanes, p, factor, result, stride);
  }
  if (c < chunks) {
    add_values<V, Element, R, 1, kPrefetch>(values, n, c * V::kLanes, p, factor, result, stride);
  }
}

/// Calls f.template operator()<R>(row) over [begin, end) in runs of R rows, R as large as fits.
template <class V, class F>
void for_row_runs(int begin, int end, F&& f) {
  int r = begin;
  if constexpr (V::kRows >= 6) {
    for (; r + 6 <= end; r += 6) f.template operator()<6>(r);
  }
  for (; r + 3 <= end; r += 3) f.template operator()<3>(r);
  if (r + 2 == end) {
    f.template operator()<2>(r);
  } else if (r + 1 == end) {
    f.template operator()<1>(r);
  }
}

template <class V>
void load_queries(const AttentionBlock& block, const AttentionScratch& scratch) {
  const int d = block.kv->head_dim, stride = padded_dim(d);
  for (int i = 0; i < block.q_len; ++i) {
    for (int g = 0; g < block.group; ++g) {
      float* to = scratch.q + static_cast<int64_t>(i * block.group + g) * stride;
      std::memcpy(to, block.q + i * block.q_stride + g * d, sizeof(float) * static_cast<size_t>(d));
      std::fill(to + d, to + stride, 0.0f);
    }
  }
}

/// One segment of one block.
template <class V, class Element>
class Segment {
 public:
  Segment(const AttentionBlock& block, int segment, const AttentionScratch& scratch, float* state)
      : block_(block),
        scratch_(scratch),
        state_(state),
        dim_(block.kv->head_dim),
        stride_(padded_dim(dim_)),
        begin_(segment * kKeySegment),
        end_(std::min(begin_ + kKeySegment, block.key_end())),
        rows_(block.rows()),
        chunks_((dim_ + V::kLanes - 1) / V::kLanes),
        // Above two runs of rows, decoding a key once per tile beats decoding it once per run; and
        // a head_dim that is no multiple of the lanes needs rows with zeros behind them.
        staged_(rows_ > 2 * V::kRows || dim_ % V::kLanes != 0) {}

  void run() {
    locate_rows();
    for (int r = 0; r < rows_; ++r) {
      float* state = row_state(r);
      std::fill(state, state + stride_, 0.0f);
      state[stride_] = kMinusInfinity;
      V::store(scratch_.sums + r * 16, V::zero());
    }
    for (int tile = begin_; tile < end_; tile += kKeyTile) attend_tile(tile);
    for (int r = 0; r < rows_; ++r) {
      row_state(r)[stride_ + 1] = V::sum(V::load(scratch_.sums + r * 16));
    }
  }

 private:
  float* row_state(int r) const { return state_ + static_cast<int64_t>(r) * state_stride(dim_); }

  /// Keys of the segment and of the tile behind it (for prefetching).
  void locate_rows() {
    const PagedKv& kv = *block_.kv;
    const int stop = std::min(begin_ + kKeySegment + kKeyTile, block_.key_end());
    int page = begin_ / kv.page_size, offset = begin_ % kv.page_size;
    const auto row_bytes = static_cast<int64_t>(dim_) * Element::kBytes;
    int i = 0;
    for (int key = begin_; key < stop; ++page, offset = 0) {
      const std::byte* row = key_row(kv, block_.pages[page], offset, block_.kv_head);
      const int count = std::min(kv.page_size - offset, stop - key);
      const std::byte** to = keys_ + i;
      for (int t = 0; t < count; ++t) to[t] = row + t * row_bytes;
      i += count;
      key += count;
    }
    // Full tiles, so that nobody need ask whether a key that is only prefetched exists.
    for (const int last = i - 1; i < static_cast<int>(std::size(keys_)); ++i)
      keys_[i] = keys_[last];
  }

  /// Keys that row r may see in the tile: positions up to its own.
  int visible(int r, int tile, int n) const {
    return std::min(n, block_.first_position + r / block_.group + 1 - tile);
  }

  /// Rows as float32 with zeros behind them, for blocks of many rows.
  void stage(const CacheRows& rows, int n) const {
    for (int j = 0; j < n; ++j) {
      const std::byte* row = rows[j];
      for (int b = 0; b < dim_ * Element::kBytes; b += 64) prefetch(rows.next_tile(j) + b);
      float* to = scratch_.tile + static_cast<int64_t>(j) * stride_;
      int i = 0;
      for (; i + V::kLanes <= dim_; i += V::kLanes)
        V::store(to + i, Element::load(row + i * Element::kBytes));
      if (i < dim_) {
        std::byte tail[V::kLanes * 4] = {};
        std::memcpy(tail, row + i * Element::kBytes,
                    static_cast<size_t>((dim_ - i) * Element::kBytes));
        V::store(to + i, Element::load(tail));
      }
    }
  }

  void attend_tile(int tile) {
    const int n = std::min(kKeyTile, end_ - tile);
    const int first_row = std::max(0, tile - block_.first_position) * block_.group;
    const std::byte* const* rows = keys_ + (tile - begin_);
    const CacheRows keys{rows, 0}, values{rows, block_.kv->value_offset};
    const StagedRows staged{reinterpret_cast<const std::byte*>(scratch_.tile),
                            int64_t{stride_} * 4};
    if (staged_) {
      stage(keys, n);
      score<ElementF32<V>>(staged, n, first_row);
      softmax(tile, n, first_row);
      stage(values, n);
      weigh<ElementF32<V>>(staged, tile, n, first_row);
    } else {
      score<Element>(keys, n, first_row);
      softmax(tile, n, first_row);
      weigh<Element>(values, tile, n, first_row);
    }
  }

  template <class Source, class Rows>
  void score(const Rows& keys, int n, int first_row) {
    for_row_runs<V>(first_row, rows_, [&]<int R>(int r) {
      const float* q = scratch_.q + static_cast<int64_t>(r) * stride_;
      float* scores = scratch_.scores + r * kKeyTile;
      if constexpr (std::is_same_v<Rows, CacheRows>) {
        if (r == first_row) {
          return score_rows<V, Source, R, true>(keys, n, q, stride_, chunks_, scores);
        }
      }
      score_rows<V, Source, R, false>(keys, n, q, stride_, chunks_, scores);
    });
  }

  /// Scores become probabilities relative to the row's new maximum; masked keys become 0. The
  /// factor for what was summed before goes to factor_row().
  void softmax(int tile, int n, int first_row) {
    using F = typename V::F;
    const F scale = V::set1(block_.scale * kLog2E);
    for (int r = first_row; r < rows_; ++r) {
      const int seen = visible(r, tile, n);
      float* s = scratch_.scores + r * kKeyTile;
      float* state = row_state(r);
      const F masked = V::set1(kMinusInfinity);
      F max = masked;
      for (int j = 0; j < seen; j += V::kLanes) {
        const F z = V::first(seen - j, V::mul(V::load(s + j), scale), masked);
        V::store(s + j, z);
        max = V::max(max, z);
      }
      const float old_max = state[stride_];
      const float new_max = std::max(old_max, V::max_lane(max));
      const float factor = old_max == new_max ? 1.0f : exp2_scalar<V>(old_max - new_max);
      const F reference = V::set1(new_max);
      F sum = V::mul(V::load(scratch_.sums + r * 16), V::set1(factor));
      for (int j = 0; j < seen; j += V::kLanes) {
        const F p = V::exp2(V::sub(V::load(s + j), reference));
        V::store(s + j, p);
        sum = V::add(sum, p);
      }
      V::store(scratch_.sums + r * 16, sum);
      state[stride_] = new_max;
      scratch_.factors[r] = factor;
    }
  }

  static CacheRows skip(const CacheRows& rows, int n) { return {rows.rows + n, rows.offset}; }
  static StagedRows skip(const StagedRows& rows, int n) {
    return {rows.base + n * rows.stride, rows.stride};
  }

  template <class Source, class Rows>
  void weigh(const Rows& values, int tile, int n, int first_row) {
    const int stride = state_stride(dim_);
    for_row_runs<V>(first_row, rows_, [&]<int R>(int r) {
      // Rows of one run may belong to consecutive queries: the first sees the fewest keys.
      const float* p = scratch_.scores + r * kKeyTile;
      const float* factor = scratch_.factors + r;
      const int common = visible(r, tile, n);
      bool done = false;
      if constexpr (std::is_same_v<Rows, CacheRows>) {
        if (r == first_row) {
          add_values_all<V, Source, R, true>(values, common, chunks_, p, factor, row_state(r),
                                             stride);
          done = true;
        }
      }
      if (!done) {
        add_values_all<V, Source, R, false>(values, common, chunks_, p, factor, row_state(r),
                                            stride);
      }
      for (int i = 1; i < R; ++i) {
        const int more = visible(r + i, tile, n) - common;
        if (more == 0) continue;
        const float one = 1.0f;
        add_values_all<V, Source, 1, false>(skip(values, common), more, chunks_,
                                            p + i * kKeyTile + common, &one, row_state(r + i),
                                            stride);
      }
    });
  }

  const AttentionBlock& block_;
  const AttentionScratch& scratch_;
  float* state_;
  const int dim_, stride_, begin_, end_, rows_, chunks_;
  const bool staged_;
  const std::byte* keys_[kKeySegment + kKeyTile];
};

template <class V>
void attend_segment(const AttentionBlock& block, int segment, const AttentionScratch& scratch,
                    float* state) {
  switch (block.kv->dtype) {
    case DType::kF16:
      return Segment<V, ElementF16<V>>(block, segment, scratch, state).run();
    case DType::kBF16:
      return Segment<V, ElementBF16<V>>(block, segment, scratch, state).run();
    default:
      return Segment<V, ElementF32<V>>(block, segment, scratch, state).run();
  }
}

template <class V>
void merge_states(float* total, const float* part, int rows, int head_dim) {
  const int max_at = padded_dim(head_dim), sum_at = max_at + 1, stride = state_stride(head_dim);
  for (int r = 0; r < rows; ++r, total += stride, part += stride) {
    if (part[max_at] == kMinusInfinity) continue;  // no keys of this row in the segment
    const float max = std::max(total[max_at], part[max_at]);
    const float a = exp2_scalar<V>(total[max_at] - max), b = exp2_scalar<V>(part[max_at] - max);
    for (int i = 0; i < max_at; i += V::kLanes) {
      V::store(total + i,
               V::fma(V::load(part + i), V::set1(b), V::mul(V::load(total + i), V::set1(a))));
    }
    total[sum_at] = total[sum_at] * a + part[sum_at] * b;
    total[max_at] = max;
  }
}

template <class V>
void finish(const AttentionBlock& block, const float* total) {
  const int d = block.kv->head_dim, stride = state_stride(d);
  for (int i = 0; i < block.q_len; ++i) {
    for (int g = 0; g < block.group; ++g, total += stride) {
      float* out = block.out + i * block.out_stride + g * d;
      const float inverse = 1.0f / total[padded_dim(d) + 1];
      for (int e = 0; e < d; ++e) out[e] = total[e] * inverse;
    }
  }
}

template <class V>
void exp2_row(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i + V::kLanes <= n; i += V::kLanes) V::store(y + i, V::exp2(V::load(x + i)));
  for (int64_t i = n / V::kLanes * V::kLanes; i < n; ++i) y[i] = exp2_scalar<V>(x[i]);
}

}  // namespace capstan::kernels::simd
