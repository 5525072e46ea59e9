// Latent attention on the CPU: chooses the form for each sequence and shares the work among
// threads.
//
// Both forms are a few phases, each one fork and join. Memory is kept between calls, so that a
// decode step allocates nothing. One call at a time.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "kernels/mla_kernels.h"
#include "kernels/ops.h"
#include "kernels/work_shares.h"
#include "platform/thread_pool.h"
#include "tensor/tensor.h"

namespace capstan::kernels {

/// Whether kAuto takes the naive form for q_len queries at the end of kv_len keys; never for 16 and
/// fewer, so that a decode step that verifies drafts computes what single steps would.
bool mla_prefers_naive(const MlaShape& shape, int q_len, int kv_len);

/// The absorbed form, for rows of any number of sequences:
///   1. qa_h = K_h^T qn for all heads and rows (each weight read once),
///   2. blocks of (some queries, some heads) against the cached rows; long ones are cut in parts of
///      whole segments, and whoever finishes the last part merges them in ascending order,
///   3. o_h = V_h u_h.
/// Rows are taken in runs of bounded memory.
class MlaAbsorbedPlan {
 public:
  void run(const MlaKernels& kernels, const MlaAttentionArgs& args,
           const std::vector<const SequenceSlice*>& sequences, platform::ThreadPool& pool);

 private:
  struct Piece {  // consecutive queries of one sequence
    const SequenceSlice* sequence;
    int first, count;  // within the slice
    int row;           // of the run
  };
  struct Block {
    MlaBlock block;
    int parts;
    int64_t item;     // first work item
    int64_t counter;  // of unfinished parts, if split
    int64_t state;    // first float of the partial results, if split
  };

  void run_rows(const MlaKernels& kernels, const MlaAttentionArgs& args,
                platform::ThreadPool& pool);
  void lay_out(const MlaAttentionArgs& args, int threads);
  void share_panels(int64_t panels, int threads);
  template <class F>
  void for_panels(int thread, int panels, F&& f);
  void project(const MlaKernels& kernels, const MlaAttentionArgs& args, int thread);
  void attend(const MlaKernels& kernels, int thread);
  void attend_part(const MlaKernels& kernels, const Block& block, int part,
                   const MlaScratch& scratch);
  void expand(const MlaKernels& kernels, const MlaAttentionArgs& args, int thread);

  std::vector<Piece> pieces_;
  std::vector<int64_t> batch_rows_;  // of q and out, per row of the run
  std::vector<Block> blocks_;
  int rows_ = 0, max_block_rows_ = 0;
  int64_t items_ = 0;
  size_t scratch_floats_ = 0;  // per thread
  AlignedBuffer q_, u_;        // [rows][heads][padded cache_dim], [rows][heads][padded rank]
  AlignedBuffer scratch_, states_;
  std::unique_ptr<std::atomic<int>[]> unfinished_;
  size_t unfinished_capacity_ = 0;
  std::atomic<int64_t> next_item_{0};
  WorkShares panel_shares_{WorkShares::Order::kAscending};  // of a projection
  int64_t panel_piece_ = 1;
};

/// The naive form, one sequence at a time, windows of kMlaSegment keys in ascending order:
///   1. latents of the window in float32,
///   2. keys and values of every head,
///   3. queries against them; maximum, sum and weighted values are carried to the next window.
class MlaNaivePlan {
 public:
  void run(const MlaKernels& kernels, const MlaAttentionArgs& args, const SequenceSlice& sequence,
           platform::ThreadPool& pool);

 private:
  void reserve(const MlaAttentionArgs& args, const SequenceSlice& sequence, int threads);
  void expand(const MlaKernels& kernels, const MlaAttentionArgs& args, int keys, int64_t item,
              int thread);
  void attend(const MlaKernels& kernels, const MlaAttentionArgs& args,
              const SequenceSlice& sequence, int key_begin, int key_end, int64_t item, int thread);

  MlaLatents latents_;
  int queries_per_item_ = 0, query_items_ = 0;
  bool in_place_ = false;  // values accumulate in args.out
  size_t scratch_floats_ = 0;
  AlignedBuffer latent_memory_, k_, v_, values_, max_sum_, scratch_;
};

class MlaPlan {
 public:
  void store(const MlaKernels& kernels, const MlaStoreArgs& args, platform::ThreadPool& pool);
  void run(const MlaKernels& kernels, const MlaAttentionArgs& args, platform::ThreadPool& pool);

 private:
  MlaAbsorbedPlan absorbed_;
  MlaNaivePlan naive_;
  std::vector<const SequenceSlice*> sequences_;
  AlignedBuffer store_scratch_;
};

/// Grows a buffer to hold so many floats.
inline void reserve_floats(AlignedBuffer& buffer, size_t floats) {
  if (buffer.bytes() < floats * sizeof(float)) buffer = AlignedBuffer(floats * sizeof(float));
}

}  // namespace capstan::kernels
