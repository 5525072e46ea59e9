// A model without arithmetic, for tests of everything around the model and for measuring what the
// host does in a step.
//
// Its logits are pseudo-random numbers from a hash of all tokens up to the row. The hash of a
// prefix is kept where a real model keeps keys: in the paged cache, at the token's slot, and is
// read back through the sequence's pages. So a page lent twice, freed too early or attached to the
// wrong prefix changes the output, as it would with a real model.
#pragma once

#include <functional>
#include <span>

#include "model/model.h"

namespace capstan::engine {

struct NullModelOptions {
  int64_t vocab_size = 64;
  int64_t max_position_embeddings = 1 << 20;
  std::vector<int32_t> eos_token_ids;
  uint64_t seed = 1;
  float logit_range = 8.0f;  // logits are uniform in [0, logit_range)
  /// Run before each step, on the engine thread. An error fails the step, as does an exception.
  std::function<Status(const model::ForwardBatch&)> before_forward;
  /// With a draft layer, which knows what the model will say: its drafts always hold when the
  /// model's tokens are the likeliest and it is given the right hidden states.
  bool draft = false;
  /// Run after each pass of the draft layer, to count it or tamper with its logits.
  std::function<void(const model::DraftBatch&, MatrixView)> after_draft;
  /// Run after each step, to tamper with the logits.
  std::function<void(const model::ForwardBatch&, MatrixView)> after_forward;
};

class NullModel final : public model::Model {
 public:
  explicit NullModel(NullModelOptions options);

  const model::ModelConfig& config() const override { return config_; }
  size_t weight_bytes_per_token() const override { return 0; }
  size_t weight_bytes() const override { return 0; }
  Status forward(const model::ForwardBatch& batch, model::KvStore& kv, MatrixView logits) override;
  model::DraftModel* draft() override { return options_.draft ? &draft_ : nullptr; }

  /// The logits after `tokens`, computed without pages: what forward() must give.
  std::vector<float> expected_logits(std::span<const int32_t> tokens) const;

 private:
  /// The state after row p's token, kept in layer 1 of the cache, gives the token after that; where
  /// the row before is missing there, a wrong one.
  class Draft final : public model::DraftModel {
   public:
    explicit Draft(NullModel& model) : model_(model) {}
    size_t weight_bytes_per_token() const override { return 0; }
    Status forward(const model::DraftBatch& batch, model::KvStore& kv, MatrixView logits) override;

   private:
    NullModel& model_;
  };

  void fill_row(uint64_t state, float* row) const;

  NullModelOptions options_;
  model::ModelConfig config_;
  Draft draft_{*this};
};

}  // namespace capstan::engine
