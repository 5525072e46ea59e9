// Speculation as the engine sees it: asks the source for drafts, decides how many are worth a row,
// proposes them to the scheduler, and learns from what was written instead.
#pragma once

#include <array>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

#include "engine/draft_depth.h"
#include "engine/draft_policy.h"
#include "engine/draft_source.h"
#include "engine/engine.h"

namespace capstan::engine {

class Speculator {
 public:
  /// Monotonic seconds.
  using Clock = std::function<double()>;

  /// Null when the configuration asks for none. `nextn`: for Source::kNextn.
  static std::unique_ptr<Speculator> create(const SpeculationConfig& config,
                                            const NextnOptions& nextn, Clock clock);
  Speculator(const SpeculationConfig& config, std::unique_ptr<DraftSource> source, Clock clock);

  void begin(RequestId id, std::span<const int32_t> prompt);
  /// A step gave the request these tokens.
  void wrote(RequestId id, std::span<const OutputToken> tokens);
  void end(RequestId id);

  /// Before a plan: proposes drafts for those of `decoding` for which it pays.
  void propose(scheduler::Scheduler& scheduler, std::span<const RequestId> decoding);
  /// Before every pass of a step: the rows whose hidden states observe() wants to see, valid until
  /// the next call; none: it need not be called.
  std::span<const int32_t> hidden_rows(const PassInput& in);
  /// After such a pass, see DraftSource.
  void observe(const PassOutput& out, model::KvStore& kv);
  /// After a step that ended well.
  void step_took(const scheduler::StepPlan& plan, double seconds);
  /// Texts of the last step that drafts are made for or could be.
  int followed() const { return took_.followed; }
  /// Seconds of the last step in which drafts were computed.
  double draft_seconds() const { return took_.drafting; }

 private:
  /// How often drafts held, by evidence; old trials fade.
  struct Record {
    std::array<float, Draft::kEvidence> held = {}, tried = {};
    void count(int evidence, bool holds);
    /// All that was counts as so many trials at most.
    void limit(int evidence, float most);
  };
  struct Text {
    Record record;
    std::vector<int32_t> expected;  // what was drafted last, verified or not
    int evidence = 0;
    bool followed = false;  // by a source that computes
  };
  Text* find(RequestId id);
  void begin_step(const scheduler::StepPlan& plan);
  void follow_all(const scheduler::StepPlan& plan);
  bool enough_to_follow(const scheduler::StepPlan& plan);
  void follow_texts(const scheduler::StepPlan& plan, bool drafted);
  void choose_links(const scheduler::StepPlan& plan);
  void follow(RequestId id, Text& text, bool on, int32_t context);
  void try_out(RequestId id, Text& text);
  bool hopeless(const Text& text) const;
  void end_trial(RequestId id, const Text& text);
  double general(int evidence) const;
  double acceptance(const Text& text, int evidence) const;

  const SpeculationConfig config_;
  const std::unique_ptr<DraftSource> source_;
  const Clock clock_;
  DraftDepth depth_;
  DraftPolicy policy_;
  std::unordered_map<RequestId, Text> texts_;
  Record all_;
  std::optional<RequestId> trial_;
  int judged_ = 0;      // drafts of the trial
  bool tried_ = false;  // there was a trial
  DraftPolicy::Took took_;
  bool step_began_ = false;
  std::vector<int32_t> rows_;
  std::vector<Draft> drafts_;
  std::vector<DraftDepth::Candidate> candidates_;
  std::vector<int> depths_;
  std::vector<int32_t> written_;
};

}  // namespace capstan::engine
