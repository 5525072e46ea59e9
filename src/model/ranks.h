// How the ranks that compute a model together put their parts together.
#pragma once

#include <span>
#include <vector>

#include "comm/communicator.h"
#include "kernels/ops.h"

namespace capstan::model {

/// One rank's view of all; without a communicator it is alone. Errors are the communicator's.
class Ranks {
 public:
  explicit Ranks(comm::Communicator* comm) : comm_(comm) {}

  bool alone() const { return comm_ == nullptr || comm_->size() == 1; }
  bool first() const { return comm_ == nullptr || comm_->rank() == 0; }

  /// How a rank puts its part of a product to the residual x: rank 0 adds, the others overwrite
  /// theirs, so that add_up() gives the residual plus all parts without another pass.
  kernels::Epilogue residual() const {
    return first() ? kernels::Epilogue::kAdd : kernels::Epilogue::kStore;
  }
  /// x becomes the sum of all ranks' x; rows lie one behind the other.
  Status add_up(const MatrixView& x);
  /// All ranks get rank 0's x; rows lie one behind the other.
  Status share(const MatrixView& x);
  /// Rank 0's `whole` [rows, all columns] gets every rank's `part` [rows, columns[rank]], side by
  /// side. `whole` is not used on other ranks.
  Status join_columns(const MatrixView& part, std::span<const int64_t> columns,
                      const MatrixView& whole);

 private:
  comm::Communicator* comm_;
  std::vector<int64_t> bytes_;
  AlignedBuffer joined_;  // rank 0: parts in the order of ranks
};

}  // namespace capstan::model
