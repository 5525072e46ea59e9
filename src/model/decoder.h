// The forward pass of every architecture, written once against the op table.
#pragma once

#include <memory>
#include <vector>

#include "model/layer_weights.h"
#include "model/model.h"
#include "model/rope.h"
#include "model/step.h"

namespace capstan::model {

/// One decoder, or one rank's part of it; not thread-safe. Scratch grows to the largest step seen
/// and is reused.
class Decoder final : public Model {
 public:
  /// Of the options: mla_form, shard and communicator, which `weights` were cut and loaded for.
  Decoder(const ModelConfig& config, DecoderWeights weights, std::shared_ptr<kernels::Ops> ops,
          const LoadOptions& options = {});

  const ModelConfig& config() const override { return config_; }
  const ModelConfig& local_config() const override { return local_; }
  size_t weight_bytes_per_token() const override { return bytes_per_token_; }
  size_t weight_bytes() const override { return bytes_; }
  DraftModel* draft() override { return weights_.draft ? &draft_ : nullptr; }
  std::vector<std::vector<uint64_t>> expert_load() const override;
  /// kResourceExhausted when there is no memory for the activations.
  /// kInternal when the batch contradicts itself or points outside vocabulary or cache: such a
  /// step would read or write memory that is not its own.
  /// An error of one rank leaves the others waiting for it: whoever runs the ranks aborts their
  /// communicator then.
  Status forward(const ForwardBatch& batch, KvStore& kv, MatrixView logits) override;

 private:
  /// The same decoder, run as its multi-token prediction layer.
  class Draft final : public DraftModel {
   public:
    explicit Draft(Decoder& decoder) : decoder_(decoder) {}
    size_t weight_bytes_per_token() const override { return decoder_.draft_bytes_per_token_; }
    Status forward(const DraftBatch& batch, KvStore& kv, MatrixView logits) override {
      return decoder_.forward_draft(batch, kv, logits);
    }

   private:
    Decoder& decoder_;
  };

  Status prepare(const ForwardBatch& batch, const KvStore& kv, const MatrixView& logits);
  Status forward_draft(const DraftBatch& batch, KvStore& kv, MatrixView logits);
  Status share_previous(const DraftBatch& batch, MatrixView& previous);
  void take_own_rows(const ForwardBatch& batch);
  Step step();
  Status run_layer(const Step& step, const LayerWeights& layer, int index, int64_t rows,
                   const KvStore& kv, bool last);
  Status write_outputs(const ForwardBatch& batch, const std::vector<float>& norm,
                       MatrixView logits);
  Status write_logits(const MatrixView& normed, MatrixView logits);

  ModelConfig config_, local_;  // the model's, this rank's
  DecoderWeights weights_;
  std::shared_ptr<kernels::Ops> ops_;
  kernels::MlaForm mla_form_;
  Ranks ranks_;
  Shard shard_;
  std::vector<int64_t> vocabulary_;  // rows of the output matrix that each rank has
  Widths widths_;
  RopeTable rope_;
  size_t bytes_per_token_ = 0, bytes_ = 0, draft_bytes_per_token_ = 0;
  Workspace work_;
  ExpertLoad load_;
  std::vector<int32_t> kept_, logits_in_kept_;  // rows that outputs are wanted of
  // What this rank attends for: its part of the batch, where that stands among all rows, which of
  // its rows are kept, and where those stand among all that are.
  ForwardBatch own_batch_;
  std::vector<kernels::SequenceSlice> own_sequences_;
  OwnRows own_, own_in_kept_;
  std::vector<int32_t> own_kept_;
  Draft draft_{*this};
};

/// Whether the batch agrees with itself, the vocabulary, the cache, the outputs and the number of
/// groups of data-parallel attention; kInternal.
Status check_batch(const ForwardBatch& batch, const ModelConfig& config, const KvStore& kv,
                   const MatrixView& logits, bool first_rank, int groups = 1);

}  // namespace capstan::model
