// Two estimates that steer admission: how many prefill tokens a step may carry, and how much output
// running requests will still write.
#pragma once

#include "scheduler/scheduler.h"

namespace capstan::scheduler {

/// Prefill tokens of a step.
///
/// Without decodes: min(chunked_prefill_size, max(max_prefill_tokens, context_length)).
/// With decodes, every stream waits for the whole step, so the bound is lower: a fixed
/// mixed_prefill_tokens, or measured as
///
///   (mixed_step_ratio - 1) * D / P,
///
/// D = seconds of a step that only decodes, P = seconds that a prefill token adds to a step, both
/// moving averages over the steps committed. Until both are known it is kFirstGuess, and never less
/// than kSmallest. All figures are rounded down to whole pages.
class StepBudget {
 public:
  explicit StepBudget(const SchedulerConfig& config);

  int prefill_tokens(bool decodes) const;
  /// A step was run. `seconds` <= 0 teaches nothing.
  void observe(int prefill_tokens, int decode_tokens, double seconds);
  bool whole_prompts() const { return whole_prompts_; }

 private:
  // A step of this size lasts below 100 ms on two laptop cores with a 135M model.
  static constexpr int kFirstGuess = 64;
  // Matrix kernels need about this many rows to be bound by arithmetic instead of memory.
  static constexpr int kSmallest = 16;
  static constexpr double kWeight = 0.2;      // of the newest sample
  static constexpr double kMaxOutlier = 4.0;  // a sample counts at most as this times the average

  int round(double tokens) const;

  int page_size_;
  int most_;
  int fixed_;
  double ratio_;
  bool whole_prompts_;
  double decode_seconds_ = 0;
  double pure_token_seconds_ = 0;   // from steps without decodes; used until mixed steps were seen
  double mixed_token_seconds_ = 0;  // from steps with decodes: small chunks cost more per token
};

/// Share of max_new_tokens that running requests are assumed to write. Starts at
/// 0.7 * conservativeness (at most 1), falls linearly to 14% of that within 600 decode steps, and
/// jumps up when a retraction shows that it was too low, to fall from there within 600 steps again;
/// back to the start when nothing runs. The figures are SGLang's defaults
/// (SGLANG_INIT_NEW_TOKEN_RATIO and its companions).
class NewTokenRatio {
 public:
  explicit NewTokenRatio(double conservativeness);

  double value() const { return value_; }
  void decode_step();
  /// `written` and `asked` sum output tokens and max_new_tokens of the `running` requests left.
  void retraction(int64_t written, int64_t asked, int running);
  void idle();

 private:
  static constexpr int kDecaySteps = 600;

  double start_;
  double least_;
  double decay_;
  double value_;
};

}  // namespace capstan::scheduler
