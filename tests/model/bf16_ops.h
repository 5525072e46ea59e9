// Block-FP8 weights times BF16 activations, whether or not this CPU's timing chooses that.
#pragma once

#include <algorithm>
#include <cmath>

#include "forwarding_ops.h"
#include "kernels/avx512bf16/linear_bf16.h"
#include "kernels/experts.h"
#include "kernels/linear_internal.h"
#include "platform/cpu.h"
#include "platform/thread_pool.h"
#include "quant/codecs.h"

namespace capstan::model {

/// The table that avx512_linear_kernels() is where the BF16 dot product pays. Only for CPUs with
/// avx512_bf16.
inline const kernels::LinearKernels& bf16_dot_kernels() {
  using namespace kernels;
  static const LinearKernels kernels = [] {
    LinearKernels k = avx512_linear_kernels();
    k.panel = [](DType dtype, bool quantise) -> PanelKernel {
      return dtype == DType::kF8E4M3 && quantise ? avx512bf16::fp8_panel
                                                 : avx512_linear_kernels().panel(dtype, quantise);
    };
    k.x_form = [](DType dtype, bool quantise) {
      return dtype == DType::kF8E4M3 && quantise ? kXBf16
                                                 : avx512_linear_kernels().x_form(dtype, quantise);
    };
    return k;
  }();
  return kernels;
}

/// Float32 kernels that read activations of block-FP8 weights after `Round`: with BF16's rounding
/// the same numbers up to the order of sums, on any CPU with AVX2.
template <float (*Round)(float)>
const kernels::LinearKernels& rounding_kernels() {
  using namespace kernels;
  static const LinearKernels& plain = linear_kernels(Isa::kAvx512);  // AVX2's without AVX-512
  static const LinearKernels kernels = [] {
    LinearKernels k = plain;
    k.x_form = [](DType dtype, bool quantise) {
      return dtype == DType::kF8E4M3 ? kXScaled : plain.x_form(dtype, quantise);
    };
    k.scale = [](const float* x, int64_t stride, int64_t cols, int rows, float* out) {
      if (plain.x_form(DType::kF8E4M3, false) == kXScaled) {  // by a power of two
        plain.scale(x, stride, cols, rows, out);
      } else {
        for (int r = 0; r < rows; ++r) std::copy_n(x + r * stride, cols, out + r * cols);
      }
      for (int64_t i = 0; i < rows * cols; ++i) out[i] = Round(out[i]);
    };
    k.panel = [](DType dtype, bool quantise) -> PanelKernel {
      if (dtype != DType::kF8E4M3) return plain.panel(dtype, quantise);
      return [](const std::byte* panel, int64_t cols, const XChunk& x, int rows, float* acc) {
        XChunk rounded = x;
        rounded.f32 = x.scaled;
        rounded.stride = cols;
        plain.panel(DType::kF8E4M3, false)(panel, cols, rounded, rows, acc);
      };
    };
    return k;
  }();
  return kernels;
}

inline float round_to_bf16(float x) {
  return quant::bfloat16_to_float(quant::float_to_bfloat16(x));
}
/// To nearest, with BF16's seven bits of mantissa less four.
inline float round_to_three_bits(float x) {
  int exponent = 0;
  const float mantissa = std::frexp(x, &exponent);
  return std::ldexp(std::nearbyint(mantissa * 16), exponent - 4);
}

/// Products by `kernels`; the rest, and the packing, by `inner`: CPU ops of the same set.
class TableOps final : public ForwardingOps {
 public:
  TableOps(std::shared_ptr<kernels::Ops> inner, const kernels::LinearKernels& kernels,
           platform::ThreadPool& pool)
      : ForwardingOps(std::move(inner)), kernels_(kernels), pool_(pool) {}

  void linear(const kernels::LinearArgs& args) override {
    if (args.x.rows != 0) kernels::run_linear_panels(kernels_, args, pool_);
  }
  void experts(const kernels::ExpertsArgs& args) override { plan_.run(kernels_, args, pool_); }

 private:
  const kernels::LinearKernels& kernels_;
  platform::ThreadPool& pool_;
  kernels::ExpertsPlan plan_;
};

}  // namespace capstan::model
