#include "scheduler/step_budget.h"

#include <algorithm>
#include <limits>

namespace capstan::scheduler {
StepBudget::StepBudget(const SchedulerConfig& config)
    : page_size_(config.page_size),
      fixed_(config.mixed_prefill_tokens),
      ratio_(config.mixed_step_ratio),
      whole_prompts_(config.chunked_prefill_size < 0) {
  most_ = std::max(config.max_prefill_tokens, config.context_length);
  if (!whole_prompts_) most_ = std::min(most_, config.chunked_prefill_size);
  most_ = round(most_);
  mixed_tokens_ = mixed_limit({}, 0);
}

int StepBudget::round(double tokens) const {
  const double capped = std::min<double>(tokens, std::numeric_limits<int32_t>::max());
  return std::max(static_cast<int>(capped) / page_size_, 1) * page_size_;
}

int StepBudget::mixed_limit(const StepWork& decodes, int joining) {
  if (whole_prompts_ || fixed_ < 0) return most_;
  if (fixed_ > 0) return std::min(most_, round(fixed_));
  if (!cost_.known()) {
    return std::min(most_, round(cost_.anything_known() ? kSecondGuess : kFirstGuess));
  }
  const double alone = cost_.seconds(decodes);
  if (mixed_since_probe_ >= kStepsBetweenProbes && cost_.uncertainty(decodes) > kSure * alone) {
    return 0;
  }
  StepWork joined = decodes;
  joined.decode_rows += joining;
  joined.decode_context *= joined.decode_rows / decodes.decode_rows;
  timed_ = true;
  seconds_left_ = std::max(ratio_ * alone, cost_.seconds(joined)) - alone;
  return std::min(most_, std::max(kCautious, 2 * last_mixed_));
}

void StepBudget::begin(const StepWork& decodes, int joining) {
  used_ = 0;
  timed_ = false;
  if (decodes.decode_rows <= 0) {
    tokens_left_ = most_;
    return;
  }
  tokens_left_ = mixed_limit(decodes, joining);
  if (tokens_left_ > 0) mixed_tokens_ = fits(0, most_);
}

int StepBudget::fits(int start, int remaining) const {
  if (whole_prompts_) return used_ == 0 || remaining <= tokens_left_ ? remaining : 0;
  int count = std::min(remaining, tokens_left_);
  if (count <= 0) return 0;
  if (timed_) {
    count = cost_.tokens_within(seconds_left_, start, count);
    if (used_ == 0) count = std::max(count, 1);
    if (used_ > 0 && count < std::min(remaining, kCrumb)) return 0;
  }
  if (count == remaining) return count;
  const int aligned = (start + count) / page_size_ * page_size_ - start;
  return timed_ && aligned < count - count / 8 ? count : std::max(aligned, 0);
}

void StepBudget::take(int start, int count) {
  used_ += count;
  tokens_left_ -= count;
  if (timed_) seconds_left_ -= cost_.prefill_seconds(start, count);
}

bool StepBudget::spent() const {
  return tokens_left_ <= 0 || (timed_ && used_ > 0 && seconds_left_ <= 0);
}

void StepBudget::observe(const StepWork& work, double seconds) {
  cost_.observe(work, seconds);
  if (work.decode_rows <= 0) return;
  const bool mixed = work.prefill_tokens > 0;
  mixed_since_probe_ = mixed ? mixed_since_probe_ + 1 : 0;
  if (mixed) last_mixed_ = static_cast<int>(work.prefill_tokens);
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
