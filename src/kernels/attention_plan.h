// Shares attention among threads: which blocks a batch is cut into, who computes which keys.
#pragma once

#include <atomic>
#include <memory>
#include <vector>

#include "kernels/cpu_kernels.h"
#include "kernels/ops.h"
#include "kernels/work_shares.h"
#include "platform/thread_pool.h"
#include "tensor/tensor.h"

namespace capstan::kernels {

/// Memory and work lists are kept between calls, so that a decode step allocates nothing. One call
/// at a time.
///
/// A block is (sequence, run of queries, KV head). Blocks that are long beside the whole batch's
/// work per thread are computed in parts of whole segments by several threads; whoever finishes a
/// block's last part merges its segments in ascending order. Every thread has a contiguous share of
/// about equal cost, since what a tile of keys has prefetched is the tile behind it; whoever is
/// done takes from the others' far ends. A block computed by one thread merges the same partial
/// results in the same order, so the split never shows in the result.
class AttentionPlan {
 public:
  void run(const CpuKernels& kernels, const AttentionArgs& args, platform::ThreadPool& pool);

 private:
  /// Queries of one sequence; stands for kv_heads blocks of equal shape.
  struct Queries {
    const SequenceSlice* sequence;
    int first;  // query within the slice
    int count;
    int64_t cost;        // of one block
    int parts;           // pieces per block; 1: not split
    int64_t item;        // first work item; items run over heads, then parts
    int64_t unfinished;  // first counter of kv_heads, if split
    int64_t state;       // first float of the partial results, if split
  };

  void lay_out(const AttentionArgs& args, int threads);
  AttentionBlock block_of(const AttentionArgs& args, const Queries& queries, int kv_head) const;
  void work(const CpuKernels& kernels, const AttentionArgs& args, int thread);
  void compute(const CpuKernels& kernels, const AttentionArgs& args, int64_t item,
               const AttentionScratch& scratch);
  void share_items(int kv_heads, int threads);

  std::vector<Queries> queries_;
  int64_t items_ = 0;
  int64_t cost_ = 0;
  int max_rows_ = 0;
  size_t scratch_floats_ = 0;  // per thread
  AlignedBuffer scratch_;
  AlignedBuffer states_;
  std::unique_ptr<std::atomic<int>[]> unfinished_;
  size_t unfinished_capacity_ = 0;
  /// Later queries of a prompt see more keys, and long items should not come last.
  WorkShares shares_{WorkShares::Order::kDescending};
};

}  // namespace capstan::kernels
