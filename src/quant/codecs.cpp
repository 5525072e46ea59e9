#include "quant/codecs.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "platform/cpu.h"

// The decoders are plain loops of fixed length, compiled twice: for baseline x86-64 and, inlined
// into a function with the avx2 target, for the machines that matter. The loops vectorise (-O3, see
// room.cmake) without changing a bit, since no operation is fused or reassociated.
#define CAPSTAN_INLINE inline __attribute__((always_inline))

namespace capstan::quant {
namespace {

template <class T>
CAPSTAN_INLINE T load(const std::byte* p) {
  T value;
  std::memcpy(&value, p, sizeof(T));
  return value;
}

/// Branch-free apart from selects. No subnormal float appears, so DAZ cannot change the result.
CAPSTAN_INLINE float half_value(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
  const uint32_t magnitude = static_cast<uint32_t>(h & 0x7fff) << 13;
  const uint32_t normal = magnitude + (112u << 23);  // exponent bias 15 -> 127
  // Subnormal m * 2^-24: put m below an implicit one of weight 2^-14 and take the one away.
  const float small = std::bit_cast<float>(magnitude + (113u << 23)) - 0x1p-14f;
  const uint32_t nan_quiet = (h & 0x3ff) != 0 ? 0x400000u : 0u;
  const uint32_t special = magnitude | 0x7f800000u | nan_quiet;
  uint32_t bits = normal;
  bits = magnitude < (1u << 23) ? std::bit_cast<uint32_t>(small) : bits;
  bits = magnitude >= (31u << 23) ? special : bits;
  return std::bit_cast<float>(bits | sign);
}

CAPSTAN_INLINE float load_half(const std::byte* p) { return half_value(load<uint16_t>(p)); }

CAPSTAN_INLINE float e4m3_value(uint8_t b) {
  const uint32_t magnitude = static_cast<uint32_t>(b & 0x7f) << 20;
  const float small = std::bit_cast<float>(magnitude + (121u << 23)) - 0x1p-6f;
  uint32_t bits = magnitude + (120u << 23);  // exponent bias 7 -> 127
  bits = magnitude < (1u << 23) ? std::bit_cast<uint32_t>(small) : bits;
  bits = (b & 0x7f) == 0x7f ? 0x7fc00000u : bits;
  return std::bit_cast<float>(bits | static_cast<uint32_t>(b & 0x80) << 24);
}

CAPSTAN_INLINE void decode_q4_0(const std::byte* block, float* out) {
  const float d = load_half(block);
  const auto* qs = reinterpret_cast<const uint8_t*>(block + 2);
  for (int j = 0; j < 16; ++j) out[j] = d * static_cast<float>((qs[j] & 15) - 8);
  for (int j = 0; j < 16; ++j) out[j + 16] = d * static_cast<float>((qs[j] >> 4) - 8);
}

CAPSTAN_INLINE void decode_q4_1(const std::byte* block, float* out) {
  const float d = load_half(block), m = load_half(block + 2);
  const auto* qs = reinterpret_cast<const uint8_t*>(block + 4);
  for (int j = 0; j < 16; ++j) out[j] = d * static_cast<float>(qs[j] & 15) + m;
  for (int j = 0; j < 16; ++j) out[j + 16] = d * static_cast<float>(qs[j] >> 4) + m;
}

/// Five-bit values of a Q5_0 or Q5_1 block: low nibbles, high nibbles, fifth bits in qh.
CAPSTAN_INLINE void unpack_five_bits(const std::byte* high, const uint8_t* qs, int32_t* q) {
  const auto qh = load<uint32_t>(high);
  for (int j = 0; j < 16; ++j) {
    q[j] = (qs[j] & 15) | static_cast<int32_t>((qh >> j & 1) << 4);
  }
  for (int j = 0; j < 16; ++j) {
    q[j + 16] = (qs[j] >> 4) | static_cast<int32_t>((qh >> (j + 16) & 1) << 4);
  }
}

CAPSTAN_INLINE void decode_q5_0(const std::byte* block, float* out) {
  const float d = load_half(block);
  int32_t q[32];
  unpack_five_bits(block + 2, reinterpret_cast<const uint8_t*>(block + 6), q);
  for (int j = 0; j < 32; ++j) out[j] = d * static_cast<float>(q[j] - 16);
}

CAPSTAN_INLINE void decode_q5_1(const std::byte* block, float* out) {
  const float d = load_half(block), m = load_half(block + 2);
  int32_t q[32];
  unpack_five_bits(block + 4, reinterpret_cast<const uint8_t*>(block + 8), q);
  for (int j = 0; j < 32; ++j) out[j] = d * static_cast<float>(q[j]) + m;
}

CAPSTAN_INLINE void decode_q8_0(const std::byte* block, float* out) {
  const float d = load_half(block);
  const auto* qs = reinterpret_cast<const int8_t*>(block + 2);
  for (int j = 0; j < 32; ++j) out[j] = d * static_cast<float>(qs[j]);
}

/// Eight 6-bit scales and mins of a Q4_K or Q5_K block, packed in 12 bytes.
CAPSTAN_INLINE void unpack_scales(const uint8_t* s, uint8_t* scale, uint8_t* min) {
  for (int j = 0; j < 4; ++j) {
    scale[j] = s[j] & 63;
    min[j] = s[j + 4] & 63;
    scale[j + 4] = static_cast<uint8_t>((s[j + 8] & 15) | (s[j] >> 6) << 4);
    min[j + 4] = static_cast<uint8_t>((s[j + 8] >> 4) | (s[j + 4] >> 6) << 4);
  }
}

CAPSTAN_INLINE void decode_q4_k(const std::byte* block, float* out) {
  const float d = load_half(block), dmin = load_half(block + 2);
  uint8_t scale[8], min[8];
  unpack_scales(reinterpret_cast<const uint8_t*>(block + 4), scale, min);
  const auto* qs = reinterpret_cast<const uint8_t*>(block + 16);
  for (int j = 0; j < 8; ++j) {
    const float step = d * static_cast<float>(scale[j]);
    const float base = dmin * static_cast<float>(min[j]);
    const uint8_t* q = qs + 32 * (j / 2);
    const int shift = 4 * (j % 2);
    for (int l = 0; l < 32; ++l) {
      out[32 * j + l] = step * static_cast<float>(q[l] >> shift & 15) - base;
    }
  }
}

CAPSTAN_INLINE void decode_q5_k(const std::byte* block, float* out) {
  const float d = load_half(block), dmin = load_half(block + 2);
  uint8_t scale[8], min[8];
  unpack_scales(reinterpret_cast<const uint8_t*>(block + 4), scale, min);
  const auto* qh = reinterpret_cast<const uint8_t*>(block + 16);
  const auto* qs = reinterpret_cast<const uint8_t*>(block + 48);
  for (int j = 0; j < 8; ++j) {
    const float step = d * static_cast<float>(scale[j]);
    const float base = dmin * static_cast<float>(min[j]);
    const uint8_t* q = qs + 32 * (j / 2);
    const int shift = 4 * (j % 2);
    for (int l = 0; l < 32; ++l) {
      const int value = (q[l] >> shift & 15) | (qh[l] >> j & 1) << 4;
      out[32 * j + l] = step * static_cast<float>(value) - base;
    }
  }
}

CAPSTAN_INLINE void decode_q6_k(const std::byte* block, float* out) {
  const auto* low = reinterpret_cast<const uint8_t*>(block);
  const auto* high = reinterpret_cast<const uint8_t*>(block + 128);
  const auto* scales = reinterpret_cast<const int8_t*>(block + 192);
  const float d = load_half(block + 208);
  for (int group = 0; group < 8; ++group) {  // 32 elements: half group/4, quarter group%4
    const int half = group / 4, quarter = group % 4;
    const uint8_t* ql = low + 64 * half + 32 * (quarter % 2);
    const uint8_t* qh = high + 32 * half;
    const int low_shift = 4 * (quarter / 2), high_shift = 2 * quarter;
    for (int part = 0; part < 2; ++part) {
      const float step = d * static_cast<float>(scales[2 * group + part]);
      for (int l = 16 * part; l < 16 * part + 16; ++l) {
        const int value = (ql[l] >> low_shift & 15) | (qh[l] >> high_shift & 3) << 4;
        out[32 * group + l] = step * static_cast<float>(value - 32);
      }
    }
  }
}

template <class T>
CAPSTAN_INLINE void convert(const std::byte* src, float* dst, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    dst[i] = static_cast<float>(load<T>(src + i * static_cast<int64_t>(sizeof(T))));
  }
}

CAPSTAN_INLINE void decode_row(DType dtype, const std::byte* src, float* dst, int64_t n) {
  const DTypeInfo info = dtype_info(dtype);
  const auto blocks = [&](auto decode) __attribute__((always_inline)) {
    for (int64_t b = 0; b < n / info.block_elems; ++b) {
      decode(src + b * info.block_bytes, dst + b * info.block_elems);
    }
  };
  // A macro and not a function pointer: a call through a pointer would leave the avx2 clone.
#define CAPSTAN_BLOCKS(f) \
  blocks([](const std::byte* s, float* d) __attribute__((always_inline)) { f(s, d); })
  switch (dtype) {
    case DType::kF32:
      std::memcpy(dst, src, static_cast<size_t>(n) * sizeof(float));
      return;
    case DType::kF16:
      for (int64_t i = 0; i < n; ++i) dst[i] = load_half(src + 2 * i);
      return;
    case DType::kBF16:
      for (int64_t i = 0; i < n; ++i) {
        dst[i] = std::bit_cast<float>(static_cast<uint32_t>(load<uint16_t>(src + 2 * i)) << 16);
      }
      return;
    case DType::kF8E4M3:
      for (int64_t i = 0; i < n; ++i) dst[i] = e4m3_value(static_cast<uint8_t>(src[i]));
      return;
    case DType::kI64:
      return convert<int64_t>(src, dst, n);
    case DType::kI32:
      return convert<int32_t>(src, dst, n);
    case DType::kU8:
      return convert<uint8_t>(src, dst, n);
    case DType::kBool:
      for (int64_t i = 0; i < n; ++i) dst[i] = src[i] != std::byte{0} ? 1.0f : 0.0f;
      return;
    case DType::kQ4_0:
      return CAPSTAN_BLOCKS(decode_q4_0);
    case DType::kQ4_1:
      return CAPSTAN_BLOCKS(decode_q4_1);
    case DType::kQ5_0:
      return CAPSTAN_BLOCKS(decode_q5_0);
    case DType::kQ5_1:
      return CAPSTAN_BLOCKS(decode_q5_1);
    case DType::kQ8_0:
      return CAPSTAN_BLOCKS(decode_q8_0);
    case DType::kQ4_K:
      return CAPSTAN_BLOCKS(decode_q4_k);
    case DType::kQ5_K:
      return CAPSTAN_BLOCKS(decode_q5_k);
    case DType::kQ6_K:
      return CAPSTAN_BLOCKS(decode_q6_k);
  }
#undef CAPSTAN_BLOCKS
}

void decode_row_baseline(DType dtype, const std::byte* src, float* dst, int64_t n) {
  decode_row(dtype, src, dst, n);
}

#if defined(__x86_64__)
__attribute__((target("avx2,f16c"))) void decode_row_avx2(DType dtype, const std::byte* src,
                                                          float* dst, int64_t n) {
  if (dtype == DType::kF16) {
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
      const __m128i h = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src + 2 * i));
      _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(h));
    }
    for (; i < n; ++i) dst[i] = load_half(src + 2 * i);
    return;
  }
  decode_row(dtype, src, dst, n);
}
#endif

/// 0 .. limit, truncating; NaN gives 0.
inline uint8_t clamp_to(float value, int limit) {
  if (!(value > 0.0f)) return 0;
  return static_cast<uint8_t>(value >= static_cast<float>(limit) ? limit : static_cast<int>(value));
}

inline void store_half(std::byte* p, float value) {
  const uint16_t h = float_to_half(value);
  std::memcpy(p, &h, sizeof(h));
}

void encode_q8_0(const float* x, std::byte* block) {
  float amax = 0.0f;
  for (int j = 0; j < 32; ++j) amax = std::max(amax, std::fabs(x[j]));
  const float d = amax / 127.0f;
  const float inverse = d == 0.0f ? 0.0f : 1.0f / d;
  store_half(block, d);
  for (int j = 0; j < 32; ++j) {
    const float q = std::round(x[j] * inverse);  // halves away from zero
    block[2 + j] = static_cast<std::byte>(static_cast<int8_t>(q >= -127.0f && q <= 127.0f ? q : 0));
  }
}

void encode_q4_0(const float* x, std::byte* block) {
  float largest = 0.0f;  // by magnitude, with its sign, so that it maps to -8 exactly
  for (int j = 0; j < 32; ++j) {
    if (std::fabs(x[j]) > std::fabs(largest)) largest = x[j];
  }
  const float d = largest / -8.0f;
  const float inverse = d == 0.0f ? 0.0f : 1.0f / d;
  store_half(block, d);
  // In double: the reference's result depends on whether its compiler fused this multiply-add; the
  // gguf package settles it this way.
  const auto quant = [&](float v) {
    return clamp_to(static_cast<float>(static_cast<double>(v) * static_cast<double>(inverse) + 8.5),
                    15);
  };
  for (int j = 0; j < 16; ++j) {
    block[2 + j] = static_cast<std::byte>(quant(x[j]) | quant(x[j + 16]) << 4);
  }
}

void encode_q4_1(const float* x, std::byte* block) {
  const auto [low, high] = std::minmax_element(x, x + 32);
  const float min = *low;
  const float d = (*high - min) / 15.0f;
  const float inverse = d == 0.0f ? 0.0f : 1.0f / d;
  store_half(block, d);
  store_half(block + 2, min);
  const auto quant = [&](float v) { return clamp_to((v - min) * inverse + 0.5f, 15); };
  for (int j = 0; j < 16; ++j) {
    block[4 + j] = static_cast<std::byte>(quant(x[j]) | quant(x[j + 16]) << 4);
  }
}

}  // namespace

float half_to_float(uint16_t h) { return half_value(h); }

uint16_t float_to_half(float f) {
  const uint32_t bits = std::bit_cast<uint32_t>(f);
  const auto sign = static_cast<uint16_t>(bits >> 16 & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) {  // NaN: quiet, top payload bits kept
    return static_cast<uint16_t>(sign | 0x7e00 | (magnitude >> 13 & 0x3ff));
  }
  if (magnitude >= 0x47800000) return sign | 0x7c00;  // 2^16 and above
  if (magnitude < 0x38800000) {                       // below 2^-14: subnormal half
    if (magnitude < 0x33000000) return sign;          // below 2^-25
    const uint32_t exponent = magnitude >> 23;
    const uint32_t mantissa = (magnitude & 0x7fffff) | 0x800000;
    const uint32_t shift = 126 - exponent;  // 14..24: mantissa * 2^(exponent-150) in units of 2^-24
    const uint32_t kept = mantissa >> shift;
    const uint32_t rest = mantissa & ((1u << shift) - 1), half = 1u << (shift - 1);
    return static_cast<uint16_t>(sign | (kept + (rest > half || (rest == half && (kept & 1)))));
  }
  // Round at bit 13; a carry into the exponent is right, up to infinity.
  const uint32_t rounded = magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1);
  return static_cast<uint16_t>(sign | rounded >> 13);
}

float bfloat16_to_float(uint16_t b) { return std::bit_cast<float>(static_cast<uint32_t>(b) << 16); }

uint16_t float_to_bfloat16(float f) {
  const uint32_t bits = std::bit_cast<uint32_t>(f);
  if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

uint8_t float_to_e4m3(float f) {
  const uint32_t bits = std::bit_cast<uint32_t>(f);
  const uint32_t magnitude = std::min(bits & 0x7fffffff, std::bit_cast<uint32_t>(448.0f));
  // Below 2^-6 the unit is 2^-9: adding 2^14, whose unit that is, rounds there.
  const uint32_t small = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0x1p14f) & 0xffu;
  const uint32_t normal = (magnitude + 0x7ffff + (magnitude >> 20 & 1)) >> 20;
  uint32_t code = magnitude < std::bit_cast<uint32_t>(0x1p-6f) ? small : normal - (120u << 3);
  code = (bits & 0x7fffffff) > 0x7f800000u ? 0x7fu : code;
  return static_cast<uint8_t>(code | (bits >> 24 & 0x80));
}

void dequantize_row(DType dtype, const std::byte* src, float* dst, int64_t n) {
#if defined(__x86_64__)
  static const bool avx2 = platform::isa_support().avx2;
  if (avx2) return decode_row_avx2(dtype, src, dst, n);
#endif
  decode_row_baseline(dtype, src, dst, n);
}

Status quantize_row(DType dtype, const float* src, std::byte* dst, int64_t n) {
  const DTypeInfo info = dtype_info(dtype);
  if (n < 0 || n % info.block_elems != 0) {
    return invalid_argument("cannot encode " + std::to_string(n) + " values as " +
                            std::string(info.name) + ": its blocks hold " +
                            std::to_string(info.block_elems));
  }
  const auto blocks = [&](void (*encode)(const float*, std::byte*)) {
    for (int64_t b = 0; b < n / info.block_elems; ++b) {
      encode(src + b * info.block_elems, dst + b * info.block_bytes);
    }
    return Status();
  };
  switch (dtype) {
    case DType::kF32:
      std::memcpy(dst, src, static_cast<size_t>(n) * sizeof(float));
      return {};
    case DType::kF8E4M3:
      for (int64_t i = 0; i < n; ++i) dst[i] = static_cast<std::byte>(float_to_e4m3(src[i]));
      return {};
    case DType::kF16:
      for (int64_t i = 0; i < n; ++i) store_half(dst + 2 * i, src[i]);
      return {};
    case DType::kBF16:
      for (int64_t i = 0; i < n; ++i) {
        const uint16_t b = float_to_bfloat16(src[i]);
        std::memcpy(dst + 2 * i, &b, sizeof(b));
      }
      return {};
    case DType::kQ8_0:
      return blocks(encode_q8_0);
    case DType::kQ4_0:
      return blocks(encode_q4_0);
    case DType::kQ4_1:
      return blocks(encode_q4_1);
    default:
      return invalid_argument("no encoder for " + std::string(info.name) +
                              "; F32, F16, BF16, F8_E4M3, Q8_0, Q4_0 and Q4_1 can be written");
  }
}

}  // namespace capstan::quant
