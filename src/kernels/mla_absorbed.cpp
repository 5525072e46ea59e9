#include <algorithm>
#include <cstring>

#include "kernels/mla_plan.h"

namespace capstan::kernels {
namespace {

constexpr float kLog2E = 1.44269504088896340736f;
/// Rows (queries times heads) of a block. Each block decodes the keys it sees once, at the price of
/// about three rows' arithmetic; queries, tile and results of 32 rows of V3's 576 and 512 elements
/// take 350 KiB, which the second level cache holds.
constexpr int kBlockRows = 32;
/// Bytes of absorbed queries and weighted latents of one run of rows.
constexpr int64_t kRunBytes = int64_t{32} << 20;
/// Work items per thread to aim for: the last one to finish costs at most half of 1/16.
constexpr int kItemsPerThread = 16;
/// Multiply-adds below which waking the other threads costs more than it saves.
constexpr int64_t kSerialWork = 20000;

}  // namespace

size_t MlaScratch::floats(int rows, int rank, int cache_dim) {
  const auto r = static_cast<size_t>(rows);
  return static_cast<size_t>(kMlaTile) * static_cast<size_t>(mla_padded(cache_dim)) + r * kMlaTile +
         static_cast<size_t>(mla_padded(rows)) +
         2 * r * static_cast<size_t>(mla_state_stride(rank));
}

MlaScratch::MlaScratch(float* memory, int rows, int rank, int cache_dim) {
  const auto take = [&](int64_t n) {
    float* p = memory;
    memory += n;
    return p;
  };
  tile = take(int64_t{kMlaTile} * mla_padded(cache_dim));
  scores = take(int64_t{rows} * kMlaTile);
  factors = take(mla_padded(rows));
  total = take(int64_t{rows} * mla_state_stride(rank));
  part = take(int64_t{rows} * mla_state_stride(rank));
}

void MlaAbsorbedPlan::run(const MlaKernels& kernels, const MlaAttentionArgs& args,
                          const std::vector<const SequenceSlice*>& sequences,
                          platform::ThreadPool& pool) {
  const MlaShape& s = args.shape;
  const int64_t row_bytes = int64_t{4} * s.heads * (mla_padded(s.cache_dim()) + mla_padded(s.rank));
  const int most = static_cast<int>(std::max<int64_t>(1, kRunBytes / row_bytes));
  pieces_.clear();
  rows_ = 0;
  for (const SequenceSlice* sequence : sequences) {
    for (int first = 0; first < sequence->q_len;) {
      const int count = std::min(sequence->q_len - first, most - rows_);
      pieces_.push_back({sequence, first, count, rows_});
      rows_ += count;
      first += count;
      if (rows_ == most) {
        run_rows(kernels, args, pool);
        pieces_.clear();
        rows_ = 0;
      }
    }
  }
  if (rows_ > 0) run_rows(kernels, args, pool);
}

void MlaAbsorbedPlan::run_rows(const MlaKernels& kernels, const MlaAttentionArgs& args,
                               platform::ThreadPool& pool) {
  const MlaShape& s = args.shape;
  batch_rows_.clear();
  int64_t pairs = 0;
  for (const Piece& p : pieces_) {
    for (int i = 0; i < p.count; ++i) {
      batch_rows_.push_back(p.sequence->q_begin + p.first + i);
      pairs += p.sequence->kv_len - p.sequence->q_len + p.first + i + 1;
    }
  }
  const int64_t weights = int64_t{s.nope_dim + s.value_dim} * s.rank * s.heads * rows_;
  const bool serial =
      pool.size() == 1 || weights + pairs * s.heads * (s.rank + s.cache_dim()) < kSerialWork;
  const int threads = serial ? 1 : pool.size();
  lay_out(args, threads);
  const auto phase = [&](auto&& f) {
    if (serial) return f(0);
    pool.run(f);
  };
  share_panels(int64_t{s.heads} * (mla_padded(s.rank) / kMlaColumns), threads);
  phase([&](int thread) { project(kernels, args, thread); });
  phase([&](int thread) { attend(kernels, thread); });
  share_panels(int64_t{s.heads} * (mla_padded(s.value_dim) / kMlaColumns), threads);
  phase([&](int thread) { expand(kernels, args, thread); });
}

void MlaAbsorbedPlan::share_panels(int64_t panels, int threads) {
  panel_shares_.share(panels, threads);
  panel_piece_ = std::max<int64_t>(1, panels / threads / 8);
}

/// f(head, first panel, number) for what this thread takes of heads of `panels` panels each.
template <class F>
void MlaAbsorbedPlan::for_panels(int thread, int panels, F&& f) {
  for (WorkShares::Range r; !(r = panel_shares_.take(thread, panel_piece_)).empty();) {
    while (r.begin < r.end) {
      const int first = static_cast<int>(r.begin % panels);
      const int count = static_cast<int>(std::min<int64_t>(panels - first, r.end - r.begin));
      f(static_cast<int>(r.begin / panels), first, count);
      r.begin += count;
    }
  }
}

void MlaAbsorbedPlan::lay_out(const MlaAttentionArgs& args, int threads) {
  const MlaShape& s = args.shape;
  const auto rows = static_cast<size_t>(rows_), heads = static_cast<size_t>(s.heads);
  const int q_stride = mla_padded(s.cache_dim()), u_stride = mla_padded(s.rank);
  reserve_floats(q_, rows * heads * static_cast<size_t>(q_stride));
  reserve_floats(u_, rows * heads * static_cast<size_t>(u_stride));

  const int head_blocks = (s.heads + kBlockRows - 1) / kBlockRows;
  const int block_queries = head_blocks > 1 ? 1 : std::max(1, kBlockRows / s.heads);
  blocks_.clear();
  max_block_rows_ = 0;
  int64_t cost = 0;
  const auto cost_of = [](const MlaBlock& b) { return int64_t{b.key_end()} * (b.rows() + 3); };
  for (const Piece& piece : pieces_) {
    for (int first = 0; first < piece.count; first += block_queries) {
      for (int part = 0; part < head_blocks; ++part) {
        const int head = s.heads * part / head_blocks;
        MlaBlock b;
        b.cache = &args.cache;
        b.pages = piece.sequence->pages;
        b.rank = s.rank;
        b.heads = s.heads * (part + 1) / head_blocks - head;
        b.q_len = std::min(block_queries, piece.count - first);
        b.first_position = piece.sequence->kv_len - piece.sequence->q_len + piece.first + first;
        const int64_t at = int64_t{piece.row + first} * s.heads + head;
        b.q = q_.as<float>() + at * q_stride;
        b.out = u_.as<float>() + at * u_stride;
        blocks_.push_back({b, 1, 0, 0, 0});
        max_block_rows_ = std::max(max_block_rows_, b.rows());
        cost += cost_of(b);
      }
    }
  }

  const int64_t target = std::max<int64_t>(1, cost / (int64_t{threads} * kItemsPerThread));
  int64_t counters = 0, state = 0;
  items_ = 0;
  for (Block& b : blocks_) {
    const int segments = b.block.segments();
    if (threads > 1) {
      b.parts = static_cast<int>(std::clamp<int64_t>(cost_of(b.block) / target, 1, segments));
    }
    b.item = items_;
    items_ += b.parts;
    if (b.parts > 1) {
      b.counter = counters++;
      b.state = state;
      state += int64_t{segments} * b.block.rows() * mla_state_stride(s.rank);
    }
  }
  const size_t projection =
      rows * static_cast<size_t>(std::max(s.nope_dim, mla_padded(s.value_dim))) +
      static_cast<size_t>(std::max(s.nope_dim, s.rank)) * kMlaColumns;
  scratch_floats_ =
      std::max(projection, MlaScratch::floats(max_block_rows_, s.rank, s.cache_dim()));
  scratch_floats_ = (scratch_floats_ + 15) / 16 * 16;
  reserve_floats(scratch_, scratch_floats_ * static_cast<size_t>(threads));
  reserve_floats(states_, static_cast<size_t>(state));
  if (unfinished_capacity_ < static_cast<size_t>(counters)) {
    unfinished_capacity_ = static_cast<size_t>(counters);
    unfinished_ = std::make_unique<std::atomic<int>[]>(unfinished_capacity_);
  }
  for (const Block& b : blocks_) {
    if (b.parts > 1) {
      unfinished_[static_cast<size_t>(b.counter)].store(b.parts, std::memory_order_relaxed);
    }
  }
  next_item_.store(0, std::memory_order_relaxed);
}

void MlaAbsorbedPlan::project(const MlaKernels& kernels, const MlaAttentionArgs& args, int thread) {
  const MlaShape& s = args.shape;
  const auto& projection = static_cast<const PackedMla&>(*args.projection);
  const int stride = mla_padded(s.cache_dim());
  const float scale = args.scale * kLog2E;
  float* x = scratch_.as<float>() + scratch_floats_ * static_cast<size_t>(thread);
  const int panels = mla_padded(s.rank) / kMlaColumns;
  for_panels(thread, panels, [&](int head, int first, int count) {
    MlaProduct product;
    product.first_panel = first;
    product.panels = count;
    for (int r = 0; r < rows_; ++r) {
      const float* from = args.q.row(batch_rows_[static_cast<size_t>(r)]) + head * s.query_dim();
      for (int i = 0; i < s.nope_dim; ++i) x[int64_t{r} * s.nope_dim + i] = from[i] * scale;
    }
    float* out = q_.as<float>() + int64_t{head} * stride;
    product.x = x;
    product.x_stride = s.nope_dim;
    product.rows = rows_;
    product.b = projection.key(head);
    product.y = out + product.first_panel * kMlaColumns;
    product.y_row = int64_t{s.heads} * stride;
    product.y_panel = kMlaColumns;
    product.scratch = x + int64_t{rows_} * s.nope_dim;
    kernels.product(product);
    if (first + count < panels) return;
    for (int r = 0; r < rows_; ++r) {  // behind the last panel, whose padding this overwrites
      const float* from =
          args.q.row(batch_rows_[static_cast<size_t>(r)]) + head * s.query_dim() + s.nope_dim;
      float* to = out + r * product.y_row + s.rank;
      for (int i = 0; i < s.rope_dim; ++i) to[i] = from[i] * scale;
      std::fill(to + s.rope_dim, out + r * product.y_row + stride, 0.0f);
    }
  });
}

void MlaAbsorbedPlan::attend(const MlaKernels& kernels, int thread) {
  const MlaBlock& any = blocks_[0].block;
  const MlaScratch scratch(scratch_.as<float>() + scratch_floats_ * static_cast<size_t>(thread),
                           max_block_rows_, any.rank, any.cache->head_dim);
  for (;;) {
    const int64_t taken = next_item_.fetch_add(1, std::memory_order_relaxed);
    if (taken >= items_) return;
    const int64_t item = items_ - 1 - taken;  // later queries see more keys: long items first
    const auto after = std::upper_bound(blocks_.begin(), blocks_.end(), item,
                                        [](int64_t i, const Block& b) { return i < b.item; });
    attend_part(kernels, *(after - 1), static_cast<int>(item - (after - 1)->item), scratch);
  }
}

void MlaAbsorbedPlan::attend_part(const MlaKernels& kernels, const Block& b, int part,
                                  const MlaScratch& scratch) {
  const int segments = b.block.segments(), rows = b.block.rows(), rank = b.block.rank;
  if (b.parts == 1) {
    kernels.attend_segment(b.block, 0, scratch, scratch.total);
    for (int i = 1; i < segments; ++i) {
      kernels.attend_segment(b.block, i, scratch, scratch.part);
      kernels.merge_states(scratch.total, scratch.part, rows, rank);
    }
    return kernels.finish(b.block, scratch.total);
  }
  const int64_t floats = int64_t{rows} * mla_state_stride(rank);
  float* states = states_.as<float>() + b.state;
  const auto begin_of = [&](int p) { return static_cast<int>(int64_t{segments} * p / b.parts); };
  for (int i = begin_of(part); i < begin_of(part + 1); ++i) {
    kernels.attend_segment(b.block, i, scratch, states + i * floats);
  }
  std::atomic<int>& unfinished = unfinished_[static_cast<size_t>(b.counter)];
  if (unfinished.fetch_sub(1, std::memory_order_acq_rel) != 1) return;
  for (int i = 1; i < segments; ++i) {
    kernels.merge_states(states, states + i * floats, rows, rank);
  }
  kernels.finish(b.block, states);
}

void MlaAbsorbedPlan::expand(const MlaKernels& kernels, const MlaAttentionArgs& args, int thread) {
  const MlaShape& s = args.shape;
  const auto& projection = static_cast<const PackedMla&>(*args.projection);
  float* y = scratch_.as<float>() + scratch_floats_ * static_cast<size_t>(thread);
  const int panels = mla_padded(s.value_dim) / kMlaColumns;
  for_panels(thread, panels, [&](int head, int first, int count) {
    MlaProduct product;
    product.first_panel = first;
    product.panels = count;
    product.x = u_.as<float>() + int64_t{head} * mla_padded(s.rank);
    product.x_stride = int64_t{s.heads} * mla_padded(s.rank);
    product.rows = rows_;
    product.b = projection.value(head);
    product.y = y;
    product.y_row = int64_t{product.panels} * kMlaColumns;
    product.y_panel = kMlaColumns;
    product.scratch = y + rows_ * product.y_row;
    kernels.product(product);
    const int column = product.first_panel * kMlaColumns;
    const int columns = std::min(s.value_dim - column, product.panels * kMlaColumns);
    for (int r = 0; r < rows_; ++r) {
      std::memcpy(args.out.row(batch_rows_[static_cast<size_t>(r)]) + head * s.value_dim + column,
                  y + r * product.y_row, sizeof(float) * static_cast<size_t>(columns));
    }
  });
}

}  // namespace capstan::kernels
