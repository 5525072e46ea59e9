#include "quant/panel_fp8.h"

#include <algorithm>
#include <cstring>

#include "quant/fp8.h"
#include "quant/panel.h"

namespace capstan::quant {

namespace {

/// Place of column c among the sixteen words of a pair: c and c + 8 share a dword, so that both
/// become floats without crossing lanes.
constexpr int word_of(int c) { return (c % 8) * 2 + c / 8; }

}  // namespace

size_t fp8_panel_bytes(int64_t k) {
  return fp8_panel_header(k) + static_cast<size_t>((k + 1) / 2) * 2 * kPanelColumns;
}

void pack_fp8_panel(const std::byte* rows, size_t row_bytes, int columns, int64_t k,
                    std::byte* panel) {
  std::memset(panel, 0, fp8_panel_header(k));
  std::byte* codes = panel + fp8_panel_header(k);
  if (columns < kPanelColumns || k % 2 != 0)
    std::memset(codes, 0, static_cast<size_t>((k + 1) / 2) * 2 * kPanelColumns);
  // Pairs whose 16 columns (2 KiB) stay in L1 while each column writes to them.
  constexpr int64_t kTile = 64;
  for (int64_t first = 0; first < k / 2; first += kTile) {
    const int64_t end = std::min(k / 2, first + kTile);
    for (int c = 0; c < columns; ++c) {
      const std::byte* row = rows + static_cast<size_t>(c) * row_bytes;
      for (int64_t i = first; i < end; ++i)
        std::memcpy(codes + (i * kPanelColumns + word_of(c)) * 2, row + 2 * i, 2);
    }
  }
  if (k % 2 != 0) {
    for (int c = 0; c < columns; ++c) {
      codes[(k / 2 * kPanelColumns + word_of(c)) * 2] =
          rows[static_cast<size_t>(c) * row_bytes + static_cast<size_t>(k - 1)];
    }
  }
}

void pack_fp8_scales(const float* scales, int64_t k, std::byte* panel) {
  std::memcpy(panel, scales, static_cast<size_t>(fp8_blocks(k)) * sizeof(float));
}

}  // namespace capstan::quant
