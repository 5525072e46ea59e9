#include "scheduler/step_budget.h"

#include <algorithm>
#include <limits>

namespace capstan::scheduler {
namespace {

void blend(double& average, double sample, double weight, double max_outlier) {
  if (average <= 0) {
    average = sample;
  } else {
    average += weight * (std::min(sample, max_outlier * average) - average);
  }
}

}  // namespace

StepBudget::StepBudget(const SchedulerConfig& config)
    : page_size_(config.page_size),
      fixed_(config.mixed_prefill_tokens),
      ratio_(config.mixed_step_ratio),
      whole_prompts_(config.chunked_prefill_size < 0) {
  most_ = std::max(config.max_prefill_tokens, config.context_length);
  if (!whole_prompts_) most_ = std::min(most_, config.chunked_prefill_size);
  most_ = round(most_);
}

int StepBudget::round(double tokens) const {
  const double capped = std::min<double>(tokens, std::numeric_limits<int32_t>::max());
  return std::max(static_cast<int>(capped) / page_size_, 1) * page_size_;
}

int StepBudget::prefill_tokens(bool decodes) const {
  if (!decodes || whole_prompts_ || fixed_ < 0) return most_;
  if (fixed_ > 0) return std::min(most_, round(fixed_));
  const double token_seconds =
      mixed_token_seconds_ > 0 ? mixed_token_seconds_ : pure_token_seconds_;
  if (decode_seconds_ <= 0 || token_seconds <= 0) return std::min(most_, round(kFirstGuess));
  const double tokens = (ratio_ - 1) * decode_seconds_ / token_seconds;
  return std::min(most_, round(std::max<double>(tokens, kSmallest)));
}

void StepBudget::observe(int prefill_tokens, int decode_tokens, double seconds) {
  if (!(seconds > 0)) return;
  if (prefill_tokens == 0) {
    if (decode_tokens > 0) blend(decode_seconds_, seconds, kWeight, kMaxOutlier);
  } else if (decode_tokens == 0) {
    blend(pure_token_seconds_, seconds / prefill_tokens, kWeight, kMaxOutlier);
  } else if (decode_seconds_ > 0) {
    // A step shorter than the average decode step says only that a token costs little.
    const double added = std::max(seconds - decode_seconds_, 0.1 * seconds);
    blend(mixed_token_seconds_, added / prefill_tokens, kWeight, kMaxOutlier);
  }
}

NewTokenRatio::NewTokenRatio(double conservativeness)
    : start_(std::min(0.7 * conservativeness, 1.0)),
      least_(start_ * 0.14),
      decay_((start_ - least_) / kDecaySteps),
      value_(start_) {}

void NewTokenRatio::idle() {
  value_ = start_;
  decay_ = (start_ - least_) / kDecaySteps;
}

void NewTokenRatio::decode_step() { value_ = std::max(value_ - decay_, least_); }

void NewTokenRatio::retraction(int64_t written, int64_t asked, int running) {
  constexpr int kStepsAhead = 20;  // the survivors should be able to go on for so many steps
  const double needed = static_cast<double>(written + int64_t{kStepsAhead} * running) /
                        static_cast<double>(asked + 1);
  value_ = std::clamp(needed, value_, 1.0);
  decay_ = (value_ - least_) / kDecaySteps;
}

}  // namespace capstan::scheduler
