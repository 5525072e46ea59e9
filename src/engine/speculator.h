// Speculation as the engine sees it: asks the source for drafts, decides how many are worth a row,
// proposes them to the scheduler, and learns from what was written instead.
#pragma once

#include <array>
#include <memory>
#include <span>
#include <unordered_map>
#include <vector>

#include "engine/draft_depth.h"
#include "engine/draft_source.h"
#include "engine/engine.h"

namespace capstan::engine {

class Speculator {
 public:
  /// Null when the configuration asks for none. `nextn`: for Source::kNextn.
  static std::unique_ptr<Speculator> create(const SpeculationConfig& config,
                                            const NextnOptions& nextn);
  Speculator(const SpeculationConfig& config, std::unique_ptr<DraftSource> source)
      : config_(config), source_(std::move(source)) {}

  void begin(RequestId id, std::span<const int32_t> prompt);
  /// A step gave the request these tokens.
  void wrote(RequestId id, std::span<const OutputToken> tokens);
  void end(RequestId id);

  bool wants_hidden() const { return source_->wants_hidden(); }
  /// After every pass of a step, see DraftSource.
  void observe(const PassOutput& out, model::KvStore& kv);

  /// Before a plan: proposes drafts for those of `decoding` for which it pays.
  void propose(scheduler::Scheduler& scheduler, std::span<const RequestId> decoding);
  /// After a step that ended well.
  void step_took(const scheduler::StepPlan& plan, double seconds);

 private:
  /// How often drafts held, by evidence; old trials fade.
  struct Record {
    std::array<float, Draft::kEvidence> held = {}, tried = {};
    void count(int evidence, bool holds);
  };
  struct Text {
    Record record;
    std::vector<int32_t> expected;  // what was drafted last, verified or not
    int evidence = 0;
  };
  void choose_depth_made();
  double acceptance(const Text& text, int evidence) const;

  const SpeculationConfig config_;
  const std::unique_ptr<DraftSource> source_;
  DraftDepth depth_;
  std::unordered_map<RequestId, Text> texts_;
  Record all_;
  /// Drafts of a model cost time even when they are not verified: so many are made at most.
  int depth_made_ = 1;
  int idle_steps_ = 0;
  std::vector<Draft> drafts_;
  std::vector<DraftDepth::Candidate> candidates_;
  std::vector<int> depths_;
  std::vector<int32_t> written_;
};

}  // namespace capstan::engine
