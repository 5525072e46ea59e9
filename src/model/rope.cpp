#include "model/rope.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numbers>

namespace capstan::model {
namespace {

// A row of 64 pairs takes about 2 us to compute and 20 ns to copy, so rows are kept for the
// positions that most requests use: at most 4 MiB for 128-wide heads. Later ones are computed.
constexpr int64_t kCachedPositions = 8192;
constexpr int64_t kBlock = 64;

/// Interpolates the dimensions that turn less than beta_slow times over the original length, keeps
/// those that turn more than beta_fast times, and blends in between.
void apply_yarn(const RopeConfig& rope, std::vector<double>& f) {
  const double d = rope.dim, original = static_cast<double>(rope.original_max_position);
  const auto dimension_of = [&](double rotations) {
    return d * std::log(original / (rotations * 2.0 * std::numbers::pi)) /
           (2.0 * std::log(rope.theta));
  };
  double low = dimension_of(rope.beta_fast), high = dimension_of(rope.beta_slow);
  if (rope.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, d - 1.0);
  if (low == high) high += 0.001;
  for (size_t i = 0; i < f.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    f[i] = f[i] / rope.factor * ramp + f[i] * (1.0 - ramp);
  }
}

}  // namespace

std::vector<double> inverse_frequencies(const RopeConfig& rope) {
  std::vector<double> f(static_cast<size_t>(rope.dim / 2));
  for (size_t i = 0; i < f.size(); ++i) {
    f[i] = std::pow(rope.theta, -2.0 * static_cast<double>(i) / rope.dim);
  }
  switch (rope.scaling) {
    case RopeScaling::kNone:
      break;
    case RopeScaling::kFactors:
      for (size_t i = 0; i < f.size(); ++i) f[i] /= static_cast<double>(rope.factors[i]);
      break;
    case RopeScaling::kYarn:
      apply_yarn(rope, f);
      break;
    case RopeScaling::kLlama3: {
      const double original = static_cast<double>(rope.original_max_position);
      const double low = rope.low_freq_factor, high = rope.high_freq_factor;
      for (double& v : f) {
        const double wavelength = 2.0 * std::numbers::pi / v;
        if (wavelength < original / high) continue;
        if (wavelength > original / low) {
          v /= rope.factor;
          continue;
        }
        const double t = (original / wavelength - low) / (high - low);
        v = (1.0 - t) * v / rope.factor + t * v;
      }
      break;
    }
  }
  return f;
}

RopeTable::RopeTable(const RopeConfig& rope)
    : frequencies_(inverse_frequencies(rope)),
      factor_(rope.attention_factor),
      blocks_(static_cast<size_t>(kCachedPositions / kBlock)) {}

void RopeTable::compute(int64_t position, float* cos, float* sin) const {
  for (size_t i = 0; i < frequencies_.size(); ++i) {
    const double angle = static_cast<double>(position) * frequencies_[i];
    cos[i] = static_cast<float>(factor_ * std::cos(angle));
    sin[i] = static_cast<float>(factor_ * std::sin(angle));
  }
}

void RopeTable::fill(std::span<const int32_t> positions, float* cos, float* sin) {
  const size_t n = frequencies_.size();
  for (const int64_t position : positions) {
    if (position < kCachedPositions) {
      std::vector<float>& block = blocks_[static_cast<size_t>(position / kBlock)];
      if (block.empty()) {
        block.resize(static_cast<size_t>(kBlock) * 2 * n);
        const int64_t first = position / kBlock * kBlock;
        for (int64_t i = 0; i < kBlock; ++i) {
          float* row = block.data() + static_cast<size_t>(i) * 2 * n;
          compute(first + i, row, row + n);
        }
      }
      const float* row = block.data() + static_cast<size_t>(position % kBlock) * 2 * n;
      std::memcpy(cos, row, n * sizeof(float));
      std::memcpy(sin, row + n, n * sizeof(float));
    } else {
      compute(position, cos, sin);
    }
    cos += n;
    sin += n;
  }
}

}  // namespace capstan::model
