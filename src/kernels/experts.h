// experts() of the CPU backend: which thread multiplies which rows with which experts' weights.
#pragma once

#include <vector>

#include "kernels/linear_internal.h"
#include "kernels/ops.h"
#include "kernels/prepared_rows.h"
#include "kernels/work_shares.h"
#include "platform/thread_pool.h"
#include "tensor/tensor.h"

namespace capstan::kernels {

/// One token's use of one expert.
struct ExpertUse {
  int32_t token;
  float weight;
};

/// Memory and lists are kept between calls, so that a decode step allocates nothing. One call at a
/// time.
///
/// Tokens are sorted by expert. First the gate/up products of all chosen experts, laid end to end
/// and cut into one contiguous share of equal cost per thread (so a popular expert is shared, and
/// each thread gathers the rows of few experts); then, behind one barrier (two if activations are
/// converted), the down products, each thread for some columns of y and all experts in ascending
/// order. No two threads add to the same element, and the order of additions is always the same.
/// Shares are worked off in pieces, and who is done helps the others (work_shares.h).
class ExpertsPlan {
 public:
  void run(const LinearKernels& kernels, const ExpertsArgs& args, platform::ThreadPool& pool);

 private:
  /// An expert that uses_[first, first + rows) want.
  struct Chosen {
    const PanelWeight* gate_up;
    const PanelWeight* down;
    int64_t first;
    int64_t rows;
    int64_t cost;   // of one group of panels of gate_up
    int64_t begin;  // cost of the experts before
    int64_t group;  // number of its first group
  };
  /// Rows of x as an expert's kernels read them, kept from piece to piece: rows [done, ...) of
  /// `chosen`, in the thread's memory.
  struct GatheredRows {
    const Chosen* chosen = nullptr;
    int64_t done = 0;
    XChunk x;
  };

  void run_tokens(const LinearKernels& kernels, const ExpertsArgs& args,
                  platform::ThreadPool& pool);
  void sort_by_expert(const ExpertsArgs& args);
  void share_work(int threads);
  void gate_up(const LinearKernels& kernels, const ExpertsArgs& args, int thread);
  void gather(const LinearKernels& kernels, const ExpertsArgs& args, const Chosen& chosen,
              int64_t done, GatheredRows& rows) const;
  void gate_up_groups(const LinearKernels& kernels, const ExpertsArgs& args, const Chosen& chosen,
                      int64_t first_group, int64_t end_group, GatheredRows& rows);
  void convert_hidden(const LinearKernels& kernels, int thread, int threads);
  void down(const LinearKernels& kernels, const ExpertsArgs& args, int thread);
  void down_columns(const LinearKernels& kernels, const ExpertsArgs& args, int64_t first_group,
                    int64_t end_group) const;

  std::vector<int64_t> starts_;  // uses of the experts before each
  std::vector<ExpertUse> uses_;  // by expert, then by token
  std::vector<Chosen> chosen_;
  int64_t cost_ = 0, groups_ = 0;                             // of all gate_up products
  WorkShares gate_up_shares_{WorkShares::Order::kAscending};  // of groups
  WorkShares down_shares_{WorkShares::Order::kAscending};     // of groups of columns
  int64_t gate_up_piece_ = 1, down_piece_ = 1;
  int64_t width_ = 0;          // of hidden rows: silu(gate) * up
  unsigned hidden_forms_ = 0;  // that the down products read
  AlignedBuffer hidden_;       // [uses][width]
  PreparedRows prepared_hidden_;
};

/// Scalar, in double; for weights of pack_linear_ref.
void experts_ref(const ExpertsArgs& args);

namespace avx2 {
/// y.row(uses[r].token)[column + c] += uses[r].weight * (acc[r][c] + bias[c]) for `columns` <= 16
/// columns; bias may be null.
void add_weighted(const float* acc, const float* bias, const ExpertUse* uses, int rows, int columns,
                  const MatrixView& y, int64_t column);
}  // namespace avx2

}  // namespace capstan::kernels
