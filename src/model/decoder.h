// The forward pass of Llama, Qwen2 and Qwen3, written once against the op table.
#pragma once

#include <memory>
#include <vector>

#include "model/checkpoint.h"
#include "model/model.h"
#include "model/rope.h"

namespace capstan::model {

struct LayerWeights {
  std::vector<float> input_norm, post_attention_norm;  // [hidden]
  std::vector<float> q_norm, k_norm;                   // [head_dim], empty but for Qwen3
  std::unique_ptr<kernels::LinearWeight> qkv, o, gate_up, down;
};

struct DecoderWeights {
  TensorView embedding;             // points into `checkpoint` or `embedding_storage`
  AlignedBuffer embedding_storage;  // dummy weights only
  std::shared_ptr<const Checkpoint> checkpoint;
  std::vector<LayerWeights> layers;
  std::vector<float> final_norm;
  std::unique_ptr<kernels::LinearWeight> lm_head;
};

/// One decoder; not thread-safe. Scratch grows to the largest step seen and is reused.
class Decoder final : public Model {
 public:
  Decoder(const ModelConfig& config, DecoderWeights weights, std::shared_ptr<kernels::Ops> ops);

  const ModelConfig& config() const override { return config_; }
  size_t weight_bytes_per_token() const override { return bytes_per_token_; }
  size_t weight_bytes() const override { return bytes_; }
  /// kResourceExhausted when there is no memory for the activations.
  /// kInternal when the batch contradicts itself or points outside vocabulary or cache: such a
  /// step would read or write memory that is not its own.
  Status forward(const ForwardBatch& batch, KvStore& kv, MatrixView logits) override;

 private:
  /// Activations of one step, [tokens, ...] each.
  struct Scratch {
    int64_t rows = 0;
    AlignedBuffer x, normed, qkv, attention, hidden, cos, sin;
  };

  Status check(const ForwardBatch& batch, const KvStore& kv, const MatrixView& logits) const;
  void reserve(int64_t rows);
  void run_layers(const ForwardBatch& batch, const KvStore& kv);
  void attend(const LayerWeights& layer, const ForwardBatch& batch, const kernels::PagedKv& kv);
  void finish_layer(const LayerWeights& layer, int64_t rows);

  ModelConfig config_;
  DecoderWeights weights_;
  std::shared_ptr<kernels::Ops> ops_;
  RopeTable rope_;
  size_t bytes_per_token_ = 0, bytes_ = 0;
  Scratch scratch_;
};

}  // namespace capstan::model
