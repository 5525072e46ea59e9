// What an instruction set implements for latent attention: single-threaded pieces of work. Threads,
// batches and the choice of the form are arranged by mla_plan.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/mla_projection.h"
#include "kernels/ops.h"

namespace capstan::kernels {

/// Keys of one softmax step; tiles start at absolute multiples, whatever the page size. Part of the
/// definition of a row's bits, like kMlaSegment.
inline constexpr int kMlaTile = 64;
/// Absorbed form: keys of one independent partial result. Partial results are merged in ascending
/// order whoever computed them. Naive form: keys expanded at a time (the results are the same for
/// any multiple of the tile).
inline constexpr int kMlaSegment = 256;

/// Floats of one row's partial result: mla_padded(rank) weighted latents, maximum, sum.
constexpr int mla_state_stride(int rank) { return mla_padded(rank) + kMlaColumns; }

/// Y = X B for some panels of B.
struct MlaProduct {
  const float* x = nullptr;  // [rows, b.k]
  int64_t x_stride = 0;
  int rows = 0;
  MlaMatrix b;
  int first_panel = 0, panels = 0;
  /// Panel p (counted from first_panel) of row r goes to y + r*y_row + p*y_panel, 16 floats.
  float* y = nullptr;
  int64_t y_row = 0, y_panel = 0;
  float* scratch = nullptr;  // b.k * 16 floats
};

/// Rows of the absorbed form that share keys: q_len queries of one sequence times `heads` heads,
/// query-major. Queries are products with K_h already, and multiplied by scale * log2(e).
struct MlaBlock {
  const PagedKv* cache = nullptr;
  const int32_t* pages = nullptr;
  int rank = 0;
  int heads = 0;
  int q_len = 0;
  int first_position = 0;    // of the first query; it sees keys 0..first_position
  const float* q = nullptr;  // [rows][mla_padded(cache_dim)], zero-padded
  float* out = nullptr;      // [rows][mla_padded(rank)]

  int rows() const { return q_len * heads; }
  int key_end() const { return first_position + q_len; }
  int segments() const { return (key_end() + kMlaSegment - 1) / kMlaSegment; }
};

/// A thread's memory for the absorbed form.
struct MlaScratch {
  float* tile;     // [kMlaTile][mla_padded(cache_dim)]
  float* scores;   // [rows][kMlaTile]
  float* factors;  // [rows]
  float* total;    // [rows][mla_state_stride]
  float* part;     // as total

  static size_t floats(int rows, int rank, int cache_dim);
  MlaScratch(float* memory, int rows, int rank, int cache_dim);
};

/// Latents of up to kMlaSegment keys in float32, as the operands that expansion needs.
struct MlaLatents {
  float* rows = nullptr;  // [key][rank]
  float* c = nullptr;     // panels of 16 keys: [key/16][rank][16]
  float* rope = nullptr;  // [key/16][rope_dim][16]
};

/// Rows of the naive form: queries of one head of one sequence, against keys [key_begin, key_end),
/// which are at most kMlaSegment and start at a multiple of it.
struct MlaNaiveBlock {
  int query_dim = 0, value_panels = 0;
  const float* k = nullptr;  // panels of 16 keys: [key/16][query_dim][16]
  const float* v = nullptr;  // panels of 16 values: [value/16][kMlaSegment][16]
  int key_begin = 0, key_end = 0;
  const float* q = nullptr;
  int64_t q_stride = 0;
  int q_len = 0;
  int first_position = 0;
  float scale = 0;  // times log2(e)
  float* values =
      nullptr;  // running weighted sum [q_len][value_panels * 16]; the result at the end
  int64_t values_stride = 0;
  float* max_sum = nullptr;  // running maximum and sum, two floats a query
  int64_t max_sum_stride = 0;
  float* scratch = nullptr;  // naive_scratch_floats(query_dim)
};

/// Queries that attend_naive takes through a tile together: their scores and queries stay in the
/// first two cache levels.
inline constexpr int kMlaNaiveRows = 48;
constexpr size_t mla_naive_scratch_floats(int query_dim) {
  return static_cast<size_t>(kMlaNaiveRows) * static_cast<size_t>(query_dim + kMlaTile + 1);
}

struct MlaKernels {
  /// One row of MlaStoreArgs; `scratch` holds cache_dim floats.
  void (*store_row)(const MlaStoreArgs& args, int64_t row, float* scratch);
  void (*product)(const MlaProduct& product);
  /// B in float32, row-major: [k][panels * 16].
  void (*decode_rows)(const MlaMatrix& b, float* out);

  /// The partial result of keys [segment*kMlaSegment, ...) for every row, to `state`.
  void (*attend_segment)(const MlaBlock& block, int segment, const MlaScratch& scratch,
                         float* state);
  /// total = total and part, as if their keys had been seen together.
  void (*merge_states)(float* total, const float* part, int rows, int rank);
  /// Divides by the sums and writes the block's rows of out.
  void (*finish)(const MlaBlock& block, const float* total);

  /// Keys [first, first + 16) of a sequence, those from key_end on as zero, to panel
  /// (first / 16) % (kMlaSegment / 16) of the latents.
  void (*stage_latents)(const PagedKv& cache, const int32_t* pages, const MlaShape& shape,
                        int first, int key_end, const MlaLatents& to);
  void (*attend_naive)(const MlaNaiveBlock& block);
};

const MlaKernels& avx2_mla_kernels();
const MlaKernels& avx512_mla_kernels();

}  // namespace capstan::kernels
