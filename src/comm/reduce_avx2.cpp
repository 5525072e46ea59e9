// The sum over parts with AVX2 and F16C. Functions carry their target, so that nothing else of this
// file needs the instructions and the program starts without them.
#include "comm/reduce.h"
#include "comm/reduce_impl.h"

#if defined(__x86_64__)
#include <immintrin.h>

namespace capstan::comm::internal {
namespace {

#define CAPSTAN_AVX2 __attribute__((target("avx2,f16c"), always_inline)) inline

CAPSTAN_AVX2 __m256 load(const float* p) { return _mm256_loadu_ps(p); }
CAPSTAN_AVX2 __m256i load(const int32_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
CAPSTAN_AVX2 __m256i load(const int64_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
CAPSTAN_AVX2 __m256 load(const Half* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
CAPSTAN_AVX2 __m256 load(const Brain* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}

CAPSTAN_AVX2 __m256 add(const float*, __m256 a, __m256 b) { return _mm256_add_ps(a, b); }
CAPSTAN_AVX2 __m256 add(const Half*, __m256 a, __m256 b) { return _mm256_add_ps(a, b); }
CAPSTAN_AVX2 __m256 add(const Brain*, __m256 a, __m256 b) { return _mm256_add_ps(a, b); }
CAPSTAN_AVX2 __m256i add(const int32_t*, __m256i a, __m256i b) { return _mm256_add_epi32(a, b); }
CAPSTAN_AVX2 __m256i add(const int64_t*, __m256i a, __m256i b) { return _mm256_add_epi64(a, b); }

CAPSTAN_AVX2 void store(float* p, __m256 x) { _mm256_storeu_ps(p, x); }
CAPSTAN_AVX2 void store(int32_t* p, __m256i x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x);
}
CAPSTAN_AVX2 void store(int64_t* p, __m256i x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x);
}
CAPSTAN_AVX2 void store(Half* p, __m256 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
CAPSTAN_AVX2 void store(Brain* p, __m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, is_nan), 16);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0b1000);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}

struct Avx2 {
  // Four vectors at a time hide the latency of the additions; every vector is loaded before it is
  // stored, which is all that `out` being one of the parts needs.
  template <class In, class Out>
  __attribute__((target("avx2,f16c"))) static void run(const void* const* parts, int n, void* out,
                                                       int64_t count) {
    constexpr int64_t kWidth = sizeof(In) == 8 ? 4 : 8;
    const In* tag = nullptr;
    const auto* first = static_cast<const In*>(parts[0]);
    auto* target = static_cast<Out*>(out);
    int64_t i = 0;
    for (; i + 4 * kWidth <= count; i += 4 * kWidth) {
      auto a = load(first + i);
      auto b = load(first + i + kWidth);
      auto c = load(first + i + 2 * kWidth);
      auto d = load(first + i + 3 * kWidth);
      for (int p = 1; p < n; ++p) {
        const auto* part = static_cast<const In*>(parts[p]) + i;
        a = add(tag, a, load(part));
        b = add(tag, b, load(part + kWidth));
        c = add(tag, c, load(part + 2 * kWidth));
        d = add(tag, d, load(part + 3 * kWidth));
      }
      store(target + i, a);
      store(target + i + kWidth, b);
      store(target + i + 2 * kWidth, c);
      store(target + i + 3 * kWidth, d);
    }
    for (; i + kWidth <= count; i += kWidth) {
      auto a = load(first + i);
      for (int p = 1; p < n; ++p) a = add(tag, a, load(static_cast<const In*>(parts[p]) + i));
      store(target + i, a);
    }
    add_scalar<In, Out>(parts, n, out, i, count);
  }
};

}  // namespace

AddParts add_parts_avx2() { return dispatch<Avx2>; }

}  // namespace capstan::comm::internal

#else

namespace capstan::comm::internal {
AddParts add_parts_avx2() { return nullptr; }
}  // namespace capstan::comm::internal

#endif
