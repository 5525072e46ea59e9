#include "kernels/attention_plan.h"

#include <algorithm>

namespace capstan::kernels {
namespace {

/// Rows (queries times heads of a group) of a block. Every block decodes the keys it sees once, so
/// larger is better until queries, scores and results (0.6 KiB a row at head_dim 64) leave L1.
constexpr int kBlockRows = 36;
/// Work items per thread to aim for: the last one to finish costs at most half of 1/16.
constexpr int kItemsPerThread = 16;
/// Multiply-adds below which waking the other threads costs more than it saves (a fork and join is
/// about 0.5 us, some 10,000 multiply-adds of one thread).
constexpr int64_t kSerialWork = 20000;

constexpr size_t align_floats(size_t n) { return (n + 15) / 16 * 16; }

void reserve(AlignedBuffer& buffer, size_t floats) {
  if (buffer.bytes() < floats * sizeof(float)) buffer = AlignedBuffer(floats * sizeof(float));
}

}  // namespace

size_t AttentionScratch::floats(int rows, int head_dim) {
  const auto r = static_cast<size_t>(rows);
  const auto d = static_cast<size_t>(padded_dim(head_dim));
  return r * d + kKeyTile * d + r * kKeyTile + r * 16 + align_floats(r) +
         2 * r * static_cast<size_t>(state_stride(head_dim));
}

AttentionScratch::AttentionScratch(float* memory, int rows, int head_dim) {
  const auto take = [&](size_t n) {
    float* p = memory;
    memory += n;
    return p;
  };
  const auto r = static_cast<size_t>(rows);
  const auto d = static_cast<size_t>(padded_dim(head_dim));
  q = take(r * d);
  tile = take(kKeyTile * d);
  scores = take(r * kKeyTile);
  sums = take(r * 16);
  factors = take(align_floats(r));
  total = take(r * static_cast<size_t>(state_stride(head_dim)));
  part = take(r * static_cast<size_t>(state_stride(head_dim)));
}

void AttentionPlan::lay_out(const AttentionArgs& args, int threads) {
  const int group = args.q_heads / args.kv.kv_heads;
  const int block_queries = std::max(1, kBlockRows / group);
  queries_.clear();
  cost_ = 0;
  max_rows_ = 0;
  // A key costs its share of a block's rows, and decoding it about as much as four rows.
  for (const SequenceSlice& sequence : args.sequences) {
    for (int first = 0; first < sequence.q_len; first += block_queries) {
      const int count = std::min(block_queries, sequence.q_len - first);
      const int64_t keys = sequence.kv_len - sequence.q_len + first + count;
      const int64_t cost = keys * (int64_t{count} * group + 4);
      queries_.push_back({&sequence, first, count, cost, 1, 0, 0, 0});
      max_rows_ = std::max(max_rows_, count * group);
      cost_ += cost * args.kv.kv_heads;
    }
  }

  const int64_t target = std::max<int64_t>(1, cost_ / (int64_t{threads} * kItemsPerThread));
  int64_t items = 0, counters = 0, state = 0;
  for (Queries& q : queries_) {
    const int keys = q.sequence->kv_len - q.sequence->q_len + q.first + q.count;
    const int segments = (keys + kKeySegment - 1) / kKeySegment;
    if (threads > 1) {
      q.parts = static_cast<int>(std::clamp<int64_t>(q.cost / target, 1, segments));
    }
    q.item = items;
    items += int64_t{args.kv.kv_heads} * q.parts;
    if (q.parts > 1) {
      q.unfinished = counters;
      counters += args.kv.kv_heads;
      q.state = state;
      state +=
          int64_t{args.kv.kv_heads} * segments * q.count * group * state_stride(args.kv.head_dim);
    }
  }
  items_ = items;
  scratch_floats_ = AttentionScratch::floats(max_rows_, args.kv.head_dim);
  reserve(scratch_, scratch_floats_ * static_cast<size_t>(threads));
  reserve(states_, static_cast<size_t>(state));
  if (unfinished_capacity_ < static_cast<size_t>(counters)) {
    unfinished_capacity_ = static_cast<size_t>(counters);
    unfinished_ = std::make_unique<std::atomic<int>[]>(unfinished_capacity_);
  }
  for (const Queries& q : queries_) {
    if (q.parts == 1) continue;
    for (int h = 0; h < args.kv.kv_heads; ++h) {
      unfinished_[static_cast<size_t>(q.unfinished + h)].store(q.parts, std::memory_order_relaxed);
    }
  }
  share_items(args.kv.kv_heads, threads);
}

void AttentionPlan::share_items(int kv_heads, int threads) {
  shares_.set_threads(threads);
  int thread = 0;
  int64_t begin = 0, cost = 0;
  for (const Queries& q : queries_) {
    const int64_t items = int64_t{kv_heads} * q.parts, all = q.cost * kv_heads;
    for (; thread + 1 < threads && cost + all >= cost_ * (thread + 1) / threads; ++thread) {
      const int64_t end = q.item + (cost_ * (thread + 1) / threads - cost) * items / all;
      shares_.set(thread, begin, end);
      begin = end;
    }
    cost += all;
  }
  for (; thread < threads; ++thread) {
    shares_.set(thread, begin, items_);
    begin = items_;
  }
}

AttentionBlock AttentionPlan::block_of(const AttentionArgs& args, const Queries& queries,
                                       int kv_head) const {
  const SequenceSlice& sequence = *queries.sequence;
  AttentionBlock block;
  block.kv = &args.kv;
  block.pages = sequence.pages;
  block.kv_head = kv_head;
  block.group = args.q_heads / args.kv.kv_heads;
  const int64_t column = int64_t{kv_head} * block.group * args.kv.head_dim;
  const int64_t row = sequence.q_begin + queries.first;
  block.q = args.q.row(row) + column;
  block.q_stride = args.q.stride;
  block.q_len = queries.count;
  block.first_position = sequence.kv_len - sequence.q_len + queries.first;
  block.scale = args.scale;
  block.out = args.out.row(row) + column;
  block.out_stride = args.out.stride;
  return block;
}

void AttentionPlan::compute(const CpuKernels& kernels, const AttentionArgs& args, int64_t item,
                            const AttentionScratch& scratch) {
  const auto after = std::upper_bound(queries_.begin(), queries_.end(), item,
                                      [](int64_t i, const Queries& q) { return i < q.item; });
  const Queries& queries = *(after - 1);
  const int head = static_cast<int>((item - queries.item) / queries.parts);
  // Items are taken from the back, keys are read from the front.
  const int part = queries.parts - 1 - static_cast<int>((item - queries.item) % queries.parts);
  const AttentionBlock block = block_of(args, queries, head);
  const int segments = block.segments(), d = args.kv.head_dim;
  kernels.load_queries(block, scratch);

  if (queries.parts == 1) {
    kernels.attend_segment(block, 0, scratch, scratch.total);
    for (int s = 1; s < segments; ++s) {
      kernels.attend_segment(block, s, scratch, scratch.part);
      kernels.merge_states(scratch.total, scratch.part, block.rows(), d);
    }
    kernels.finish(block, scratch.total);
    return;
  }

  const int64_t state_floats = int64_t{block.rows()} * state_stride(d);
  float* states = states_.as<float>() + queries.state + head * segments * state_floats;
  const auto first_segment = [&](int p) {
    return static_cast<int>(int64_t{segments} * p / queries.parts);
  };
  for (int s = first_segment(part); s < first_segment(part + 1); ++s) {
    kernels.attend_segment(block, s, scratch, states + s * state_floats);
  }
  std::atomic<int>& unfinished = unfinished_[static_cast<size_t>(queries.unfinished + head)];
  if (unfinished.fetch_sub(1, std::memory_order_acq_rel) == 1) {
    for (int s = 1; s < segments; ++s) {
      kernels.merge_states(states, states + s * state_floats, block.rows(), d);
    }
    kernels.finish(block, states);
  }
}

void AttentionPlan::work(const CpuKernels& kernels, const AttentionArgs& args, int thread) {
  const AttentionScratch scratch(
      scratch_.as<float>() + static_cast<size_t>(thread) * scratch_floats_, max_rows_,
      args.kv.head_dim);
  for (WorkShares::Range r; !(r = shares_.take(thread)).empty();)
    compute(kernels, args, r.begin, scratch);
}

void AttentionPlan::run(const CpuKernels& kernels, const AttentionArgs& args,
                        platform::ThreadPool& pool) {
  lay_out(args, pool.size());
  if (items_ == 0) return;
  if (pool.size() == 1 || items_ == 1 || cost_ * args.kv.head_dim < kSerialWork) {
    work(kernels, args, 0);
  } else {
    pool.run([&](int thread) { work(kernels, args, thread); });
  }
}

}  // namespace capstan::kernels
