#include "kernels/fp8_as_int8.h"

#include "kernels/linear_internal.h"
#include "quant/codecs.h"
#include "quant/fp8.h"

namespace capstan::kernels {

Fp8AsInt8::Fp8AsInt8(const LinearSpec& spec)
    : parts_(spec.parts.begin(), spec.parts.end()), spec_(spec) {
  for (size_t i = 0; i < parts_.size(); ++i) {
    TensorView& part = parts_[i];
    const int64_t n = part.shape[0], k = part.shape[1];
    if (part.dtype != DType::kF8E4M3 || k % dtype_info(DType::kQ8_0).block_elems != 0) continue;
    const std::vector<float> scales = scale_values(spec.scales[i]);
    const size_t row_bytes = dtype_bytes(DType::kQ8_0, k);
    std::vector<std::byte> blocks(static_cast<size_t>(n) * row_bytes);
    std::vector<float> row(static_cast<size_t>(k));
    for (int64_t r = 0; r < n; ++r) {
      quant::dequantize_fp8_blocks(part.data + r * k, scales.data(), r, 1, k, row.data());
      // Cannot fail: k is a multiple of the block.
      (void)quant::quantize_row(DType::kQ8_0, row.data(),
                                blocks.data() + static_cast<size_t>(r) * row_bytes, k);
    }
    part.dtype = DType::kQ8_0;
    part.data = blocks.data();
    blocks_.push_back(std::move(blocks));  // moving keeps the bytes where they are
  }
  spec_.parts = parts_;
}

}  // namespace capstan::kernels
