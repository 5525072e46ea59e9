// kv_b_proj of multi-head latent attention, laid out as the right-hand sides of the products that
// attention makes with it (shared by all instruction sets, the oracle included).
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/result.h"
#include "kernels/ops.h"
#include "quant/panel.h"

namespace capstan::kernels {

/// Columns of a panel: either vector width divides it.
inline constexpr int kMlaColumns = 16;
constexpr int mla_padded(int n) { return (n + kMlaColumns - 1) / kMlaColumns * kMlaColumns; }

/// A matrix [k, n], the right operand B of Y = X B, in panels of 16 columns: [n/16][k][16], columns
/// beyond n zero. Sums run along k in ascending order, one lane an output: no horizontal sums, and
/// each panel is read from front to back.
struct MlaMatrix {
  const std::byte* data = nullptr;
  DType dtype = DType::kF32;  // F32, F16, BF16, F8_E4M3
  int k = 0;
  int panels = 0;
  int64_t panel_stride = 0;  // elements between panels, >= k*16
  /// F8_E4M3: element (i, j) is multiplied by scales[(i + k_offset) / 128 * panels + j / 16].
  const float* scales = nullptr;
  int k_offset = 0;

  const std::byte* panel(int p) const {
    return data + static_cast<int64_t>(dtype_bytes(dtype, p * panel_stride));
  }
};

/// Weights keep the checkpoint's precision: F32, F16 and BF16 as they are; F8_E4M3 as bytes with
/// their block scales (a product of the two in float32 is what dequantisation would give, at half
/// the bytes of BF16 and without its rounding). GGUF's block formats are stored as F16 unless
/// exactness is asked for: its rounding (2^-12 relative) is far below the format's own, and K_h of
/// a kv_b would have its blocks across the sum. F8_E4M3 whose head sizes are no multiples of 16,
/// pairs of unlike dtypes, and weights beyond the range of F16 become F32.
class PackedMla final : public MlaProjection {
 public:
  /// `exact`: block formats become F32.
  static Result<std::unique_ptr<MlaProjection>> pack(const MlaProjectionSpec& spec,
                                                     bool exact = false);

  size_t bytes() const override { return data_.bytes() + scales_.size() * sizeof(float); }
  const MlaShape& shape() const { return shape_; }
  DType dtype() const { return dtype_; }

  /// K_h as [nope_dim, rank]: qa = qn K_h.
  MlaMatrix key(int head) const;
  /// V_h transposed, [rank, value_dim]: o = u V_h^T.
  MlaMatrix value(int head) const;
  /// A matrix in float32, row-major: [k, panels * 16].
  static void decode(const MlaMatrix& matrix, float* out);

 private:
  Status fill(const MlaProjectionSpec& spec, DType dtype);
  void fill_scales(const TensorView& scale, int head);

  MlaShape shape_;
  DType dtype_ = DType::kF32;
  quant::PanelBuffer data_;    // all K_h, then all V_h^T
  std::vector<float> scales_;  // per head: K_h's, V_h^T's
  size_t key_bytes_ = 0, value_bytes_ = 0;
  size_t key_scales_ = 0, value_scales_ = 0;
};

}  // namespace capstan::kernels
