// Two estimates that steer admission: how many prefill tokens a step may carry, and how much output
// running requests will still write.
#pragma once

#include "scheduler/scheduler.h"
#include "scheduler/step_cost.h"

namespace capstan::scheduler {

/// Prefill tokens of a step: filled item by item between begin() and observe().
///
/// Without decodes: min(chunked_prefill_size, max(max_prefill_tokens, context_length)).
///
/// With decodes every stream waits for the whole step, so the bound is lower: a fixed
/// mixed_prefill_tokens, or measured such that the step lasts as StepCost expects no longer than
///
///   max(mixed_step_ratio * D, J),
///
/// D = seconds of the step without prefill tokens, J = seconds of a step that only decodes once all
/// who wait and may soon run do: streams are about to be that slow in any case, so the sooner the
/// better.
///
/// Who prefills does not starve: of a mixed step at least (mixed_step_ratio - 1) / mixed_step_ratio
/// goes to prefill (of the expected time; the first in line gets a token even where that costs
/// more), and at most one step in kStepsBetweenProbes + 1 goes without, to measure D again, which
/// mixed steps alone cannot tell from the rest. With the default ratio a prompt beside streams
/// takes about twice the time that its chunks take alone.
///
/// Chunks end on page borders where that costs no more than an eighth of them.
class StepBudget {
 public:
  explicit StepBudget(const SchedulerConfig& config);

  /// A step with these decode rows. `joining`: requests that will decode soon too.
  void begin(const StepWork& decodes, int joining);
  /// How many of `remaining` prompt tokens from `start` on still fit; 0: none.
  int fits(int start, int remaining) const;
  void take(int start, int count);
  bool spent() const;
  /// A step was run. `seconds` <= 0 teaches nothing.
  void observe(const StepWork& work, double seconds);

  bool whole_prompts() const { return whole_prompts_; }
  /// What the last step with decodes had for a new prompt; before any, the first guess.
  int mixed_tokens() const { return mixed_tokens_; }

 private:
  // Before any step was timed: 60 ms of prefill on two laptop cores with a 135M model.
  static constexpr int kFirstGuess = 64;
  // Of decodes and prefill only one was seen, usually since the first streams just begin.
  static constexpr int kSecondGuess = 16;
  // A mixed step has at most twice the tokens of the one before, or this many: the model is linear,
  // and steps that are bound by memory at first are not.
  static constexpr int kCautious = 16;
  static constexpr int kStepsBetweenProbes = 15;
  static constexpr double kSure = 0.1;  // relative uncertainty of D that needs no probe
  // Smaller pieces of a prompt than this are not worth an item in a step that has others.
  static constexpr int kCrumb = 4;

  int round(double tokens) const;
  int mixed_limit(const StepWork& decodes, int joining);

  int page_size_;
  int most_;
  int fixed_;
  double ratio_;
  bool whole_prompts_;
  StepCost cost_;
  int last_mixed_ = 0;         // prefill tokens of the last mixed step
  int mixed_since_probe_ = 0;  // mixed steps since one that only decoded
  int mixed_tokens_;

  // The step being planned.
  bool timed_ = false;
  int used_ = 0;
  int tokens_left_ = 0;
  double seconds_left_ = 0;
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
