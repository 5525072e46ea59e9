// How many drafts a step should verify: as many as raise the tokens per second of the whole batch.
//
// Verifying costs rows. A step that reads weights most of the time takes about as long with four
// rows as with one; a step that is bound by arithmetic does not. So the time of a step by its rows
// is measured while running, and with the chance of every draft known the best choice is a short
// search. No drafts at all is among the choices, so a batch is not made slower but for the few
// steps that measure.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace capstan::engine {

/// Seconds of a step by its number of decode rows, learnt from steps. Noise is met by limits: one
/// sample counts as a doubling or a half at most, and moves an estimate by a quarter of that. Much
/// of what changes changes all steps alike (clocks, neighbours, longer contexts), so half of the
/// movement is that of all estimates.
class StepTimes {
 public:
  void observe(int rows, double seconds);
  /// Seen, or between two that were.
  bool known(int rows) const;
  /// Between two known numbers of rows interpolated; beyond the last a guess. 0 when nothing is
  /// known.
  double seconds(int rows) const;
  int widest() const { return static_cast<int>(seconds_.size()) - 1; }  // -1: nothing known

 private:
  /// The largest number of rows seen that is at most `rows`; 0: none.
  int seen_up_to(int rows) const;

  std::vector<double> seconds_;  // by rows; 0: not seen
  std::vector<int> samples_;     // parallel; counted to a few
};

class DraftDepth {
 public:
  struct Candidate {
    double acceptance = 0;  // probability that a draft holds if those before it do
    int most = 0;           // drafts at hand
  };

  /// A step without prefill took so long.
  void observe(int rows, int drafts, double seconds);
  /// Fills depth, parallel to candidates. `rows` is that of the step without drafts.
  void choose(std::span<const Candidate> candidates, int rows, std::vector<int>& depth);
  const StepTimes& times() const { return times_; }

 private:
  // Below this the gain is lost in the noise of the measurements: with 1.05, free prose at 2 and 4
  // clients took a few wrong drafts and ran at 0.98 of the speed without.
  static constexpr double kWorthwhile = 1.15;
  // Drafts of one step: bounds the memory for logits (64 rows of 150 k floats are 38 MB). CPUs are
  // bound by arithmetic at a dozen rows already.
  static constexpr int kMostDrafts = 64;
  // Steps after which what was not done lately is done once to measure it: 0.4% of the steps.
  static constexpr int kProbe = 256;

  StepTimes times_;
  int since_plain_ = 0;   // steps since one without drafts
  int since_drafts_ = 0;  // steps since one with drafts, though there were some
  std::vector<std::pair<double, size_t>> heap_;
  std::vector<size_t> order_;
};

}  // namespace capstan::engine
