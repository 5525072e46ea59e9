// Where guesses of what requests write next come from.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "scheduler/scheduler.h"

namespace capstan::engine {

/// What a source proposes for one request.
struct Draft {
  scheduler::RequestId id = 0;
  int most = 0;                 // in: tokens wanted
  std::vector<int32_t> tokens;  // out: at most that many; empty: no idea
  /// Out: how good the evidence is, 0 to kEvidence - 1. How often drafts hold is counted apart for
  /// each.
  int evidence = 0;

  static constexpr int kEvidence = 6;
};

class DraftSource {
 public:
  virtual ~DraftSource() = default;
  virtual void begin(scheduler::RequestId id, std::span<const int32_t> prompt) = 0;
  /// The request wrote these.
  virtual void append(scheduler::RequestId id, std::span<const int32_t> tokens) = 0;
  virtual void end(scheduler::RequestId id) = 0;
  /// Unknown ids get no tokens.
  virtual void propose(std::span<Draft> drafts) = 0;
};

/// What followed in the request's own prompt and output when it last said the same.
std::unique_ptr<DraftSource> make_ngram_source();

}  // namespace capstan::engine
