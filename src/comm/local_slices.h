// Small arithmetic and checks that all communicators share.
#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "base/result.h"
#include "comm/reduce.h"
#include "tensor/dtype.h"

namespace capstan::comm {

/// Elements [begin, end).
struct Slice {
  int64_t begin = 0;
  int64_t end = 0;
};

/// Slice `i` of `n` of `count` elements of `width` bytes: whole cache lines (of an aligned tensor),
/// so that no two ranks write into the same one.
inline Slice slice_of(int64_t count, int64_t width, int i, int n) {
  const int64_t line = 64 / width;
  const int64_t lines = (count + line - 1) / line;
  const auto edge = [&](int64_t k) {
    const int64_t at = lines * k / n * line;
    return at < count ? at : count;
  };
  return {edge(i), edge(i + 1)};
}

inline Status check_count(int64_t count) {
  if (count >= 0) return {};
  return invalid_argument("negative size " + std::to_string(count) + " in a collective operation");
}

inline Status check_reduce(int64_t count, DType dtype) {
  if (!can_reduce(dtype)) {
    return invalid_argument("cannot add elements of type " + std::string(dtype_info(dtype).name) +
                            "; F32, F16, BF16, I32 and I64 can be added");
  }
  return check_count(count);
}

inline Status check_root(int root, int size) {
  if (root >= 0 && root < size) return {};
  return invalid_argument("root " + std::to_string(root) + " is none of the ranks 0 to " +
                          std::to_string(size - 1));
}

inline Status check_parts(std::span<const int64_t> bytes, int size) {
  if (static_cast<int>(bytes.size()) != size) {
    return invalid_argument("gather() got " + std::to_string(bytes.size()) + " sizes for " +
                            std::to_string(size) + " ranks");
  }
  for (const int64_t b : bytes) CAPSTAN_RETURN_IF_ERROR(check_count(b));
  return {};
}

/// For send_message() called elsewhere and receive_message() called there.
inline Error only_rank_0(const std::string& what, int rank) {
  return invalid_argument("rank " + std::to_string(rank) + " called " + what +
                          ": rank 0 sends messages, the others receive them");
}

}  // namespace capstan::comm
