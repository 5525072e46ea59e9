// Where guesses of what requests write next come from.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "base/result.h"
#include "model/model.h"
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
  /// Of a layer trained to draft: before it was tried, as good as a long match.
  static constexpr int kOfLayer = kEvidence - 1;
};

/// One pass of the model, before it runs.
struct PassInput {
  const scheduler::StepPlan& plan;
  const model::ForwardBatch& batch;
  std::span<const int32_t> items;  // plan item of each sequence of the batch
};

/// The same after its rows were sampled and before the step is committed.
struct PassOutput {
  const scheduler::StepPlan& plan;
  std::span<const scheduler::SampledToken> sampled;  // by plan item
  const model::ForwardBatch& batch;                  // hidden_rows: as choose_rows() asked for them
  std::span<const int32_t> items;
};

class DraftSource {
 public:
  virtual ~DraftSource() = default;
  /// Whether drafts are computed: then it watches only the texts that follow() names, by
  /// choose_rows() before and observe() after every pass of the model.
  virtual bool computes() const { return false; }
  /// Watches a text from its next row on, or no longer. Of a prompt that is not in the cache it may
  /// leave out all but the last `context` tokens.
  virtual void follow(scheduler::RequestId id, bool on, int32_t context) {
    (void)id, (void)on, (void)context;
  }
  /// Appends the rows of the batch whose hidden states it wants, ascending. Without any, observe()
  /// need not be called.
  virtual void choose_rows(const PassInput& in, std::vector<int32_t>& rows) {
    (void)in, (void)rows;
  }
  /// Prepares up to `depth` drafts for whoever is watched, got a token and goes on. An error means
  /// no drafts, not a failed step.
  virtual Status observe(const PassOutput& out, int depth, model::KvStore& kv) {
    (void)out, (void)depth, (void)kv;
    return {};
  }
  virtual void begin(scheduler::RequestId id, std::span<const int32_t> prompt) = 0;
  /// The request wrote these.
  virtual void append(scheduler::RequestId id, std::span<const int32_t> tokens) = 0;
  virtual void end(scheduler::RequestId id) = 0;
  /// Unknown ids get no tokens.
  virtual void propose(std::span<Draft> drafts) = 0;
};

/// What followed in the request's own prompt and output when it last said the same.
std::unique_ptr<DraftSource> make_ngram_source();

struct NextnOptions {
  model::DraftModel* model = nullptr;
  int64_t hidden_size = 0, vocab_size = 0;
  int64_t token_limit = 0;  // ids from here on are never drafted
  int page_size = 0;
};

/// The checkpoint's multi-token prediction layer: drafts the token after the next from the model's
/// hidden state, and further ones from its own.
std::unique_ptr<DraftSource> make_nextn_source(const NextnOptions& options);

}  // namespace capstan::engine
