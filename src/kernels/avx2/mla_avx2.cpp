#include "kernels/mla_kernels.h"
#include "kernels/simd/mla_impl.h"
#include "kernels/simd/mla_naive_impl.h"
#include "kernels/simd/vec_avx2.h"

namespace capstan::kernels {

const MlaKernels& avx2_mla_kernels() {
  using V = simd::VecAvx2;
  static constexpr MlaKernels kernels = {
      simd::mla_store_row<V>,       simd::product<V>,
      simd::decode_rows<V>,         simd::attend_latents<V>,
      simd::merge_latent_states<V>, simd::finish_latents<V>,
      simd::stage_latents<V>,       simd::attend_naive<V>,
  };
  return kernels;
}

}  // namespace capstan::kernels
