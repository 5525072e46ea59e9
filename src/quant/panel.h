// Panels: the memory layout in which the CPU kernels read weight matrices.
//
// A panel holds 16 consecutive rows of a weight matrix [n, k] ("columns" of the product, one SIMD
// lane each) for all of k, so that a kernel streams it from the first byte to the last. The bytes
// per weight are exactly the file's: decoding is bound by DRAM, so nothing is widened at load.
//
// Block formats, per block of 32 along k (little endian, 16 columns side by side):
//   scales   F16 d[16]            Q8_0, Q4_0, Q5_0
//            F16 d[16], m[16]     Q4_1, Q5_1
//   quants   4-bit part, 256 bytes: dword t (0..3) of column c at t*64 + c*4; byte j of it has
//            element 4t+j in the low and 16+4t+j in the high nibble
//   high     Q5: 64 bytes, dword of column c at c*4; bit s of byte j is bit 4 of element 4s+j
//            Q6: 128 bytes, dword h (0..1) of column c at h*64 + c*4; bits 2s,2s+1 of byte j are
//            bits 4,5 of element 16h + 4s+j
//   Q8_0 has instead of nibbles 512 bytes: dword t (0..7) of column c at t*64 + c*4, elements 4t+j
//            plus 128, since the byte products of AVX2 and VNNI want unsigned weights
// The 256-element formats put one header before eight such blocks (whose own scales are absent):
//   Q4_K, Q5_K   F16 d[16], dmin[16], then the file's 12 scale bytes as bytes s[12][16]
//   Q6_K         F16 d[16], then int8 scale[16][16] (sub-block of 16, column)
// Float formats: F32 [k][16]; F16 [k][16]; BF16 [k][8] dwords, column i low and i+8 high, so that
// both halves widen with one instruction each.
// F8_E4M3: F32 scale[ceil(k/128)] (a panel's 16 columns lie in one block of 128), zeros up to a
// multiple of 64 bytes; then per pair of elements 2i, 2i+1 sixteen words, one per column: element
// 2i in the low byte, 2i+1 in the high one. Columns beyond n are zero.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "tensor/dtype.h"

namespace capstan::quant {

inline constexpr int kPanelColumns = 16;

/// True for the dtypes that have a panel layout.
bool has_panel_layout(DType dtype);

/// Bytes of one panel of `k` elements per column; k must be a multiple of the block size.
/// Always a multiple of 32, so that panels laid end to end stay aligned for vector loads.
size_t panel_bytes(DType dtype, int64_t k);

/// Bytes before the codes of an F8_E4M3 panel.
constexpr size_t fp8_panel_header(int64_t k) {
  return static_cast<size_t>((k + 127) / 128 * 4 + 63) / 64 * 64;
}

/// Packs `columns` (1..16) rows of `k` elements, stored as in a file and `row_bytes` apart. Scales
/// of F8_E4M3 are written by pack_fp8_scales.
void pack_panel(DType dtype, const std::byte* rows, size_t row_bytes, int columns, int64_t k,
                std::byte* panel);

/// scales[ceil(k/128)]: those of the block of rows that the panel belongs to.
void pack_fp8_scales(const float* scales, int64_t k, std::byte* panel);

/// Read-mostly memory for packed weights: zeroed, aligned to 2 MiB where large (32 MiB), to 4 KiB
/// where not, huge pages asked for (a 4 KiB page is read in 0.15 us at full speed; page walks would
/// show). Smaller buffers share mappings; no two share a page. Move-only owner. Safe to make from
/// several threads at once.
class PanelBuffer {
 public:
  PanelBuffer() = default;
  /// data() is null if the memory cannot be had.
  explicit PanelBuffer(size_t bytes);
  ~PanelBuffer();
  PanelBuffer(PanelBuffer&& other) noexcept;
  PanelBuffer& operator=(PanelBuffer&& other) noexcept;

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
  class Mapping;
  std::shared_ptr<Mapping> mapping_;
};

}  // namespace capstan::quant
