// The part of a weight that one rank holds.
#pragma once

#include <cstdint>
#include <vector>

#include "tensor/tensor.h"

namespace capstan::model {

/// Rows (entries of a vector, matrices of a stack: the first dimension) or columns (the last one)
/// [begin, end) of a weight.
struct WeightSlice {
  enum class Axis : uint8_t { kWhole, kRows, kColumns };
  Axis axis = Axis::kWhole;
  int64_t begin = 0, end = 0;

  static WeightSlice rows(int64_t begin, int64_t end) { return {Axis::kRows, begin, end}; }
  static WeightSlice columns(int64_t begin, int64_t end) { return {Axis::kColumns, begin, end}; }
  int64_t size() const { return end - begin; }
};

/// The shape that the slice has of a weight of shape `whole`.
std::vector<int64_t> slice_shape(const WeightSlice& slice, std::vector<int64_t> whole);

/// The slice of a weight's block scales, one per 128 x 128: blocks that the slice touches.
WeightSlice scales_slice(const WeightSlice& slice);

/// The slice of `whole`. Rows point into it; columns, which must begin and end at blocks of the
/// dtype, are gathered in `storage`.
TensorView slice_of(const TensorView& whole, const WeightSlice& slice, AlignedBuffer& storage);

}  // namespace capstan::model
