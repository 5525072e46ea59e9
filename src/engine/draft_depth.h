// How many drafts a step should verify: as many as raise the tokens per second of the whole batch.
//
// Verifying costs rows. A step that reads weights most of the time takes about as long with four
// rows as with one; a step that is bound by arithmetic does not. So the time of a step by its rows
// is measured while running, and with the chance of every draft known the best choice is a short
// search. No drafts at all is among the choices, so a batch is not made slower but for the few
// steps that measure. Where drafts are computed, the time of making them counts too.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace capstan::engine {

/// Seconds of a step by its number of decode rows, learnt from steps. Noise is met by limits: one
/// sample counts as a doubling or a half at most, and moves an estimate by a quarter of that. Much
/// of what changes changes all steps alike (clocks, neighbours, longer contexts), so half of the
/// movement is that of all estimates. Where they part, an estimate not seen for long is wrong: its
/// next sample moves it by half.
class StepTimes {
 public:
  /// A row more than were ever tried is taken to cost `unseen` of what the others do on average.
  explicit StepTimes(double unseen = kUnseen) : unseen_(unseen) {}
  void observe(int rows, double seconds);
  /// Seen, or between two that were.
  bool known(int rows) const;
  /// Between two known numbers of rows interpolated; beyond the last a guess. 0 when nothing is
  /// known.
  double seconds(int rows) const;
  int widest() const { return static_cast<int>(seconds_.size()) - 1; }  // -1: nothing known

 private:
  // Likely drafts are tried then and unlikely ones are not.
  static constexpr double kUnseen = 0.5;
  /// The largest number of rows seen that is at most `rows`; 0: none.
  int seen_up_to(int rows) const;

  double unseen_;
  std::vector<double> seconds_;  // by rows; 0: not seen
  std::vector<int> samples_;     // parallel; counted to a few
  std::vector<int64_t> seen_;    // parallel; when last, by samples of all
  int64_t now_ = 0;
};

class DraftDepth {
 public:
  struct Candidate {
    double acceptance = 0;  // probability that a draft holds if those before it do
    int most = 0;           // drafts at hand
  };

  /// `computed`: drafts cost time to make, and are at hand only where that seemed worth it. So
  /// numbers of rows never tried are taken to cost nothing more, and get tried.
  explicit DraftDepth(bool computed = false)
      : computed_(computed), times_(computed ? StepTimes(0) : StepTimes()) {}

  /// A step without prefill took so long, the making of drafts left out.
  void observe(int rows, int drafts, double seconds);
  /// Fills depth, parallel to candidates. `rows` is that of the step without drafts.
  void choose(std::span<const Candidate> candidates, int rows, std::vector<int>& depth);
  /// How many drafts to make, one after the other, before a step of `rows`: as many as are worth
  /// their making too. `pass`: seconds of making one for each of some texts, by their number.
  int worth_making(std::span<const Candidate> candidates, int rows, const StepTimes& pass);
  /// The acceptance from which on making and verifying up to `most` drafts for each of `rows` texts
  /// pays; above 1 where it never does. `surcharge`: what else drafts cost, as a share of the time
  /// of steps. Negative when the step's time is not known.
  double needed(int rows, int most, const StepTimes& pass, double surcharge) const;
  const StepTimes& times() const { return times_; }

 private:
  // Below this the gain is lost in the noise of the measurements: with 1.05, free prose at 2 and 4
  // clients took a few wrong drafts and ran at 0.98 of the speed without.
  static constexpr double kWorthwhile = 1.15;
  // Drafts of one step: bounds the memory for logits (64 rows of 150 k floats are 38 MB). CPUs are
  // bound by arithmetic at a dozen rows already.
  static constexpr int kMostDrafts = 64;
  // Steps after which drafts are verified once to measure it, and after which none are. Drafts may
  // be a loss, so that is rare. A plain step costs what drafts gain at most, and as long as its
  // time is not true, a loss may look like a gain: it comes often, and soon again after one that
  // took other than expected.
  static constexpr int kProbe = 256, kPlainProbe = 32, kPlainAgain = 4;
  static constexpr double kSurprise = 0.15;

  struct Best {
    size_t taken = 0;  // the first so many of order_
    int links = 0;     // the longest of them
  };
  Best search(std::span<const Candidate> candidates, int rows, const StepTimes* pass,
              std::vector<int>& depth);
  int most_drafts(int rows) const;

  const bool computed_;
  StepTimes times_;
  int until_plain_ = kPlainProbe;  // steps with drafts
  int since_drafts_ = 0;           // steps since one with drafts
  std::vector<std::pair<double, size_t>> heap_;
  std::vector<size_t> order_;
  std::vector<int> links_;
};

}  // namespace capstan::engine
