#include "model/weight_slice.h"

#include <cstring>

namespace capstan::model {
namespace {

constexpr int64_t kScaleBlock = 128;

}  // namespace

std::vector<int64_t> slice_shape(const WeightSlice& slice, std::vector<int64_t> whole) {
  if (slice.axis == WeightSlice::Axis::kRows) whole.front() = slice.size();
  if (slice.axis == WeightSlice::Axis::kColumns) whole.back() = slice.size();
  return whole;
}

WeightSlice scales_slice(const WeightSlice& slice) {
  return {slice.axis, slice.begin / kScaleBlock, (slice.end + kScaleBlock - 1) / kScaleBlock};
}

TensorView slice_of(const TensorView& whole, const WeightSlice& slice, AlignedBuffer& storage) {
  if (slice.axis == WeightSlice::Axis::kWhole) return whole;
  TensorView part;
  part.dtype = whole.dtype;
  part.name = whole.name;
  part.shape = slice_shape(slice, whole.shape);
  if (slice.axis == WeightSlice::Axis::kRows) {
    const int64_t row = whole.elems() / whole.shape.front();
    part.data = whole.data + dtype_bytes(whole.dtype, slice.begin * row);
    return part;
  }
  storage = AlignedBuffer(part.bytes());
  part.data = storage.data();
  const size_t row = dtype_bytes(whole.dtype, whole.cols());
  const size_t width = dtype_bytes(whole.dtype, slice.size());
  const std::byte* from = whole.data + dtype_bytes(whole.dtype, slice.begin);
  std::byte* to = storage.data();
  for (int64_t r = 0; r < whole.rows(); ++r, from += row, to += width) std::memcpy(to, from, width);
  return part;
}

}  // namespace capstan::model
