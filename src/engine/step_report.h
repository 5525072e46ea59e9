// What the engine tells about itself: running figures and the two log lines that scripts parse.
#pragma once

#include <cstdint>

#include "engine/engine.h"

namespace capstan::engine {

/// What one step did, probes left out.
struct StepFacts {
  int new_sequences = 0;         // admitted for the first time or again
  int64_t prefill_tokens = 0;    // computed
  int64_t cached_tokens = 0;     // of the sequences admitted
  int64_t prompt_tokens = 0;     // of the sequences admitted: cached or to be computed
  int64_t generated_tokens = 0;  // sampled, by prefill or decode items
  int decode_items = 0;
  // With speculation:
  int verified_items = 0;  // decode items
  int64_t draft_tokens = 0, accepted_tokens = 0;
  int followed = 0;
  double draft_seconds = 0;
  double seconds = 0;
};

/// Turns facts into the rates of EngineStats. Pure: the time is an argument.
class StepReport {
 public:
  explicit StepReport(int decode_log_interval) : decode_log_interval_(decode_log_interval) {}

  void step(const StepFacts& facts, double now, EngineStats& stats);
  /// The engine has nothing to do.
  void idle(EngineStats& stats);

 private:
  // The longest that a gauge stays as it is while something changes.
  static constexpr double kRefreshSeconds = 1.0;

  void count_drafts(const StepFacts& facts, EngineStats& stats);
  void log_decode(const EngineStats& stats) const;

  int decode_log_interval_;
  int decode_steps_ = 0;
  double window_start_ = -1;  // of throughput; < 0: no window open
  int64_t window_tokens_ = 0;
  double log_start_ = -1;
  int64_t log_tokens_ = 0;
  int64_t verified_ = 0, drafted_ = 0, accepted_ = 0;  // since the last log line
  double hit_start_ = -1;
  int64_t hit_cached_ = 0, hit_prompt_ = 0;
};

}  // namespace capstan::engine
