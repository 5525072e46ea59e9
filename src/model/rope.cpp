#include "model/rope.h"

#include <cmath>
#include <cstring>
#include <numbers>

namespace capstan::model {
namespace {

// A row of 64 pairs takes about 2 us to compute and 20 ns to copy, so rows are kept for the
// positions that most requests use: at most 4 MiB for 128-wide heads. Later ones are computed.
constexpr int64_t kCachedPositions = 8192;
constexpr int64_t kBlock = 64;

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
      blocks_(static_cast<size_t>(kCachedPositions / kBlock)) {}

void RopeTable::compute(int64_t position, float* cos, float* sin) const {
  for (size_t i = 0; i < frequencies_.size(); ++i) {
    const double angle = static_cast<double>(position) * frequencies_[i];
    cos[i] = static_cast<float>(std::cos(angle));
    sin[i] = static_cast<float>(std::sin(angle));
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
