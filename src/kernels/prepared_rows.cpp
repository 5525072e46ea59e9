#include "kernels/prepared_rows.h"

#include <algorithm>

namespace capstan::kernels {

namespace {

void grow(AlignedBuffer& buffer, int64_t bytes) {
  const auto size = static_cast<size_t>(bytes);
  if (buffer.bytes() < size) buffer = AlignedBuffer(size + size / 4);
}

}  // namespace

void PreparedRows::reserve(unsigned forms, int64_t rows, int64_t k) {
  forms_ = forms;
  k_ = k;
  if ((forms & kXInt8) != 0) grow(int8_, records(rows));
  if ((forms & kXPaired) != 0) grow(paired_, records(rows));
  if ((forms & kXSuper) != 0) grow(super_, super_records(rows));
  if ((forms & kXScaled) != 0) grow(scaled_, rows * k * static_cast<int64_t>(sizeof(float)));
  if ((forms & kXBf16) != 0) grow(bf16_, bf16_records(rows));
}

void PreparedRows::convert(const LinearKernels& kernels, const float* x, int64_t stride,
                           int64_t first_row, int64_t rows, int64_t low, int64_t high) {
  if (!needs_conversion(forms_)) return;
  const int64_t tall = kernels.tall_forms == 0 ? 0 : rows / kTallRows * kTallRows;
  for (int64_t r = 0; r < rows;) {
    const auto height =
        static_cast<int>(std::min<int64_t>(rows - r, r < tall ? kTallRows : kTileRows));
    if (r >= low && r < high) convert_tile(kernels, x + r * stride, stride, first_row + r, height);
    r += height;
  }
}

void PreparedRows::convert_tile(const LinearKernels& kernels, const float* x, int64_t stride,
                                int64_t first_row, int rows) {
  const auto tiles = [&](XForm form, auto&& tile) {
    if ((forms_ & form) == 0) return;
    const int height =
        rows == kTallRows && (kernels.tall_forms & form) != 0 ? kTallRows : kTileRows;
    for (int r = 0; r < rows; r += height)
      tile(x + r * stride, first_row + r, std::min(height, rows - r));
  };
  tiles(kXInt8, [&](const float* from, int64_t row, int n) {
    kernels.quantise_int8(from, stride, k_, n, int8_.data() + records(row));
  });
  tiles(kXPaired, [&](const float* from, int64_t row, int n) {
    kernels.quantise_paired(from, stride, k_, n, paired_.data() + records(row));
  });
  tiles(kXSuper, [&](const float* from, int64_t row, int n) {
    kernels.quantise_super(from, stride, k_, n, super_.data() + super_records(row));
  });
  tiles(kXScaled, [&](const float* from, int64_t row, int n) {
    kernels.scale(from, stride, k_, n, scaled_.as<float>() + row * k_);
  });
  tiles(kXBf16, [&](const float* from, int64_t row, int n) {
    kernels.round_bf16(from, stride, k_, n, bf16_.data() + bf16_records(row));
  });
}

XChunk PreparedRows::view(const float* x, int64_t stride, int64_t first_row) const {
  XChunk chunk;
  chunk.f32 = x;
  chunk.stride = stride;
  if ((forms_ & kXInt8) != 0) chunk.int8 = int8_.data() + records(first_row);
  if ((forms_ & kXPaired) != 0) chunk.paired = paired_.data() + records(first_row);
  if ((forms_ & kXSuper) != 0) chunk.super = super_.data() + super_records(first_row);
  if ((forms_ & kXScaled) != 0) chunk.scaled = scaled_.as<float>() + first_row * k_;
  if ((forms_ & kXBf16) != 0) chunk.bf16 = bf16_.data() + bf16_records(first_row);
  return chunk;
}

unsigned forms_of(const LinearKernels& kernels, const Segment& segment, bool quantise_activations) {
  unsigned forms = 0;
  for (int p = 0; p < segment.panels; ++p)
    forms |= kernels.x_form(segment.dtypes[static_cast<size_t>(p)], quantise_activations);
  return forms;
}

}  // namespace capstan::kernels
