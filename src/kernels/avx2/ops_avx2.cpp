#include "kernels/cpu_kernels.h"
#include "kernels/simd/attention_impl.h"
#include "kernels/simd/rows_impl.h"
#include "kernels/simd/vec_avx2.h"

namespace capstan::kernels {

const CpuKernels& avx2_kernels() {
  using V = simd::VecAvx2;
  static constexpr CpuKernels kernels = {
      simd::rms_norm_row<V>, simd::qkv_row<V>, simd::load_queries<V>, simd::attend_segment<V>,
      simd::merge_states<V>, simd::finish<V>,  simd::exp2_row<V>,
  };
  return kernels;
}

}  // namespace capstan::kernels
