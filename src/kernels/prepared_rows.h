// Activations in the forms that panel kernels read.
#pragma once

#include "kernels/linear_internal.h"
#include "tensor/tensor.h"

namespace capstan::kernels {

/// Memory that only grows, so that a decode step allocates nothing.
class PreparedRows {
 public:
  /// Makes room for `rows` rows of k elements in `forms` (a set of XForm).
  void reserve(unsigned forms, int64_t rows, int64_t k);

  /// Converts a chunk's rows to the place of rows first_row, ...: of the tiles that the kernels cut
  /// the chunk in, those that begin at one of its rows [low, high). Different tiles may be
  /// converted by different threads at once.
  void convert(const LinearKernels& kernels, const float* x, int64_t stride, int64_t first_row,
               int64_t rows, int64_t low, int64_t high);
  /// All of `rows` rows.
  void convert_all(const LinearKernels& kernels, const float* x, int64_t stride, int64_t rows) {
    convert(kernels, x, stride, 0, rows, 0, rows);
  }

  /// Rows from first_row (a tile's first) on; x is their plain form.
  XChunk view(const float* x, int64_t stride, int64_t first_row) const;

 private:
  void convert_tile(const LinearKernels& kernels, const float* x, int64_t stride, int64_t first_row,
                    int rows);
  int64_t records(int64_t rows) const { return rows * (k_ / 32) * kXRecord; }
  int64_t super_records(int64_t rows) const { return rows * (k_ / 256) * kXSuperRecord; }
  int64_t bf16_records(int64_t rows) const { return rows * ((k_ + 127) / 128) * kXBf16Record; }

  unsigned forms_ = 0;
  int64_t k_ = 0;
  AlignedBuffer int8_, paired_, super_, scaled_, bf16_;
};

/// True if any of the forms must be converted to.
constexpr bool needs_conversion(unsigned forms) { return (forms & ~unsigned{kXFloat}) != 0; }

/// Forms that the kernels of a segment read.
unsigned forms_of(const LinearKernels& kernels, const Segment& segment, bool quantise_activations);

}  // namespace capstan::kernels
