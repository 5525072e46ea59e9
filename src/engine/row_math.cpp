#include "engine/row_math.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>

namespace capstan::engine {
namespace {

constexpr int kLanes = 16;
constexpr float kInf = std::numeric_limits<float>::infinity();
// Groups whose maxima bound the k-th largest element. With 32 elements a vocabulary of 150 k gives
// 4,700 maxima; selecting among them takes some 20 us.
constexpr int64_t kGroup = 32;

/// exp for x <= 0, written out so that it vectorises: x = n ln2 + r with |r| <= ln2/2, Taylor to
/// r^7 (truncation 5e-9, below float's 6e-8). Below -87.3, where floats turn subnormal, it is 0.
inline float exp_non_positive(float x) {
  constexpr float kLog2e = 1.44269504088896341f;
  constexpr float kLn2Hi = 0.693359375f;  // few bits, so that n * kLn2Hi is exact
  constexpr float kLn2Lo = -2.12194440054690583e-4f;
  constexpr float kSmallest = -87.33654f;  // ln of the smallest normal float
  const float clamped = x > kSmallest ? x : kSmallest;
  const float shifted = clamped * kLog2e - 0.5f;  // <= 0, so truncation rounds to nearest
  const int32_t n = static_cast<int32_t>(shifted);
  const float fn = static_cast<float>(n);
  const float r = (clamped - fn * kLn2Hi) - fn * kLn2Lo;
  float y = 1.0f / 5040;
  y = y * r + 1.0f / 720;
  y = y * r + 1.0f / 120;
  y = y * r + 1.0f / 24;
  y = y * r + 1.0f / 6;
  y = y * r + 0.5f;
  y = y * r + 1.0f;
  y = y * r + 1.0f;
  const float scale = std::bit_cast<float>((n + 127) << 23);
  return x > kSmallest ? y * scale : 0.0f;
}

/// One block of at most kRowBlock elements; `store` decides whether p is written.
template <bool store>
double exp_block(const float* x, int64_t n, float max, float inverse_temperature, float* p) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) {
      const float e = exp_non_positive((x[i + l] - max) * inverse_temperature);
      if constexpr (store) p[i + l] = e;
      lanes[l] += e;
    }
  }
  double sum = 0;
  for (; i < n; ++i) {
    const float e = exp_non_positive((x[i] - max) * inverse_temperature);
    if constexpr (store) p[i] = e;
    sum += e;
  }
  for (float lane : lanes) sum += lane;
  return sum;
}

/// Maximum of at most kRowBlock elements; *dirty is set when one is NaN or +infinity.
float block_max(const float* x, int64_t n, int32_t* dirty) {
  float lanes[kLanes];
  int32_t bad[kLanes] = {};
  for (float& lane : lanes) lane = -kInf;
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) {
      const float v = x[i + l];
      lanes[l] = v > lanes[l] ? v : lanes[l];
      bad[l] |= v < kInf ? 0 : 1;  // false for NaN as well
    }
  }
  float best = -kInf;
  for (; i < n; ++i) {
    best = x[i] > best ? x[i] : best;
    *dirty |= x[i] < kInf ? 0 : 1;
  }
  for (int l = 0; l < kLanes; ++l) {
    best = lanes[l] > best ? lanes[l] : best;
    *dirty |= bad[l];
  }
  return best;
}

}  // namespace

RowMax row_max(const float* x, int64_t n) {
  float best = -kInf;
  int64_t best_block = 0;
  int32_t dirty = 0;
  for (int64_t b = 0; b < n; b += kRowBlock) {
    const float m = block_max(x + b, std::min(kRowBlock, n - b), &dirty);
    if (m > best) {  // strictly: the first block with the maximum holds the lowest index
      best = m;
      best_block = b;
    }
  }
  const int64_t end = std::min(best_block + kRowBlock, n);
  int64_t index = best_block;
  while (index + 1 < end && x[index] != best) ++index;
  return {best, static_cast<int32_t>(index), dirty == 0};
}

int64_t replace_non_finite(float* x, int64_t n) {
  int64_t replaced = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (std::isnan(x[i])) {
      x[i] = -kInf;
      ++replaced;
    } else if (x[i] == kInf) {
      x[i] = std::numeric_limits<float>::max();
      ++replaced;
    }
  }
  return replaced;
}

double row_exp(const float* x, int64_t n, float max, float inverse_temperature, float* p,
               std::vector<double>& block_sums) {
  block_sums.clear();
  double total = 0;
  for (int64_t b = 0; b < n; b += kRowBlock) {
    block_sums.push_back(
        exp_block<true>(x + b, std::min(kRowBlock, n - b), max, inverse_temperature, p + b));
    total += block_sums.back();
  }
  return total;
}

double row_exp_sum(const float* x, int64_t n, float max, float inverse_temperature) {
  double total = 0;
  for (int64_t b = 0; b < n; b += kRowBlock) {
    total += exp_block<false>(x + b, std::min(kRowBlock, n - b), max, inverse_temperature, nullptr);
  }
  return total;
}

float lower_bound_of_top(const float* x, int64_t n, int64_t k, std::vector<float>& scratch) {
  const int64_t groups = n / kGroup;
  if (k > groups) return -kInf;
  scratch.resize(static_cast<size_t>(groups));
  for (int64_t g = 0; g < groups; ++g) {
    const float* group = x + g * kGroup;
    float lanes[kLanes];
    for (int l = 0; l < kLanes; ++l) lanes[l] = group[l];
    for (int64_t i = kLanes; i < kGroup; i += kLanes) {
      for (int l = 0; l < kLanes; ++l) lanes[l] = group[i + l] > lanes[l] ? group[i + l] : lanes[l];
    }
    for (int width = kLanes / 2; width > 0; width /= 2) {
      for (int l = 0; l < width; ++l) {
        lanes[l] = lanes[l + width] > lanes[l] ? lanes[l + width] : lanes[l];
      }
    }
    scratch[static_cast<size_t>(g)] = lanes[0];
  }
  // k groups have a maximum >= the k-th largest maximum, hence k elements do.
  std::nth_element(scratch.begin(), scratch.begin() + (k - 1), scratch.end(), std::greater<>());
  return scratch[static_cast<size_t>(k - 1)];
}

void indices_at_least(const float* x, int64_t n, float t, std::vector<int32_t>& out) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    int32_t any = 0;
    for (int l = 0; l < kLanes; ++l) any |= x[i + l] >= t ? 1 : 0;
    if (any == 0) continue;  // nearly always, when few elements are wanted
    for (int l = 0; l < kLanes; ++l) {
      if (x[i + l] >= t) out.push_back(static_cast<int32_t>(i + l));
    }
  }
  for (; i < n; ++i) {
    if (x[i] >= t) out.push_back(static_cast<int32_t>(i));
  }
}

}  // namespace capstan::engine
