// Rounds activations to integer records (see XForm in linear_internal.h).
#include "kernels/avx2/linear_avx2.h"

namespace capstan::kernels::avx2 {

namespace {

// Blocks whose largest magnitude is below this count as zero; the reciprocal of anything smaller
// overflows.
constexpr float kTiny = 1e-30f;

// Bits of the largest magnitude of 32 floats. As integers, because then NaN is the largest of all
// and ends up in the scale: a NaN in x must reach y.
inline float abs_max(const __m256 v[4]) {
  const __m256i mask = _mm256_set1_epi32(0x7fffffff);
  __m256i m = _mm256_and_si256(_mm256_castps_si256(v[0]), mask);
  for (int i = 1; i < 4; ++i)
    m = _mm256_max_epu32(m, _mm256_and_si256(_mm256_castps_si256(v[i]), mask));
  __m128i h = _mm_max_epu32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
  h = _mm_max_epu32(h, _mm_shuffle_epi32(h, 0x4e));
  h = _mm_max_epu32(h, _mm_shuffle_epi32(h, 0xb1));
  return _mm_cvtss_f32(_mm_castsi128_ps(h));
}

// Rounds 32 floats to integers of magnitude <= `limit`; returns the scale.
inline float round_block(const float* x, float limit, __m256i q[4]) {
  const __m256 v[4] = {_mm256_loadu_ps(x), _mm256_loadu_ps(x + 8), _mm256_loadu_ps(x + 16),
                       _mm256_loadu_ps(x + 24)};
  float max = abs_max(v);
  if (max < kTiny) max = 0;
  const float inverse = max == 0 ? 0.0f : limit / max;
  const __m256 inv = _mm256_set1_ps(inverse);
  for (int i = 0; i < 4; ++i) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inv));
  return max / limit;
}

inline void put_float(std::byte* p, float f) { __builtin_memcpy(p, &f, 4); }
inline void put_pair(std::byte* p, __m128i pair, int factor) {
  const int v =
      _mm_cvtsi128_si32(_mm_mullo_epi16(pair, _mm_set1_epi16(static_cast<short>(factor))));
  __builtin_memcpy(p, &v, 4);
}

// Adds the four dwords as pairs of int16; the result is in dword 0.
inline __m128i fold_pairs(__m128i v) {
  v = _mm_add_epi16(v, _mm_shuffle_epi32(v, 0x4e));
  return _mm_add_epi16(v, _mm_shuffle_epi32(v, 0xb1));
}

inline void int8_record(const float* x, std::byte* out) {
  __m256i q[4];
  const float scale = round_block(x, 127.0f, q);
  const __m256i words =
      _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
  const __m256i bytes =
      _mm256_permutevar8x32_epi32(words, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), bytes);
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
  const __m128i first = fold_pairs(_mm256_castsi256_si128(pairs));
  const __m128i second = fold_pairs(_mm256_extracti128_si256(pairs, 1));
  const __m128i both = _mm_add_epi16(first, second);
  const int sum = _mm_cvtsi128_si32(_mm_madd_epi16(both, _mm_set1_epi16(1)));
  put_float(out + kInt8Scale, scale);
  put_float(out + kInt8Sum, scale * static_cast<float>(sum));
  put_pair(out + kInit8, both, -8);
  put_pair(out + kInit16, both, -16);
  put_pair(out + kInit32, first, -32);
  put_pair(out + kInit32 + 4, second, -32);
}

inline void int16_record(const float* x, std::byte* out) {
  __m256i q[4];
  const float scale = round_block(x, 32767.0f, q);
  // Order 0,2,1,3 of each four, as the kernel's even and odd bytes of a dword.
  const __m256i swap = _mm256_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15,  //
                                        0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
  for (int i = 0; i < 2; ++i) {
    __m256i words = _mm256_packs_epi32(q[2 * i], q[2 * i + 1]);
    words = _mm256_permute4x64_epi64(words, 0xd8);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 32 * i), _mm256_shuffle_epi8(words, swap));
  }
  put_float(out + kInt16Scale, scale);
}

}  // namespace

void quantise_int8(const float* x, int64_t stride, int64_t k, int rows, std::byte* out) {
  for (int r = 0; r < rows; ++r) {
    for (int64_t b = 0; b < k / 32; ++b)
      int8_record(x + r * stride + b * 32, out + (b * rows + r) * kInt8Record);
  }
}

void quantise_int16(const float* x, int64_t stride, int64_t k, int rows, std::byte* out) {
  for (int r = 0; r < rows; ++r) {
    for (int64_t b = 0; b < k / 32; ++b)
      int16_record(x + r * stride + b * 32, out + (b * rows + r) * kInt16Record);
  }
}

}  // namespace capstan::kernels::avx2
