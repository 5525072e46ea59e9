// Rounds activations to integer records (see XForm in linear_internal.h).
#include "kernels/avx2/linear_avx2.h"

namespace capstan::kernels::avx2 {

namespace {

// Blocks whose largest magnitude is below this count as zero; the reciprocal of anything smaller
// overflows.
constexpr float kTiny = 1e-30f;

inline __m256 magnitude(__m256 v) {
  return _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff)));
}

// Largest lane of vectors of non-negative floats. Compared as integers, because then NaN is the
// largest of all and ends up in the scale: a NaN in x must reach y.
inline float largest(__m256 a, __m256 b) {
  const __m256i m = _mm256_max_epu32(_mm256_castps_si256(a), _mm256_castps_si256(b));
  __m128i h = _mm_max_epu32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
  h = _mm_max_epu32(h, _mm_shuffle_epi32(h, 0x4e));
  h = _mm_max_epu32(h, _mm_shuffle_epi32(h, 0xb1));
  return _mm_cvtss_f32(_mm_castsi128_ps(h));
}
inline __m256 larger(__m256 a, __m256 b) {
  return _mm256_castsi256_ps(_mm256_max_epu32(_mm256_castps_si256(a), _mm256_castps_si256(b)));
}

// Rounds 32 floats to int8 in order, scaled so that `max` becomes `limit`; returns the scale.
inline float round_block(const __m256 v[4], float max, float limit, __m256i& bytes) {
  if (max < kTiny) max = 0;
  const __m256 inverse = _mm256_set1_ps(max == 0 ? 0.0f : limit / max);
  __m256i q[4];
  for (int i = 0; i < 4; ++i) q[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
  const __m256i words =
      _mm256_packs_epi16(_mm256_packs_epi32(q[0], q[1]), _mm256_packs_epi32(q[2], q[3]));
  bytes = _mm256_permutevar8x32_epi32(words, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
  return max / limit;
}

inline void load_block(const float* x, __m256 v[4]) {
  for (int i = 0; i < 4; ++i) v[i] = _mm256_loadu_ps(x + 8 * i);
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
  __m256 v[4];
  load_block(x, v);
  const float max =
      largest(larger(magnitude(v[0]), magnitude(v[1])), larger(magnitude(v[2]), magnitude(v[3])));
  __m256i bytes;
  const float scale = round_block(v, max, 127.0f, bytes);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), bytes);
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
  const __m128i first = fold_pairs(_mm256_castsi256_si128(pairs));
  const __m128i second = fold_pairs(_mm256_extracti128_si256(pairs, 1));
  const __m128i both = _mm_add_epi16(first, second);
  const int sum = _mm_cvtsi128_si32(_mm_madd_epi16(both, _mm_set1_epi16(1)));
  put_float(out + kXScale, scale);
  put_float(out + kInt8Sum, scale * static_cast<float>(sum));
  put_pair(out + kInit8, both, -8);
  put_pair(out + kInit16, both, -16);
  put_pair(out + kInit32, first, -32);
  put_pair(out + kInit32 + 4, second, -32);
}

// The scale makes the largest sum of two neighbours' magnitudes 126; rounding adds at most one. On
// normal values that is 1.45 times the rounding error of plain int8 (the largest pair sum of 32 is
// about 3.0 standard deviations, the largest value 2.1); where one outlier rules a block, the same.
inline void paired_record(const float* x, std::byte* out) {
  __m256 v[4];
  load_block(x, v);
  const float max = largest(_mm256_hadd_ps(magnitude(v[0]), magnitude(v[1])),
                            _mm256_hadd_ps(magnitude(v[2]), magnitude(v[3])));
  __m256i bytes;
  const float scale = round_block(v, max, 126.0f, bytes);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), bytes);
  put_float(out + kXScale, scale);
  // Sums of bytes 0,1 and 2,3 of each dword, then of neighbouring dwords; times -128.
  const __m256i pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
  const __m256i sums = _mm256_add_epi16(pairs, _mm256_shuffle_epi32(pairs, 0xb1));
  const __m256i start = _mm256_slli_epi16(_mm256_sub_epi16(_mm256_setzero_si256(), sums), 7);
  const __m256i even =
      _mm256_permutevar8x32_epi32(start, _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(out + kPairedInit), _mm256_castsi256_si128(even));
}

}  // namespace

void quantise_int8(const float* x, int64_t stride, int64_t k, int rows, std::byte* out) {
  for (int r = 0; r < rows; ++r) {
    for (int64_t b = 0; b < k / 32; ++b)
      int8_record(x + r * stride + b * 32, out + (b * rows + r) * kXRecord);
  }
}

void quantise_paired(const float* x, int64_t stride, int64_t k, int rows, std::byte* out) {
  for (int r = 0; r < rows; ++r) {
    for (int64_t b = 0; b < k / 32; ++b)
      paired_record(x + r * stride + b * 32, out + (b * rows + r) * kXRecord);
  }
}

}  // namespace capstan::kernels::avx2
