// How long steps take, learnt from those that ran. Internal to this folder.
#pragma once

#include <array>
#include <cstdint>

namespace capstan::scheduler {

/// What the duration of a step depends on.
struct StepWork {
  double decode_rows = 0;
  double decode_context = 0;  // keys that the decode rows read
  double prefill_tokens = 0;
  double prefill_pairs = 0;  // pairs of a prefill row and a key it reads

  /// Tokens [start, start + count) of a request that decodes: the last one and drafts.
  void add_decode(int64_t start, int64_t count) {
    const auto n = static_cast<double>(count);
    decode_rows += n;
    decode_context += n * static_cast<double>(start) + n * (n + 1) / 2;
  }
  /// Tokens [start, start + count) of a prompt.
  void add_prefill(int64_t start, int64_t count) {
    const auto s = static_cast<double>(start);
    const auto n = static_cast<double>(count);
    prefill_tokens += n;
    prefill_pairs += n * s + n * (n + 1) / 2;
  }
};

/// The linear model
///
///   seconds = step + row * decode_rows + key * decode_context
///             + token * prefill_tokens + pair * prefill_pairs
///
/// tracked by a Kalman filter whose coefficients drift (random walk) and are never negative. What
/// recent steps say nothing about keeps its value, however long ago it was learnt, but becomes
/// uncertain and is learnt anew within a few steps. A surprising sample counts as three standard
/// deviations at most.
class StepCost {
 public:
  /// Both decode rows and prefill tokens were seen.
  bool known() const { return decodes_ > 0 && prefills_ > 0; }
  bool anything_known() const { return decodes_ + prefills_ > 0; }
  double seconds(const StepWork& work) const;
  /// Standard deviation of seconds(work), without the noise of a single step.
  double uncertainty(const StepWork& work) const;
  /// What `count` prompt tokens from `start` on add to a step.
  double prefill_seconds(int64_t start, int64_t count) const;
  /// Most prompt tokens from `start` on, at most `most`, that add no more than `seconds`.
  int tokens_within(double seconds, int64_t start, int most) const;
  /// A step took so long; seconds <= 0 teaches nothing.
  void observe(const StepWork& work, double seconds);

 private:
  static constexpr int kSize = 5;
  using Vector = std::array<double, kSize>;

  static Vector features(const StepWork& work) {
    return {1, work.decode_rows, work.decode_context, work.prefill_tokens, work.prefill_pairs};
  }
  void widen(const StepWork& work, double seconds);
  void drift();
  void forbid_negative();

  Vector theta_{};                      // the coefficients
  std::array<Vector, kSize> spread_{};  // their covariance
  Vector widest_{};                     // bounds of its diagonal
  int decodes_ = 0, prefills_ = 0;      // samples with either, counted to a few
};

}  // namespace capstan::scheduler
