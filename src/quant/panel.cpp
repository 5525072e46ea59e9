#include "quant/panel.h"

#include <algorithm>
#include <cstring>

#include "quant/panel_fp8.h"

namespace capstan::quant {

namespace {

constexpr int kCols = kPanelColumns;
constexpr int kBlock = 32;        // elements per panel block
constexpr int kSuper = 256;       // elements per K-quant super-block
constexpr size_t kNibbles = 256;  // bytes of the 4-bit part of a panel block

struct Layout {
  int group;      // elements per header
  size_t header;  // bytes before the group's blocks
  size_t block;   // bytes per 32 elements
};

constexpr Layout layout_of(DType dtype) {
  switch (dtype) {
    case DType::kQ8_0:
      return {kBlock, 32, 512};
    case DType::kQ4_0:
      return {kBlock, 32, kNibbles};
    case DType::kQ4_1:
      return {kBlock, 64, kNibbles};
    case DType::kQ5_0:
      return {kBlock, 32, kNibbles + 64};
    case DType::kQ5_1:
      return {kBlock, 64, kNibbles + 64};
    case DType::kQ4_K:
      return {kSuper, 256, kNibbles};
    case DType::kQ5_K:
      return {kSuper, 256, kNibbles + 64};
    case DType::kQ6_K:
      return {kSuper, 288, kNibbles + 128};
    default:
      return {0, 0, 0};
  }
}

// The 16 bytes of one column's 4-bit part (element i low, 16+i high) to its dwords.
void put_nibbles(const uint8_t* nibbles, int c, std::byte* block) {
  for (int t = 0; t < 4; ++t) std::memcpy(block + t * 64 + c * 4, nibbles + t * 4, 4);
}

uint32_t load32(const uint8_t* p) {
  uint32_t v;
  std::memcpy(&v, p, 4);
  return v;
}

// Bit i of `bits` is bit 4 of element i. Four bits are spread to four bytes by one product.
void put_high1(uint32_t bits, int c, std::byte* high) {
  uint32_t out = 0;
  for (int s = 0; s < 8; ++s) {
    const uint32_t four = (bits >> (4 * s)) & 15;
    out |= ((four * 0x00204081u) & 0x01010101u) << s;
  }
  std::memcpy(high + c * 4, &out, 4);
}

// Bit `shift` of byte i of `bytes` is bit 4 of element i.
void put_high1(const uint8_t* bytes, int shift, int c, std::byte* high) {
  uint32_t out = 0;
  for (int s = 0; s < 8; ++s) out |= ((load32(bytes + 4 * s) >> shift) & 0x01010101u) << s;
  std::memcpy(high + c * 4, &out, 4);
}

// Bits `shift` and above of byte i of `bytes` are bits 4 and 5 of element i.
void put_high2(const uint8_t* bytes, int shift, int c, std::byte* high) {
  for (int h = 0; h < 2; ++h) {
    uint32_t out = 0;
    for (int s = 0; s < 4; ++s)
      out |= ((load32(bytes + 16 * h + 4 * s) >> shift) & 0x03030303u) << (2 * s);
    std::memcpy(high + h * 64 + c * 4, &out, 4);
  }
}

// Formats whose file block has 32 elements; `b` is the block, `g` the panel group.
void put_block32(DType dtype, const uint8_t* b, int c, std::byte* g) {
  const Layout layout = layout_of(dtype);
  std::byte* quants = g + layout.header;
  std::memcpy(g + c * 2, b, 2);  // d
  b += 2;
  if (dtype == DType::kQ4_1 || dtype == DType::kQ5_1) {
    std::memcpy(g + 32 + c * 2, b, 2);  // m
    b += 2;
  }
  if (dtype == DType::kQ8_0) {
    for (int t = 0; t < 8; ++t) {
      uint32_t four;
      std::memcpy(&four, b + t * 4, 4);
      four ^= 0x80808080;  // int8 + 128 as uint8
      std::memcpy(quants + t * 64 + c * 4, &four, 4);
    }
    return;
  }
  if (dtype == DType::kQ5_0 || dtype == DType::kQ5_1) {
    uint32_t bits;
    std::memcpy(&bits, b, 4);
    put_high1(bits, c, quants + kNibbles);
    b += 4;
  }
  put_nibbles(b, c, quants);
}

void put_q4k_q5k(bool five, const uint8_t* b, int c, std::byte* g) {
  std::memcpy(g + c * 2, b, 2);           // d
  std::memcpy(g + 32 + c * 2, b + 2, 2);  // dmin
  for (int i = 0; i < 12; ++i) g[64 + i * kCols + c] = static_cast<std::byte>(b[4 + i]);
  const uint8_t* qh = b + 16;
  const uint8_t* qs = five ? b + 48 : b + 16;
  const Layout layout = layout_of(five ? DType::kQ5_K : DType::kQ4_K);
  for (int chunk = 0; chunk < 4; ++chunk, qs += 32) {
    // A file byte has an element of block 2*chunk low and one of 2*chunk+1 high; a panel byte has
    // elements i and 16+i of one block.
    uint8_t even[16], odd[16];
    for (int i = 0; i < 16; ++i) {
      even[i] = static_cast<uint8_t>((qs[i] & 15) | (qs[i + 16] << 4));
      odd[i] = static_cast<uint8_t>((qs[i] >> 4) | (qs[i + 16] & 0xf0));
    }
    std::byte* even_block = g + layout.header + 2 * chunk * layout.block;
    std::byte* odd_block = even_block + layout.block;
    put_nibbles(even, c, even_block);
    put_nibbles(odd, c, odd_block);
    if (!five) continue;
    put_high1(qh, 2 * chunk, c, even_block + kNibbles);
    put_high1(qh, 2 * chunk + 1, c, odd_block + kNibbles);
  }
}

void put_q6k(const uint8_t* b, int c, std::byte* g) {
  const Layout layout = layout_of(DType::kQ6_K);
  const uint8_t* scales = b + 192;
  std::memcpy(g + c * 2, b + 208, 2);  // d is last in the file
  for (int i = 0; i < 16; ++i) g[32 + i * kCols + c] = static_cast<std::byte>(scales[i]);
  for (int half = 0; half < 2; ++half) {
    const uint8_t* ql = b + 64 * half;
    const uint8_t* qh = b + 128 + 32 * half;
    for (int part = 0; part < 4; ++part) {  // 32 elements each
      const uint8_t* low = ql + 32 * (part & 1);
      const int low_shift = part < 2 ? 0 : 4;
      uint8_t nibbles[16];
      for (int i = 0; i < 16; ++i) {
        nibbles[i] = static_cast<uint8_t>(((low[i] >> low_shift) & 15) |
                                          (((low[i + 16] >> low_shift) & 15) << 4));
      }
      std::byte* block = g + layout.header + (4 * half + part) * layout.block;
      put_nibbles(nibbles, c, block);
      put_high2(qh, 2 * part, c, block + kNibbles);
    }
  }
}

void pack_float(DType dtype, const std::byte* rows, size_t row_bytes, int columns, int64_t k,
                std::byte* panel) {
  const size_t size = static_cast<size_t>(dtype_info(dtype).block_bytes);
  // Elements of k whose 16 columns (4 KiB at most) stay in L1 while each column writes to them.
  constexpr int64_t kTile = 64;
  for (int64_t first = 0; first < k; first += kTile) {
    const int64_t n = std::min(k - first, kTile);
    for (int c = 0; c < columns; ++c) {
      const std::byte* from =
          rows + static_cast<size_t>(c) * row_bytes + static_cast<size_t>(first) * size;
      const int place = dtype == DType::kBF16 ? (c % 8) * 2 + c / 8 : c;
      std::byte* to =
          panel + (static_cast<size_t>(first) * kCols + static_cast<size_t>(place)) * size;
      if (size == 4) {
        for (int64_t i = 0; i < n; ++i) std::memcpy(to + i * kCols * 4, from + i * 4, 4);
      } else {
        for (int64_t i = 0; i < n; ++i) std::memcpy(to + i * kCols * 2, from + i * 2, 2);
      }
    }
  }
}

}  // namespace

bool has_panel_layout(DType dtype) {
  return dtype == DType::kF8E4M3 || dtype == DType::kF32 || dtype == DType::kF16 ||
         dtype == DType::kBF16 || layout_of(dtype).group != 0;
}

size_t panel_bytes(DType dtype, int64_t k) {
  if (dtype == DType::kF8E4M3) return fp8_panel_bytes(k);
  const Layout layout = layout_of(dtype);
  if (layout.group == 0) return dtype_bytes(dtype, k) * kCols;
  return static_cast<size_t>(k / layout.group) *
         (layout.header + layout.block * static_cast<size_t>(layout.group / kBlock));
}

void pack_panel(DType dtype, const std::byte* rows, size_t row_bytes, int columns, int64_t k,
                std::byte* panel) {
  if (dtype == DType::kF8E4M3) return pack_fp8_panel(rows, row_bytes, columns, k, panel);
  if (columns < kCols) std::memset(panel, 0, panel_bytes(dtype, k));
  const Layout layout = layout_of(dtype);
  if (layout.group == 0) {
    pack_float(dtype, rows, row_bytes, columns, k, panel);
    return;
  }
  const size_t file_block = static_cast<size_t>(dtype_info(dtype).block_bytes);
  const size_t group_bytes =
      layout.header + layout.block * static_cast<size_t>(layout.group / kBlock);
  for (int64_t i = 0; i < k / layout.group; ++i) {
    std::byte* group = panel + static_cast<size_t>(i) * group_bytes;
    for (int c = 0; c < columns; ++c) {
      const auto* block = reinterpret_cast<const uint8_t*>(
          rows + static_cast<size_t>(c) * row_bytes + static_cast<size_t>(i) * file_block);
      switch (dtype) {
        case DType::kQ4_K:
        case DType::kQ5_K:
          put_q4k_q5k(dtype == DType::kQ5_K, block, c, group);
          break;
        case DType::kQ6_K:
          put_q6k(block, c, group);
          break;
        default:
          put_block32(dtype, block, c, group);
      }
    }
  }
}

}  // namespace capstan::quant
