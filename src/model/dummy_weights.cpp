#include "model/dummy_weights.h"

#include <cmath>
#include <vector>

#include "quant/codecs.h"

namespace capstan::model {
namespace {

constexpr uint64_t kStep = 0x9e3779b97f4a7c15;

/// splitmix64: a full-period mixer of 64 bits (Steele, Lea, Flood 2014).
uint64_t mix(uint64_t x) {
  x += kStep;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
  x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
  return x ^ (x >> 31);
}

uint64_t hash_name(std::string_view name) {  // FNV-1a: stable between builds, unlike std::hash
  uint64_t h = 0xcbf29ce484222325;
  for (const char c : name) h = (h ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return h;
}

/// Rows [first, last) and columns [begin, end) of a weight, a vector being one row.
struct Window {
  int64_t first = 0, last = 1, begin = 0, end = 0;
};

Window window_of(const WeightSpec& spec) {
  Window w;
  w.end = spec.shape.back();
  for (size_t i = 0; i + 1 < spec.shape.size(); ++i) w.last *= spec.shape[i];
  const bool vector = spec.shape.size() == 1;
  if (spec.slice.axis == WeightSlice::Axis::kColumns ||
      (vector && spec.slice.axis == WeightSlice::Axis::kRows)) {
    w.begin = spec.slice.begin;
    w.end = spec.slice.end;
  } else if (spec.slice.axis == WeightSlice::Axis::kRows) {
    const int64_t stack =
        w.last / spec.shape.front();  // rows of one element of the first dimension
    w.first = spec.slice.begin * stack;
    w.last = spec.slice.end * stack;
  }
  return w;
}

/// Root of the mean square of the 127 magnitudes of E4M3: 3 bits of mantissa, bias 7, no infinity.
double e4m3_rms() {
  double sum = 0;
  for (int code = 0; code < 127; ++code) {
    const int exponent = code >> 3, mantissa = code & 7;
    const double v =
        exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
    sum += v * v;
  }
  return std::sqrt(sum / 127);
}

}  // namespace

DType dummy_dtype(const ModelConfig& config, const WeightSpec& spec) {
  if (spec.shape.size() == 1) return DType::kF32;
  switch (config.weight_dtype) {
    case DType::kF32:
    case DType::kF16:
      return config.weight_dtype;
    case DType::kF8E4M3:
      return spec.quantised ? DType::kF8E4M3 : DType::kBF16;
    case DType::kQ8_0:
    case DType::kQ4_0:
    case DType::kQ4_1:
      if (spec.shape.back() % dtype_info(config.weight_dtype).block_elems == 0) {
        return config.weight_dtype;
      }
      return DType::kBF16;
    default:
      return DType::kBF16;
  }
}

Status fill_dummy(const WeightSpec& spec, DType dtype, uint64_t seed, std::byte* out) {
  const int64_t cols = spec.shape.back();
  const Window part = window_of(spec);
  const bool norm = spec.name.ends_with("norm.weight");
  const bool bias = spec.name.ends_with("bias");
  // A uniform variable on [-a, a] has variance a^2 / 3.
  const double amplitude = norm ? 0.0 : (bias ? 0.1 : std::sqrt(3.0 / static_cast<double>(cols)));
  const auto centre = norm ? 1.0F : 0.0F;
  const auto step = static_cast<float>(amplitude / static_cast<double>(1 << 23));
  const uint64_t key = mix(seed ^ hash_name(spec.name));
  const size_t row_bytes = dtype_bytes(dtype, part.end - part.begin);
  std::vector<float> row(static_cast<size_t>(part.end - part.begin));
  for (int64_t r = part.first; r < part.last; ++r) {
    uint64_t state =
        mix(key + static_cast<uint64_t>(r)) + static_cast<uint64_t>(part.begin) * kStep;
    for (float& v : row) {
      state += kStep;
      // 24 random bits as a signed integer in [-2^23, 2^23).
      const auto bits = static_cast<int32_t>(mix(state) >> 40) - (1 << 23);
      v = centre + step * static_cast<float>(bits);
    }
    CAPSTAN_RETURN_IF_ERROR(quant::quantize_row(
        dtype, row.data(), out + static_cast<size_t>(r - part.first) * row_bytes,
        part.end - part.begin));
  }
  return {};
}

void fill_dummy_fp8(const WeightSpec& spec, uint64_t seed, std::byte* out, float* scales) {
  static const double rms = e4m3_rms();
  const Window part = window_of(spec);
  const uint64_t key = mix(seed ^ hash_name(spec.name));
  for (int64_t r = part.first; r < part.last; ++r) {
    uint64_t state =
        mix(key + static_cast<uint64_t>(r)) + static_cast<uint64_t>(part.begin) * kStep;
    std::byte* row = out + (r - part.first) * (part.end - part.begin);
    for (int64_t i = 0; i < part.end - part.begin; ++i) {
      state += kStep;
      const uint64_t bits = mix(state) >> 32;
      const auto magnitude = static_cast<uint8_t>((bits >> 1) * 127 >> 31);  // 0 to 126, never NaN
      row[i] = static_cast<std::byte>(magnitude | (bits & 1) << 7);
    }
  }
  const auto columns = static_cast<double>(spec.shape.back());
  const auto scale = static_cast<float>(1.0 / (rms * std::sqrt(columns)));
  const WeightSpec scale_part = scale_spec(spec);
  int64_t count = 1;
  for (const int64_t d : slice_shape(scale_part.slice, scale_part.shape)) count *= d;
  for (int64_t i = 0; i < count; ++i) scales[i] = scale;
}

}  // namespace capstan::model
