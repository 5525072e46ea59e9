#include <algorithm>
#include <cstring>

#include "kernels/mla_plan.h"

namespace capstan::kernels {
namespace {

constexpr float kLog2E = 1.44269504088896340736f;
constexpr int kWindowPanels = kMlaSegment / kMlaColumns;
/// Queries of one head that a thread takes at least: fewer would read the expanded window (320 KiB
/// at V3's sizes) for too little arithmetic.
constexpr int kItemQueries = 96;
constexpr int kItemsPerThread = 8;

}  // namespace

void MlaNaivePlan::reserve(const MlaAttentionArgs& args, const SequenceSlice& sequence,
                           int threads) {
  const MlaShape& s = args.shape;
  const auto heads = static_cast<size_t>(s.heads), rows = static_cast<size_t>(sequence.q_len);
  const auto window = static_cast<size_t>(kMlaSegment);
  const auto latent = window * static_cast<size_t>(mla_padded(s.rank));
  reserve_floats(latent_memory_, 2 * latent + window * static_cast<size_t>(s.rope_dim));
  latents_.rows = latent_memory_.as<float>();
  latents_.c = latents_.rows + latent;
  latents_.rope = latents_.c + latent;
  const auto value_columns = static_cast<size_t>(mla_padded(s.value_dim));
  reserve_floats(k_, heads * window * static_cast<size_t>(s.query_dim()));
  reserve_floats(v_, heads * window * value_columns);
  in_place_ = s.value_dim % kMlaColumns == 0;
  if (!in_place_) reserve_floats(values_, rows * heads * value_columns);
  reserve_floats(max_sum_, 2 * rows * heads);
  // Expansion: K_h in float32, row-major, and one decoded panel.
  const size_t expansion =
      static_cast<size_t>(s.nope_dim) * static_cast<size_t>(mla_padded(s.rank)) +
      static_cast<size_t>(std::max(s.rank, s.nope_dim)) * kMlaColumns;
  scratch_floats_ = std::max(expansion, mla_naive_scratch_floats(s.query_dim()));
  scratch_floats_ = (scratch_floats_ + 15) / 16 * 16;
  reserve_floats(scratch_, scratch_floats_ * static_cast<size_t>(threads));
}

void MlaNaivePlan::run(const MlaKernels& kernels, const MlaAttentionArgs& args,
                       const SequenceSlice& sequence, platform::ThreadPool& pool) {
  const MlaShape& s = args.shape;
  reserve(args, sequence, pool.size());
  const int wanted = (pool.size() * kItemsPerThread + s.heads - 1) / s.heads;
  query_items_ = std::clamp(sequence.q_len / kItemQueries, 1, wanted);
  queries_per_item_ = (sequence.q_len + query_items_ - 1) / query_items_;
  std::atomic<int64_t> next{0};
  const auto phase = [&](int64_t items, auto&& f) {
    next.store(0, std::memory_order_relaxed);
    pool.run([&](int thread) {
      for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < items;) f(i, thread);
    });
  };
  for (int begin = 0; begin < sequence.kv_len; begin += kMlaSegment) {
    const int end = std::min(begin + kMlaSegment, sequence.kv_len);
    phase((end - begin + kMlaColumns - 1) / kMlaColumns, [&](int64_t panel, int) {
      kernels.stage_latents(args.cache, sequence.pages, s,
                            begin + static_cast<int>(panel) * kMlaColumns, end, latents_);
    });
    phase(2 * s.heads,
          [&](int64_t item, int thread) { expand(kernels, args, end - begin, item, thread); });
    phase(int64_t{s.heads} * query_items_, [&](int64_t item, int thread) {
      attend(kernels, args, sequence, begin, end, item, thread);
    });
  }
  if (in_place_) return;
  const int columns = mla_padded(s.value_dim);
  for (int r = 0; r < sequence.q_len; ++r) {
    for (int h = 0; h < s.heads; ++h) {
      std::memcpy(args.out.row(sequence.q_begin + r) + h * s.value_dim,
                  values_.as<float>() + (int64_t{r} * s.heads + h) * columns,
                  sizeof(float) * static_cast<size_t>(s.value_dim));
    }
  }
}

void MlaNaivePlan::expand(const MlaKernels& kernels, const MlaAttentionArgs& args, int keys,
                          int64_t item, int thread) {
  const MlaShape& s = args.shape;
  const auto& projection = static_cast<const PackedMla&>(*args.projection);
  const int head = static_cast<int>(item / 2);
  float* scratch = scratch_.as<float>() + scratch_floats_ * static_cast<size_t>(thread);
  MlaProduct product;
  if (item % 2 == 0) {  // V = c V_h^T
    product.x = latents_.rows;
    product.x_stride = s.rank;
    product.rows = keys;
    product.b = projection.value(head);
    product.panels = product.b.panels;
    product.y = v_.as<float>() + int64_t{head} * kMlaSegment * mla_padded(s.value_dim);
    product.y_row = kMlaColumns;
    product.y_panel = int64_t{kMlaSegment} * kMlaColumns;
    product.scratch = scratch;
    return kernels.product(product);
  }
  // K^T = K_h c^T, keys as columns.
  const MlaMatrix key = projection.key(head);
  float* rows = scratch + int64_t{key.k} * kMlaColumns;
  kernels.decode_rows(key, rows);
  const int64_t k_panel = int64_t{s.query_dim()} * kMlaColumns;
  product.x = rows;
  product.x_stride = int64_t{key.panels} * kMlaColumns;
  product.rows = s.nope_dim;
  product.b.data = reinterpret_cast<const std::byte*>(latents_.c);
  product.b.k = s.rank;
  product.b.panels = product.panels = (keys + kMlaColumns - 1) / kMlaColumns;
  product.b.panel_stride = int64_t{s.rank} * kMlaColumns;
  product.y = k_.as<float>() + int64_t{head} * kWindowPanels * k_panel;
  product.y_row = kMlaColumns;
  product.y_panel = k_panel;
  kernels.product(product);
  for (int p = 0; p < product.panels; ++p) {
    std::memcpy(product.y + p * k_panel + int64_t{s.nope_dim} * kMlaColumns,
                latents_.rope + int64_t{p} * s.rope_dim * kMlaColumns,
                sizeof(float) * static_cast<size_t>(s.rope_dim) * kMlaColumns);
  }
}

void MlaNaivePlan::attend(const MlaKernels& kernels, const MlaAttentionArgs& args,
                          const SequenceSlice& sequence, int key_begin, int key_end, int64_t item,
                          int thread) {
  const MlaShape& s = args.shape;
  const int head = static_cast<int>(item % s.heads);
  const int first = static_cast<int>(item / s.heads) * queries_per_item_;
  const int columns = mla_padded(s.value_dim);
  MlaNaiveBlock b;
  b.query_dim = s.query_dim();
  b.value_panels = columns / kMlaColumns;
  b.k = k_.as<float>() + int64_t{head} * kMlaSegment * s.query_dim();
  b.v = v_.as<float>() + int64_t{head} * kMlaSegment * columns;
  b.key_begin = key_begin;
  b.key_end = key_end;
  b.q = args.q.row(sequence.q_begin + first) + head * s.query_dim();
  b.q_stride = args.q.stride;
  b.q_len = std::min(queries_per_item_, sequence.q_len - first);
  if (b.q_len <= 0) return;
  b.first_position = sequence.kv_len - sequence.q_len + first;
  b.scale = args.scale * kLog2E;
  if (in_place_) {
    b.values = args.out.row(sequence.q_begin + first) + head * s.value_dim;
    b.values_stride = args.out.stride;
  } else {
    b.values = values_.as<float>() + (int64_t{first} * s.heads + head) * columns;
    b.values_stride = int64_t{s.heads} * columns;
  }
  b.max_sum = max_sum_.as<float>() + 2 * (int64_t{first} * s.heads + head);
  b.max_sum_stride = 2 * s.heads;
  b.scratch = scratch_.as<float>() + scratch_floats_ * static_cast<size_t>(thread);
  kernels.attend_naive(b);
}

}  // namespace capstan::kernels
