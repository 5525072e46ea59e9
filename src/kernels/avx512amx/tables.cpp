// The table of a CPU with AMX: rows that fill no tile go the way of AVX-512.
#include "kernels/avx512amx/linear_amx.h"

namespace capstan::kernels {

namespace {
PanelKernel panel_kernel(DType dtype, bool quantise_activations) {
  if (quantise_activations) {
    if (const PanelKernel kernel = amx::quantised_panel_kernel(dtype)) return kernel;
  }
  return avx512_linear_kernels().panel(dtype, quantise_activations);
}
}  // namespace

const LinearKernels& amx_linear_kernels() {
  static const LinearKernels kernels = [] {
    LinearKernels k = avx512_linear_kernels();
    k.panel = panel_kernel;
    k.tall_forms = kXInt8 | kXSuper;
    return k;
  }();
  return kernels;
}

}  // namespace capstan::kernels
