#include "engine/draft_depth.h"

#include <algorithm>
#include <cmath>

namespace capstan::engine {

void StepTimes::observe(int rows, double seconds) {
  if (rows < 1 || !(seconds > 0)) return;
  constexpr int kFew = 4;  // samples that say more of this estimate than of the machine's speed
  constexpr int kLong = 16;
  constexpr double kFirst = 0.5, kCommon = 0.12, kOwn = 0.12, kOwnAfterLong = 0.5;
  const auto at = static_cast<size_t>(rows);
  if (at >= seconds_.size()) {
    seconds_.resize(at + 1, 0.0);
    samples_.resize(at + 1, 0);
    seen_.resize(at + 1, 0);
  }
  const bool after_long = now_ - seen_[at] > kLong;
  seen_[at] = ++now_;
  if (samples_[at] == 0) seconds_[at] = seconds;
  const double ratio = std::clamp(seconds / seconds_[at], 0.5, 2.0);
  if (samples_[at] < kFew) {
    ++samples_[at];
    seconds_[at] *= 1 + kFirst * (ratio - 1);
    return;
  }
  const double common = std::pow(ratio, kCommon);
  for (double& s : seconds_) s *= common;
  seconds_[at] *= 1 + (after_long ? kOwnAfterLong : kOwn) * (ratio / common - 1);
}

int StepTimes::seen_up_to(int rows) const {
  int seen = std::min(rows, widest());
  while (seen > 0 && seconds_[static_cast<size_t>(seen)] == 0) --seen;
  return std::max(seen, 0);
}

bool StepTimes::known(int rows) const { return rows <= widest() && seen_up_to(rows) > 0; }

double StepTimes::seconds(int rows) const {
  const int below = seen_up_to(rows);
  int above = std::max(rows, 1);
  while (above <= widest() && seconds_[static_cast<size_t>(above)] == 0) ++above;
  if (above > widest()) {
    if (below == 0) return 0;
    return seconds_[static_cast<size_t>(below)] * (1 + unseen_ * (rows - below) / below);
  }
  const double high = seconds_[static_cast<size_t>(above)];
  if (below == 0 || below == above) return high;
  const double low = seconds_[static_cast<size_t>(below)];
  return low + (high - low) * (rows - below) / (above - below);
}

void DraftDepth::observe(int rows, int drafts, double seconds) {
  const double expected = times_.seconds(rows);
  times_.observe(rows, seconds);
  if (drafts > 0) {
    --until_plain_;
  } else {
    const bool surprise = std::abs(seconds - expected) > kSurprise * expected;
    until_plain_ = surprise ? kPlainAgain : kPlainProbe;
  }
}

/// At most twice the rows that were ever tried: one bad guess costs little.
int DraftDepth::most_drafts(int rows) const {
  return std::min(kMostDrafts, std::max(2 * times_.widest() - rows, 1));
}

/// Takes the likeliest draft again and again, and sees after how many the batch is fastest.
DraftDepth::Best DraftDepth::search(std::span<const Candidate> candidates, int rows,
                                    const StepTimes* pass, std::vector<int>& depth) {
  depth.assign(candidates.size(), 0);
  heap_.clear();
  order_.clear();
  for (size_t i = 0; i < candidates.size(); ++i) {
    if (candidates[i].most > 0) heap_.emplace_back(candidates[i].acceptance, i);
  }
  const double link = pass == nullptr ? 0 : pass->seconds(static_cast<int>(heap_.size()));
  const int limit = most_drafts(rows);
  std::make_heap(heap_.begin(), heap_.end());
  double tokens = rows;
  // Of computed drafts it is known how often they hold. A few texts that gain much among others
  // that cannot are worth their part of it.
  const double share = std::min(1.0, static_cast<double>(heap_.size()) / rows);
  const double worthwhile = computed_ ? 1 + (kWorthwhile - 1) * share : kWorthwhile;
  double best = tokens / times_.seconds(rows) * worthwhile;
  Best out;
  int links = 0;
  while (!heap_.empty() && static_cast<int>(order_.size()) < limit) {
    std::pop_heap(heap_.begin(), heap_.end());
    auto [gain, i] = heap_.back();
    heap_.pop_back();
    tokens += gain;
    order_.push_back(i);
    links = std::max(links, ++depth[i]);
    if (depth[i] < candidates[i].most) {
      heap_.emplace_back(gain * candidates[i].acceptance, i);
      std::push_heap(heap_.begin(), heap_.end());
    }
    const double speed =
        tokens / (times_.seconds(rows + static_cast<int>(order_.size())) + links * link);
    if (speed > best) {
      best = speed;
      out = {order_.size(), links};
    }
  }
  return out;
}

void DraftDepth::choose(std::span<const Candidate> candidates, int rows, std::vector<int>& depth) {
  depth.assign(candidates.size(), 0);
  // Without the time of a plain step there is nothing to compare with; then now and again, so that
  // the comparison stays true.
  if (!times_.known(rows)) return;
  if (until_plain_ <= 0) {
    until_plain_ = kPlainProbe;
    return;
  }
  size_t taken = search(candidates, rows, nullptr, depth).taken;
  since_drafts_ = std::min(since_drafts_ + 1, kProbe);
  if (taken == 0 && since_drafts_ == kProbe) taken = std::min(order_.size(), candidates.size());
  if (taken > 0) since_drafts_ = 0;
  depth.assign(candidates.size(), 0);
  for (size_t j = 0; j < taken; ++j) ++depth[order_[j]];
}

int DraftDepth::worth_making(std::span<const Candidate> candidates, int rows,
                             const StepTimes& pass) {
  return times_.known(rows) ? search(candidates, rows, &pass, links_).links : 0;
}

double DraftDepth::needed(int rows, int most, const StepTimes& pass, double surcharge) const {
  if (!times_.known(rows)) return -1;
  const double plain = times_.seconds(rows), link = pass.seconds(rows);
  double least = 2;
  for (int d = 1; d <= most; ++d) {
    const int drafts = std::min(rows * d, most_drafts(rows));
    if (drafts < rows * d && d > 1) break;  // a chain for each is more than a step takes
    // Tokens a text must get from a step that takes so much longer: 1 + p + ... + p^d.
    const double share = static_cast<double>(drafts) / (rows * d);  // below 1 with d = 1 only
    const double wanted =
        (kWorthwhile + surcharge) * (times_.seconds(rows + drafts) + d * link) / plain;
    const auto tokens = [&](double p) {
      double sum = 1, power = 1;
      for (int i = 0; i < d; ++i) sum += share * (power *= p);
      return sum;
    };
    if (tokens(1) < wanted) continue;
    double low = 0, high = 1;
    for (int i = 0; i < 20; ++i) {
      const double middle = (low + high) / 2;
      (tokens(middle) < wanted ? low : high) = middle;
    }
    least = std::min(least, high);
  }
  return least;
}

}  // namespace capstan::engine
