// What the instruction sets implement for linear(), and the packed weight they share.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels/linear.h"
#include "quant/panel.h"
#include "tensor/tensor.h"

namespace capstan::kernels {

inline constexpr int kPanelColumns = quant::kPanelColumns;
/// Rows of x that one micro-kernel computes together. Rows of a chunk are cut in tiles of this
/// height and one lower tile for the rest. In a set's tall forms as many tiles as possible have
/// kTallRows.
inline constexpr int kTileRows = 4;
inline constexpr int kTallRows = 16;

/// A run of outputs with one structure. One group of it is computed, and stored, as a whole:
/// `panels` panels lie behind each other in memory (2: gate and up of a swiglu pair).
struct Segment {
  std::array<DType, 2> dtypes;
  int panels = 1;
  int64_t n = 0;       // outputs of each panel's part
  int64_t groups = 0;  // ceil(n / 16)
  int64_t column = 0;  // first output column of part 0
  std::array<size_t, 2> panel_bytes = {};
  std::byte* data = nullptr;
  /// Biases of part p at p*groups*16, zero where a part has none; empty if no part has one.
  std::vector<float> bias;

  size_t group_bytes() const { return panel_bytes[0] + panel_bytes[1]; }
};

class PanelWeight : public LinearWeight {
 public:
  int64_t n() const override { return n_; }
  int64_t k() const override { return k_; }
  size_t bytes() const override { return bytes_; }

  int64_t n_ = 0;
  int64_t k_ = 0;
  size_t bytes_ = 0;
  Isa isa = Isa::kAvx2;
  bool swiglu_pair = false;
  bool quantise_activations = true;
  int64_t groups = 0;
  std::vector<Segment> segments;
  quant::PanelBuffer buffer;
};

/// Forms of the activations that panel kernels read, one bit each.
///
/// kXInt8: per row and block of 32 elements one record of kXRecord bytes:
///   int8 q[32]; float scale; float sum (scale * sum of q); then pairs of int16, the start value of
///   the 16-bit accumulators that takes the weights' offset into account. The low half is the
///   sum of q at element positions 0,1 of each dword, the high half that at 2,3, over the block,
///   times -8 (at kInit8) and -16 (kInit16); over elements 0..15 and 16..31 times -32 (kInit32).
///   AVX-512's kernels keep one int32, the sum of the pair, at kInit8 and kInit16.
/// kXPaired: records of the same size: int8 q[32] with |q[2i]| + |q[2i+1]| <= 127, so that pairs of
///   products with uint8 weights fit 16 bits; float scale; four start values as above (offset 128),
///   each over eight elements, at kPairedInit.
/// kXSuper: per row and 256 elements one record of kXSuperRecord bytes: int8 q[256]; float scale;
///   int16 sums of q over 32 each; int32 -32 times the sums of q over 16 each. The largest of q is
///   127 or, where that is less, the largest sum of |x| over 32 is kSuperBlockSum, so that products
///   with quants up to 15 fit 16 bits when summed over 32: 15 * (2144 + 32 / 2) = 32,400. That
///   bounds the mean of |q| by 67, normal values' is 35: it concerns blocks that have no outliers.
/// Records of the rows of a tile are interleaved: block 0 of each row, block 1 of each row, ...
/// kXScaled: floats times 2^64, rows of k behind each other.
/// kXBf16: per row and 128 elements one record of kXBf16Record bytes, rounded to nearest even;
///   zeros beyond k. Interleaved likewise.
enum XForm : unsigned {
  kXFloat = 1,
  kXInt8 = 2,
  kXPaired = 4,
  kXScaled = 8,
  kXSuper = 16,
  kXBf16 = 32
};
inline constexpr int kXRecord = 64;
inline constexpr int kXScale = 32;
inline constexpr int kInt8Sum = 36;
inline constexpr int kInit8 = 40;
inline constexpr int kInit16 = 44;
inline constexpr int kInit32 = 48;      // and 52
inline constexpr int kPairedInit = 36;  // to 51; scale at kXScale
inline constexpr int kXSuperRecord = 384;
inline constexpr int kSuperScale = 256;
inline constexpr float kSuperBlockSum = 2144;
inline constexpr int kSuperSums = 288;    // to 303
inline constexpr int kSuperInit32 = 320;  // to 383
inline constexpr int kXBf16Record = 256;

/// Activations of one chunk of rows, in the forms asked for.
struct XChunk {
  const float* f32 = nullptr;
  int64_t stride = 0;
  const std::byte* int8 = nullptr;
  const std::byte* paired = nullptr;
  const std::byte* super = nullptr;
  const float* scaled = nullptr;
  const std::byte* bf16 = nullptr;
};

/// Computes acc[rows][16] = panel * x for all rows of the chunk; k ascending.
using PanelKernel = void (*)(const std::byte* panel, int64_t k, const XChunk& x, int rows,
                             float* acc);
/// Rounds one tile of `rows` rows of x to records at `out`.
using QuantiseTile = void (*)(const float* x, int64_t stride, int64_t k, int rows, std::byte* out);
/// Scales rows of x as kXScaled says.
using ScaleTile = void (*)(const float* x, int64_t stride, int64_t k, int rows, float* out);
/// y[rows][columns] (op)= acc[rows][16] + bias[16] (bias may be null).
using StorePanel = void (*)(const float* acc, const float* bias, int rows, int columns, bool add,
                            float* y, int64_t stride);
/// y[rows][columns] = silu(gate + gate_bias) * (up + up_bias); both biases or neither.
using StoreSwiGlu = void (*)(const float* gate, const float* up, const float* gate_bias,
                             const float* up_bias, int rows, int columns, float* y, int64_t stride);

struct LinearKernels {
  /// Which form of x the kernel of a dtype reads.
  XForm (*x_form)(DType dtype, bool quantise_activations);
  PanelKernel (*panel)(DType dtype, bool quantise_activations);
  QuantiseTile quantise_int8;
  QuantiseTile quantise_paired;
  QuantiseTile quantise_super;
  ScaleTile scale;
  StorePanel store;
  StoreSwiGlu store_swiglu;
  QuantiseTile round_bf16 = nullptr;  // of sets with a kernel that reads kXBf16
  unsigned tall_forms = 0;            // forms (XForm) whose tiles have kTallRows rows
};

const LinearKernels& avx2_linear_kernels();
/// Only for CPUs with AVX-512 F, BW, VL, DQ and VNNI. Shares layout and epilogues with AVX2.
const LinearKernels& avx512_linear_kernels();
/// Only for CPUs with AMX.
const LinearKernels& amx_linear_kernels();
/// The table that weights packed for `isa` (not kRef) are multiplied with.
const LinearKernels& linear_kernels(Isa isa);

/// The oracle: rows as in the file, dequantised one at a time, summed in double.
Result<std::unique_ptr<LinearWeight>> pack_linear_ref(const LinearSpec& spec);
void run_linear_ref(const LinearArgs& args, platform::ThreadPool& pool);
/// y[n] = W x + b of one row in double, for a weight of pack_linear_ref.
void linear_row_ref(const LinearWeight& weight, const double* x, double* y);

/// Shape checks common to all instruction sets.
Status check_linear_spec(const LinearSpec& spec);
/// Bias of `part` widened to float.
std::vector<float> bias_values(const TensorView& bias);
/// Block scales of an F8_E4M3 part as floats.
std::vector<float> scale_values(const TensorView& scales);

void run_linear_panels(const LinearKernels& kernels, const LinearArgs& args,
                       platform::ThreadPool& pool);

}  // namespace capstan::kernels
