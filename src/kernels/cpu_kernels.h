// What an instruction set implements for the ops that are not linear(): kernels on one row or one
// attention block, single-threaded. Threads and batches are arranged by CpuOps and AttentionPlan.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/ops.h"

namespace capstan::kernels {

/// Keys of one softmax step. Tiles start at absolute multiples of this, whatever the page size.
inline constexpr int kKeyTile = 64;
/// Keys of one independent partial result (maximum, sum, weighted values); partial results of a
/// row are merged in ascending order. Both constants are part of the definition of a row's bits:
/// they make it the same in prefill and decode, on one thread or many. 256 keys are about 4 us of
/// one thread's memory bandwidth at head_dim 64 in F16: small enough to share 3 KV heads of a
/// short context among 2 threads, and the merge costs below 1% of the work.
inline constexpr int kKeySegment = 256;

/// Some consecutive queries of one sequence and the query heads that share one KV head: the rows
/// of a block, query-major (row = query * group + head).
struct AttentionBlock {
  const PagedKv* kv = nullptr;
  const int32_t* pages = nullptr;
  int kv_head = 0;
  int group = 1;             // query heads per KV head
  const float* q = nullptr;  // first query, first head of the group
  int64_t q_stride = 0;      // floats between queries
  int q_len = 0;
  int first_position = 0;  // of the first query; it sees keys 0..first_position
  float scale = 0;
  float* out = nullptr;  // as q
  int64_t out_stride = 0;

  int rows() const { return q_len * group; }
  int key_end() const { return first_position + q_len; }
  int segments() const { return (key_end() + kKeySegment - 1) / kKeySegment; }
};

/// head_dim rounded up so that either vector width divides it.
constexpr int padded_dim(int head_dim) { return (head_dim + 15) / 16 * 16; }
/// Floats of one row's partial result: padded_dim weighted values, then maximum and sum.
constexpr int state_stride(int head_dim) { return padded_dim(head_dim) + 16; }

/// A thread's memory for attention; see AttentionScratch::bytes.
struct AttentionScratch {
  float* q;        // [rows][padded_dim]
  float* tile;     // [kKeyTile][padded_dim]: keys or values as float32
  float* scores;   // [rows][kKeyTile]
  float* sums;     // [rows][16]
  float* factors;  // [rows]
  float* total;    // [rows][state_stride]
  float* part;     // [rows][state_stride]

  static size_t floats(int rows, int head_dim);
  AttentionScratch(float* memory, int rows, int head_dim);
};

struct CpuKernels {
  void (*rms_norm_row)(const float* x, const float* weight, float eps, float* y, int64_t n);
  /// One row of QkvArgs.
  void (*qkv_row)(const QkvArgs& args, int64_t row);

  /// Copies the block's queries to scratch.q; once before its segments.
  void (*load_queries)(const AttentionBlock& block, const AttentionScratch& scratch);
  /// The partial result of keys [segment*kKeySegment, ...) for every row, to `state`.
  void (*attend_segment)(const AttentionBlock& block, int segment, const AttentionScratch& scratch,
                         float* state);
  /// total = total and part, as if their keys had been seen together.
  void (*merge_states)(float* total, const float* part, int rows, int head_dim);
  /// Divides by the sums and writes the block's rows of out.
  void (*finish)(const AttentionBlock& block, const float* total);

  /// y[i] = 2^x[i], x <= 0: what the kernels above use (tests).
  void (*exp2_row)(const float* x, float* y, int64_t n);
};

const CpuKernels& avx2_kernels();
const CpuKernels& avx512_kernels();

}  // namespace capstan::kernels
