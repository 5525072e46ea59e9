#include "quant/fp8.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "quant/codecs.h"

namespace capstan::quant {

float e4m3_to_float(uint8_t code) {
  const auto byte = static_cast<std::byte>(code);
  float value;
  dequantize_row(DType::kF8E4M3, &byte, &value, 1);
  return value;
}

void dequantize_fp8_blocks(const std::byte* codes, const float* scales, int64_t first_row,
                           int64_t rows, int64_t k, float* dst) {
  const int64_t blocks = fp8_blocks(k);
  for (int64_t r = 0; r < rows; ++r, codes += k, dst += k) {
    dequantize_row(DType::kF8E4M3, codes, dst, k);
    const float* scale = scales + (first_row + r) / kFp8Block * blocks;
    for (int64_t b = 0; b < blocks; ++b) {
      const int64_t end = std::min((b + 1) * kFp8Block, k);
      for (int64_t c = b * kFp8Block; c < end; ++c) dst[c] *= scale[b];
    }
  }
}

void quantize_fp8_slices(const float* x, int64_t k, float floor, std::byte* codes, float* scales) {
  for (int64_t b = 0; b < fp8_blocks(k); ++b) {
    const int64_t begin = b * kFp8Block, end = std::min(begin + kFp8Block, k);
    float amax = floor;
    for (int64_t c = begin; c < end; ++c) amax = std::max(amax, std::fabs(x[c]));
    const float scale = amax / kMaxE4M3;
    scales[b] = scale;
    for (int64_t c = begin; c < end; ++c)
      codes[c] = static_cast<std::byte>(float_to_e4m3(x[c] / scale));
  }
}

int64_t find_fp8_nan(const std::byte* codes, int64_t n) {
  // Eight at a time: a byte of `v | 0x80` is 0xFF only for NaN codes, and then adding 1 to its low
  // seven bits carries into the eighth.
  int64_t i = 0;
  for (; i + 8 <= n; i += 8) {
    uint64_t v;
    std::memcpy(&v, codes + i, 8);
    if ((((v & 0x7f7f7f7f7f7f7f7f) + 0x0101010101010101) & 0x8080808080808080) != 0) break;
  }
  for (; i < n; ++i) {
    if ((codes[i] & std::byte{0x7f}) == std::byte{0x7f}) return i;
  }
  return -1;
}

}  // namespace capstan::quant
