// Packed weights of a decoder, as the forward pass uses them.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "model/checkpoint.h"

namespace capstan::model {

/// Attention with grouped key and value heads.
struct GqaWeights {
  std::vector<float> q_norm, k_norm;  // [head_dim], empty but for Qwen3
  std::unique_ptr<kernels::LinearWeight> qkv;
};

/// Multi-head latent attention.
struct MlaWeights {
  /// With a query rank: q_a and kv_a, and q_b apart; without: q and kv_a. Both read the same input,
  /// so they are one product.
  std::unique_ptr<kernels::LinearWeight> qkv_a, q_b;
  std::vector<float> q_a_norm;   // [q_lora_rank], empty without a query rank
  std::vector<float> kv_a_norm;  // [kv_lora_rank]
  std::unique_ptr<kernels::MlaProjection> kv_b;
};

/// A gated FFN; null pointers where there is none.
struct FfnWeights {
  std::unique_ptr<kernels::LinearWeight> gate_up, down;
};

struct MoeWeights {
  std::unique_ptr<kernels::LinearWeight> router;
  std::vector<float> bias;          // [experts] or empty
  std::vector<FfnWeights> experts;  // null pointers for those of other ranks
  FfnWeights shared;
  /// The experts once more, as the op wants them; see index_experts().
  std::vector<const kernels::LinearWeight*> gate_up, down;

  void index_experts() {
    for (const FfnWeights& e : experts) {
      gate_up.push_back(e.gate_up.get());
      down.push_back(e.down.get());
    }
  }
};

struct LayerWeights {
  std::vector<float> input_norm, post_attention_norm;  // [hidden]
  std::optional<GqaWeights> gqa;                       // one of the two
  std::optional<MlaWeights> mla;
  std::unique_ptr<kernels::LinearWeight> o;
  int64_t attention_offset = 0;  // inputs of o before the first head's: see LayerSpec
  FfnWeights dense;              // without experts
  std::optional<MoeWeights> moe;
};

/// The first layer of multi-token prediction.
struct DraftWeights {
  std::vector<float> embedding_norm, hidden_norm, final_norm;  // [hidden]
  std::unique_ptr<kernels::LinearWeight> projection;           // [hidden, 2 * hidden]
  LayerWeights layer;
};

struct DecoderWeights {
  TensorView embedding;             // points into `checkpoint` or `embedding_storage`
  AlignedBuffer embedding_storage;  // dummy weights only
  std::shared_ptr<const Checkpoint> checkpoint;
  std::vector<LayerWeights> layers;
  std::vector<float> final_norm;
  std::unique_ptr<kernels::LinearWeight> lm_head;
  std::optional<DraftWeights> draft;
};

/// Bytes of a layer: in all, and read for one token (the chosen experts alone).
struct LayerBytes {
  size_t held = 0, read = 0;
};
LayerBytes layer_bytes(const LayerWeights& layer, int top_k);

}  // namespace capstan::model
