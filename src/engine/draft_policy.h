// For whom drafts are computed.
//
// A draft layer costs time for every text it follows: on the prompt, in each step to keep its cache
// up, and for the drafts. So it follows a text only where its drafts hold often enough to pay at
// the load of the moment (DraftDepth::needed). Where they never would, nobody is followed, and
// nothing would ever be learnt: therefore a text is followed now and again to try it, for a fixed
// share of the time. And what is expected may not come true, so the gain is counted: where there is
// none, drafts rest. Pure: all times are arguments.
#pragma once

#include <algorithm>

#include "engine/draft_depth.h"

namespace capstan::engine {

class DraftPolicy {
 public:
  /// What a step was.
  struct Took {
    int load = 0;      // texts in it
    int followed = 0;  // of these
    int tips = 0;      // texts that drafts were made for
    int links = 0;     // drafts made for each, one after the other
    bool trial = false;
    int decode_rows = 0, prompt_rows = 0;
    int tokens = 0;  // written
    int followed_prompt_rows = 0;
    double seconds = 0;   // without drafting
    double drafting = 0;  // seconds of the layer
  };

  explicit DraftPolicy(int most) : most_(most) {}

  /// Before a step of so many texts.
  void begin_step(const DraftDepth& depth, int load, int followed);
  /// Whether drafts of a text that hold so often would pay if all were like it: for one that
  /// begins, with the cost of its prompt, and for one that runs.
  bool begins(double acceptance) const { return !rests() && acceptance >= needed_to_begin_; }
  bool joins(double acceptance) const { return !rests() && acceptance >= needed_; }
  /// Whether to follow one no longer. Between the two limits all stays as it is.
  bool leaves(double acceptance) const {
    if (cheap_) return acceptance < kLeave * std::min(needed_, kWorthKeeping);
    return rests() || idle_ >= kPatience || acceptance < kLeave * needed_;
  }
  /// No drafts are made, and nobody is tried.
  bool rests() const { return rest_ > 0; }
  bool trial_due() const { return !rests() && credit_ >= 0; }
  /// Steps that a trial waits for a text that begins, before it takes one that runs.
  bool trial_waited() const { return waited_ >= kTrialWaits; }
  /// Of `judged` drafts so few held that the rest of a trial would change nothing: were they as
  /// good as they must be, that would be the chance of one in twenty.
  bool hopeless(int held, int judged) const;
  void trial_ended(double acceptance);
  void step_took(const DraftDepth& depth, const Took& step);

  /// Seconds of making one draft for each of some texts.
  const StepTimes& pass() const { return pass_; }

 private:
  static constexpr int kTrialWaits = 64;     // steps
  static constexpr double kMostAsked = 0.9;  // of a trial's drafts, whatever is needed
  // Where more is needed than that, rows of a text that is good enough for a lower load are kept.
  static constexpr double kWorthKeeping = 0.6;
  static constexpr double kLeave = 0.9;
  static constexpr int kPatience = 8;  // steps of keeping rows for nothing
  // Steps of a rest. It begins when drafts lost the time of some plain steps, more where they had
  // gained before: that much is hardly bad luck. It ends early when clearly less is needed than at
  // its beginning, as when the load has fallen.
  static constexpr int kRest = 256;
  static constexpr double kMostLost = 2, kMostGained = 4, kClearly = 0.8;
  // Rows are kept while drafts rest where that costs less: one layer's attention of DeepSeek-V3's
  // 61 layers does, of 8 layers it was 8% in one run.
  static constexpr double kCheap = 0.01;
  // Of all time, for trials; with what is not measured of them (a row more to verify) they take
  // below 0.5%. Where some texts gain, a share of that is there to find others.
  static constexpr double kTrials = 0.0025, kTrialsOfGain = 0.25;

  double prompt_share() const;
  void count_gain(const DraftDepth& depth, const Took& step);

  const int most_;
  StepTimes pass_, keep_;  // by texts
  double needed_ = 0, needed_to_begin_ = 0;
  bool cheap_ = true;
  int idle_ = 0;     // steps in a row in which texts were followed at a cost and no drafts made
  double lost_ = 0;  // by drafts, in plain steps; below 0: gained
  int rest_ = 0;     // steps yet to rest
  double rest_needed_ = 0;  // when it began
  double plain_ = 0;        // seconds of a plain step of this load
  double credit_ = 0;       // seconds; below 0: trials are to be earned yet
  int waited_ = 0;          // steps since the next trial could begin
  // Fading sums, for what drafts cost on prompts.
  double decode_seconds_ = 0, prompt_rows_ = 0;
  double followed_seconds_ = 0, followed_rows_ = 0;
};

}  // namespace capstan::engine
