#include "scheduler/step_cost.h"

#include <algorithm>
#include <cmath>

namespace capstan::scheduler {
namespace {

// Steps that compute the same differ by about this share on a quiet machine.
constexpr double kNoise = 0.1;
// A step without decodes is a chunk of another size than those beside decodes, at another price per
// token (large chunks use the machine better), so it counts less.
constexpr double kNoiseOfPurePrefill = 0.5;
// Drift from one step to the next, as a share: of all coefficients together, since what changes is
// mostly the speed of the machine (clocks, neighbours), and of each by itself.
constexpr double kCommonDrift = 0.05;
constexpr double kOwnDrift = 0.01;
constexpr double kOutlier = 3;  // standard deviations
constexpr double kDoubt = 2;    // growth of the variance with every outlier
// Keys after which reading them may cost as much as the rest of a row: between 2,000 (135M
// parameters, 3 KV heads) and 30,000 (8B) in practice. Only the first guess depends on it.
constexpr double kKeysPerRow = 1000;
constexpr int kSamplesThatWiden = 2;

}  // namespace

double StepCost::seconds(const StepWork& work) const {
  const Vector f = features(work);
  double sum = 0;
  for (int i = 0; i < kSize; ++i) sum += f[i] * theta_[i];
  return sum;
}

double StepCost::uncertainty(const StepWork& work) const {
  const Vector f = features(work);
  double variance = 0;
  for (int i = 0; i < kSize; ++i) {
    for (int j = 0; j < kSize; ++j) variance += f[i] * spread_[i][j] * f[j];
  }
  return std::sqrt(std::max(variance, 0.0));
}

double StepCost::prefill_seconds(int64_t start, int64_t count) const {
  StepWork work;
  work.add_prefill(start, count);
  return theta_[3] * work.prefill_tokens + theta_[4] * work.prefill_pairs;
}

int StepCost::tokens_within(double seconds, int64_t start, int most) const {
  int within = 0;
  for (int beyond = most + 1; beyond - within > 1;) {
    const int middle = within + (beyond - within) / 2;
    (prefill_seconds(start, middle) <= seconds ? within : beyond) = middle;
  }
  return within;
}

// Before the first samples of a kind any coefficient may be as large as would explain the whole of
// such a step.
void StepCost::widen(const StepWork& work, double seconds) {
  const bool decodes = work.decode_rows > 0 && decodes_ < kSamplesThatWiden;
  const bool prefills = work.prefill_tokens > 0 && prefills_ < kSamplesThatWiden;
  decodes_ += decodes;
  prefills_ += prefills;
  const auto allow = [&](int i, double deviation) {
    const double variance = deviation * deviation;
    if (variance <= widest_[i]) return;
    widest_[i] = variance;
    spread_[i][i] = std::max(spread_[i][i], variance);
  };
  if (decodes || prefills) allow(0, seconds);
  if (decodes) {
    allow(1, seconds / work.decode_rows);
    allow(2, seconds / work.decode_rows / kKeysPerRow);
  }
  if (prefills) {
    allow(3, seconds / work.prefill_tokens);
    allow(4, seconds / work.prefill_tokens / kKeysPerRow);
  }
}

void StepCost::drift() {
  for (int i = 0; i < kSize; ++i) {
    for (int j = 0; j < kSize; ++j) {
      spread_[i][j] += kCommonDrift * kCommonDrift * theta_[i] * theta_[j];
    }
  }
  for (int i = 0; i < kSize; ++i) {
    const double step = kOwnDrift * std::max(theta_[i], 0.02 * std::sqrt(widest_[i]));
    spread_[i][i] += step * step;
    if (spread_[i][i] <= widest_[i]) continue;
    const double shrink = std::sqrt(widest_[i] / spread_[i][i]);
    for (int j = 0; j < kSize; ++j) {  // row and column i, so the diagonal twice
      spread_[i][j] *= shrink;
      spread_[j][i] *= shrink;
    }
  }
}

// Raising one coefficient to 0 moves the others along their correlation with it: had it been cut
// off alone, what the samples say of their sum would be lost, and the model would run away.
void StepCost::forbid_negative() {
  for (int round = 0; round < kSize; ++round) {
    for (int i = 0; i < kSize; ++i) {
      if (theta_[i] >= 0 || !(spread_[i][i] > 0)) continue;
      const double excess = theta_[i] / spread_[i][i];
      for (int j = 0; j < kSize; ++j) theta_[j] -= spread_[j][i] * excess;
    }
  }
  for (double& coefficient : theta_) coefficient = std::max(coefficient, 0.0);
}

void StepCost::observe(const StepWork& work, double seconds) {
  if (!(seconds > 0) || work.decode_rows + work.prefill_tokens <= 0) return;
  widen(work, seconds);
  drift();
  const Vector f = features(work);
  const double expected = this->seconds(work);
  const bool pure = work.decode_rows == 0;
  const double noise = (pure && known() ? kNoiseOfPurePrefill : kNoise) *
                       std::max(std::min(expected, seconds), 0.25 * std::max(expected, seconds));
  const double surprise = seconds - expected;
  Vector gain{};
  double variance = 0;
  const auto weigh = [&] {
    gain = {};
    variance = noise * noise;
    for (int i = 0; i < kSize; ++i) {
      for (int j = 0; j < kSize; ++j) gain[i] += spread_[i][j] * f[j];
      variance += f[i] * gain[i];
    }
  };
  weigh();
  const bool outlier = std::abs(surprise) > kOutlier * std::sqrt(variance);
  if (outlier) {
    // One is bad luck, several in a row mean that the model is wrong and should move faster.
    for (Vector& row : spread_) {
      for (double& s : row) s *= kDoubt;
    }
    weigh();
  }
  const double limit = kOutlier * std::sqrt(variance);
  const double step = std::clamp(surprise, -limit, limit);
  for (int i = 0; i < kSize; ++i) theta_[i] += gain[i] / variance * step;
  for (int i = 0; i < kSize; ++i) {
    for (int j = 0; j < kSize; ++j) spread_[i][j] -= gain[i] * gain[j] / variance;
  }
  forbid_negative();
}

}  // namespace capstan::scheduler
