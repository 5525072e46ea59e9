#include "model/ranks.h"

#include <algorithm>
#include <cstring>

namespace capstan::model {
namespace {

// Parts of several rows arrive rank by rank and are put side by side while they are in the cache;
// rows longer than this travel one at a time, straight to their place.
constexpr int64_t kJoinBytes = int64_t{1} << 18;

}  // namespace

Status Ranks::add_up(const MatrixView& x) {
  if (alone()) return {};
  return comm_->all_reduce(x.data, x.rows * x.cols, DType::kF32);
}

Status Ranks::share(const MatrixView& x) {
  if (alone()) return {};
  return comm_->broadcast(x.data, x.rows * x.cols * static_cast<int64_t>(sizeof(float)), 0);
}

Status Ranks::join_columns(const MatrixView& part, std::span<const int64_t> columns,
                           const MatrixView& whole) {
  int64_t width = 0;
  for (const int64_t c : columns) width += c;
  const int64_t row_bytes = width * static_cast<int64_t>(sizeof(float));
  const int64_t step = std::clamp<int64_t>(kJoinBytes / row_bytes, 1, part.rows);
  const auto joined_bytes = static_cast<size_t>(step * row_bytes);
  if (first() && step > 1 && joined_.bytes() < joined_bytes) joined_ = AlignedBuffer(joined_bytes);
  bytes_.resize(columns.size());
  for (int64_t row = 0; row < part.rows; row += step) {
    const int64_t rows = std::min(step, part.rows - row);
    for (size_t r = 0; r < columns.size(); ++r) {
      bytes_[r] = rows * columns[r] * static_cast<int64_t>(sizeof(float));
    }
    float* to = nullptr;
    if (first()) to = rows == 1 ? whole.row(row) : joined_.as<float>();
    CAPSTAN_RETURN_IF_ERROR(comm_->gather(part.row(row), to, bytes_, 0));
    if (!first() || rows == 1) continue;
    const float* from = joined_.as<float>();
    int64_t column = 0;
    for (const int64_t c : columns) {
      for (int64_t i = 0; i < rows; ++i, from += c) {
        std::memcpy(whole.row(row + i) + column, from, static_cast<size_t>(c) * sizeof(float));
      }
      column += c;
    }
  }
  return {};
}

}  // namespace capstan::model
