// Addresses inside a PagedKv; the one place where its layout is spelled out.
#pragma once

#include "kernels/ops.h"

namespace capstan::kernels {

/// Key row (head_dim elements) of `kv_head` at `page`, `offset`. The value row is value_offset
/// bytes further.
inline std::byte* key_row(const PagedKv& kv, int64_t page, int64_t offset, int kv_head) {
  const auto row_bytes = static_cast<int64_t>(dtype_bytes(kv.dtype, kv.head_dim));
  return kv.base + page * kv.page_stride + kv_head * kv.head_stride + offset * row_bytes;
}

inline std::byte* key_row_of_slot(const PagedKv& kv, int64_t slot, int kv_head) {
  return key_row(kv, slot / kv.page_size, slot % kv.page_size, kv_head);
}

inline std::byte* key_row_of_position(const PagedKv& kv, const int32_t* pages, int64_t position,
                                      int kv_head) {
  return key_row(kv, pages[position / kv.page_size], position % kv.page_size, kv_head);
}

}  // namespace capstan::kernels
