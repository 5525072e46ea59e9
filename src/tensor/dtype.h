// Element types of tensors as they lie in files and in memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

namespace capstan {

enum class DType : uint8_t {
  kF32,
  kF16,
  kBF16,
  kF8E4M3,
  kI64,
  kI32,
  kU8,
  kBool,
  // GGUF block formats (ggml names); see quant/codecs.h for the layouts.
  kQ4_0,
  kQ4_1,
  kQ5_0,
  kQ5_1,
  kQ8_0,
  kQ4_K,
  kQ5_K,
  kQ6_K,
};

/// Elements per block and bytes per block; 1 element per block for plain types.
struct DTypeInfo {
  std::string_view name;
  int block_elems;
  int block_bytes;
};

constexpr DTypeInfo dtype_info(DType t) {
  switch (t) {
    case DType::kF32:
      return {"F32", 1, 4};
    case DType::kF16:
      return {"F16", 1, 2};
    case DType::kBF16:
      return {"BF16", 1, 2};
    case DType::kF8E4M3:
      return {"F8_E4M3", 1, 1};
    case DType::kI64:
      return {"I64", 1, 8};
    case DType::kI32:
      return {"I32", 1, 4};
    case DType::kU8:
      return {"U8", 1, 1};
    case DType::kBool:
      return {"BOOL", 1, 1};
    case DType::kQ4_0:
      return {"Q4_0", 32, 18};
    case DType::kQ4_1:
      return {"Q4_1", 32, 20};
    case DType::kQ5_0:
      return {"Q5_0", 32, 22};
    case DType::kQ5_1:
      return {"Q5_1", 32, 24};
    case DType::kQ8_0:
      return {"Q8_0", 32, 34};
    case DType::kQ4_K:
      return {"Q4_K", 256, 144};
    case DType::kQ5_K:
      return {"Q5_K", 256, 176};
    case DType::kQ6_K:
      return {"Q6_K", 256, 210};
  }
  return {"?", 1, 1};
}

constexpr bool is_block_quantised(DType t) { return dtype_info(t).block_elems > 1; }

/// Bytes of `elems` elements; `elems` must be a multiple of the block size.
constexpr size_t dtype_bytes(DType t, int64_t elems) {
  const DTypeInfo info = dtype_info(t);
  return static_cast<size_t>(elems / info.block_elems) * static_cast<size_t>(info.block_bytes);
}

}  // namespace capstan
