// The F8_E4M3 case of panel.h.
#pragma once

#include <cstddef>
#include <cstdint>

namespace capstan::quant {

size_t fp8_panel_bytes(int64_t k);
void pack_fp8_panel(const std::byte* rows, size_t row_bytes, int columns, int64_t k,
                    std::byte* panel);

}  // namespace capstan::quant
