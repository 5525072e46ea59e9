#include "engine/draft_policy.h"

#include <algorithm>
#include <cmath>

namespace capstan::engine {

void DraftPolicy::begin_step(const DraftDepth& depth, int load, int followed) {
  const double needed = depth.needed(load, most_, pass_, 0);
  if (needed >= 0) {  // else as before
    needed_ = needed;
    needed_to_begin_ = depth.needed(load, most_, pass_, prompt_share());
  }
  plain_ = depth.times().seconds(load);
  if (needed_ < kClearly * rest_needed_) rest_ = 0;
  // Not measured yet: done once, to see.
  cheap_ = !keep_.known(followed) || !depth.times().known(load) ||
           keep_.seconds(followed) < kCheap * plain_;
}

/// Seconds of the layer on prompts per second of decoding. Of the prompt's rows the model's last
/// layer also computes what it leaves out otherwise, which is as much again.
double DraftPolicy::prompt_share() const {
  constexpr double kSettled = 5;  // seconds of decoding before which a prompt says little
  if (followed_rows_ == 0) return 0;
  return 2 * followed_seconds_ / followed_rows_ * prompt_rows_ / (decode_seconds_ + kSettled);
}

bool DraftPolicy::hopeless(int held, int judged) const {
  constexpr double kChance = 0.05;
  const double p = std::min(needed_, kMostAsked);
  if (p <= 0) return false;
  double term = std::pow(1 - p, judged), chance = term;  // of none, of at most `held`
  for (int i = 0; i < held; ++i) {
    term *= (judged - i) / (i + 1.0) * p / (1 - p);
    chance += term;
  }
  return chance < kChance;
}

/// A trial that went well is paid by the drafts that follow, and the next text may be like it.
void DraftPolicy::trial_ended(double acceptance) {
  if (rests() || acceptance < needed_) return;
  if (plain_ > 0) lost_ += std::min(-credit_ / plain_, kMostLost / 2);
  credit_ = 0;
}

/// Tokens are counted and times are those learnt, so that it is no gain when the machine gets
/// faster, and no loss when one step is slow.
void DraftPolicy::count_gain(const DraftDepth& depth, const Took& step) {
  const bool kept = step.tips > 0 && step.links == 0 && !cheap_;
  idle_ = kept ? idle_ + 1 : 0;
  const bool drafts = step.links > 0 || step.decode_rows > step.load;
  if (rests()) {
    --rest_;
  } else if ((drafts || kept) && !step.trial && step.prompt_rows == 0 && plain_ > 0) {
    const double longer =
        depth.times().seconds(step.decode_rows) - depth.times().seconds(step.load);
    const double more = static_cast<double>(std::max(0, step.tokens - step.load)) / step.load;
    lost_ = std::max(-kMostGained, lost_ + (longer + step.drafting) / plain_ - more);
  }
  if (lost_ < kMostLost) return;
  rest_ = kRest;
  rest_needed_ = std::min(needed_, 1.0);
  lost_ = 0;
}

void DraftPolicy::step_took(const DraftDepth& depth, const Took& step) {
  const bool prefill = step.prompt_rows > 0;
  if (step.followed > 0 && !prefill) {
    if (step.links > 0) {
      pass_.observe(step.tips, step.drafting / step.links);
    } else {
      keep_.observe(step.followed, step.drafting);
    }
  }
  constexpr double kRemembered = 60;  // seconds of decoding
  constexpr double kRowsRemembered = 1 << 15;
  decode_seconds_ += depth.times().seconds(step.decode_rows);
  prompt_rows_ += step.prompt_rows;
  if (decode_seconds_ > kRemembered) {
    decode_seconds_ /= 2;
    prompt_rows_ /= 2;
  }
  if (step.followed_prompt_rows > 0) {
    followed_seconds_ += std::max(0.0, step.drafting - step.links * pass_.seconds(step.tips));
    followed_rows_ += step.followed_prompt_rows;
    if (followed_rows_ > kRowsRemembered) {
      followed_seconds_ /= 2;
      followed_rows_ /= 2;
    }
  }

  const double spent = step.trial ? step.drafting * (prefill ? 2 : 1) : 0;
  double gain = 0;
  if (step.tokens > step.load && !prefill) {
    gain =
        depth.times().seconds(step.load) * step.tokens / step.load - step.seconds - step.drafting;
  }
  credit_ = std::min(0.0, credit_ + kTrials * step.seconds + kTrialsOfGain * gain - spent);
  waited_ = step.trial || credit_ < 0 ? 0 : waited_ + 1;
  count_gain(depth, step);
}

}  // namespace capstan::engine
