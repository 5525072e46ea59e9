// Rotary position embedding: frequencies of a config, and cos/sin rows by position.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/config.h"

namespace capstan::model {

/// Radians per position for each of the dim/2 pairs: theta^(-2i/dim), scaled as the config says.
/// kLlama3 keeps wavelengths below original/high_freq_factor, divides those above
/// original/low_freq_factor by factor, and blends linearly in between (Llama 3.1 release code).
/// kYarn scales every position, whatever the length of the sequence (Peng et al. 2023,
/// section 3.2).
std::vector<double> inverse_frequencies(const RopeConfig& rope);

/// attention_factor times cos and sin of position * frequency. Angles are computed in double, as a
/// float product is off by 0.008 rad at position 163839. Not thread-safe.
class RopeTable {
 public:
  explicit RopeTable(const RopeConfig& rope);
  int pairs() const { return static_cast<int>(frequencies_.size()); }
  /// Writes rows cos[t, pairs] and sin[t, pairs]; positions are >= 0.
  void fill(std::span<const int32_t> positions, float* cos, float* sin);

 private:
  void compute(int64_t position, float* cos, float* sin) const;

  std::vector<double> frequencies_;
  double factor_;  // of cos and sin
  /// blocks_[b] holds positions [b*kBlock, (b+1)*kBlock): cos row then sin row for each; filled at
  /// first use.
  std::vector<std::vector<float>> blocks_;
};

}  // namespace capstan::model
