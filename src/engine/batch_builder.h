// From a step plan to the arrays the model takes.
//
// One forward pass is the rule. Prompt log-probabilities are the exception: they want the logits of
// every prompt row, and 2,048 rows of a 150 k vocabulary would be 1.2 GB; so such a prompt chunk is
// cut into pieces that run in passes one after the other. By the kernels' batch invariance the cut
// does not show in the results.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/model.h"
#include "scheduler/scheduler.h"

namespace capstan::engine {

/// What a row of logits is for.
struct LogitRow {
  int32_t item = 0;      // index into the plan
  int32_t position = 0;  // of the token whose logits these are
  /// Yields the next token, or the one after a draft that holds; otherwise a prompt
  /// log-probability.
  bool samples = false;
};

class BatchBuilder {
 public:
  /// Rows of logits per pass that prompt log-probabilities may ask for.
  explicit BatchBuilder(int page_size, int max_prompt_logit_rows)
      : page_size_(page_size), max_prompt_rows_(max_prompt_logit_rows) {}

  /// Positions [begin, end) of an item whose logits are wanted besides the sampled row; empty for
  /// most items. Parallel to plan.items.
  struct PromptRows {
    int32_t begin = 0, end = 0;
  };

  /// Cuts the plan into passes. The plan and `prompt_rows` must outlive the passes.
  void start(const scheduler::StepPlan& plan, std::span<const PromptRows> prompt_rows);
  /// Builds the next pass; false when there is none. batch() and rows() are valid until the next
  /// call.
  bool next();

  const model::ForwardBatch& batch() const { return batch_; }
  std::span<const LogitRow> rows() const { return rows_; }
  std::span<const int32_t> items() const { return items_; }  // plan item of each sequence

 private:
  struct Piece {
    int32_t item, start, count;
    int pass;
  };
  void append(const Piece& piece);

  int page_size_, max_prompt_rows_;
  const scheduler::StepPlan* plan_ = nullptr;
  std::span<const PromptRows> prompt_rows_;
  std::vector<Piece> pieces_;
  int pass_ = 0, passes_ = 0;
  std::vector<int32_t> tokens_, positions_, logit_rows_;
  std::vector<int64_t> slots_;
  std::vector<kernels::SequenceSlice> sequences_;
  std::vector<int32_t> items_;
  std::vector<uint64_t> ids_;
  std::vector<LogitRow> rows_;
  model::ForwardBatch batch_;
};

}  // namespace capstan::engine
