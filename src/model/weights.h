// Which weights an architecture has, by Hugging Face name.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "model/weight_slice.h"
#include "tensor/tensor.h"

namespace capstan::model {

struct WeightSpec {
  std::string name;            // Hugging Face name
  std::vector<int64_t> shape;  // of the whole weight
  bool quantised = false;      // stored in FP8 with block scales where the checkpoint is
  WeightSlice slice = {};      // what a rank holds of it
};

/// model.layers.<layer>.<part>
std::string layer_weight(int layer, std::string_view part);

/// The block scales of a matrix: <name>_scale_inv, [ceil(n/128), ceil(k/128)], and their slice.
WeightSpec scale_spec(const WeightSpec& matrix);

/// Weights that stand outside the layers. With tied embeddings there is no lm_head.weight.
WeightSpec embedding_spec(const ModelConfig& config);
WeightSpec final_norm_spec(const ModelConfig& config);
WeightSpec lm_head_spec(const ModelConfig& config);  // names the embedding when tied

/// A gated FFN: dense, one expert, or the shared experts. Without gate_up the rank has none of it.
struct FfnSpec {
  std::vector<WeightSpec> gate_up;
  WeightSpec down;
};

struct GqaSpec {
  std::vector<WeightSpec> qkv;       // q, k, v
  std::vector<WeightSpec> qkv_bias;  // same, or empty
  std::vector<WeightSpec> qk_norm;   // q, k, or empty
};

struct MlaSpec {
  std::vector<WeightSpec> qkv_a;            // q_a (or q, without a query rank) and kv_a
  std::optional<WeightSpec> q_a_norm, q_b;  // with a query rank
  WeightSpec kv_a_norm;
  std::vector<WeightSpec> kv_b;  // kv_b; or k_b [heads, rank, nope] and v_b [heads, value, rank]
};

struct MoeSpec {
  WeightSpec router;
  std::optional<WeightSpec> bias;  // e_score_correction_bias
  std::vector<FfnSpec> experts;
  std::optional<FfnSpec> shared;
};

/// Weights of one layer, grouped as they are used.
struct LayerSpec {
  WeightSpec input_norm, post_attention_norm;
  std::optional<GqaSpec> gqa;  // one of the two
  std::optional<MlaSpec> mla;
  WeightSpec o;
  int64_t attention_offset = 0;  // columns of o's slice before those of the rank's first head
  std::optional<FfnSpec> dense;  // one of the two
  std::optional<MoeSpec> moe;
};
LayerSpec layer_spec(const ModelConfig& config, int layer);

/// What multi-token prediction has beside the layer num_layers; embedding and head are the model's.
struct DraftSpec {
  WeightSpec embedding_norm, hidden_norm;  // enorm, hnorm
  WeightSpec projection;                   // eh_proj [hidden, 2 * hidden], embedding first
  WeightSpec final_norm;                   // shared_head.norm
};
DraftSpec draft_spec(const ModelConfig& config);

/// Adds the weights of a layer, or of what stands beside it; FFNs without gate_up are left out.
void append_weights(std::vector<WeightSpec>& all, LayerSpec&& layer);
void append_weights(std::vector<WeightSpec>& all, DraftSpec&& draft);

/// Every weight once, without block scales; `draft` adds the first multi-token prediction layer.
std::vector<WeightSpec> required_weights(const ModelConfig& config, bool draft = false);

/// Weights that a decode step of one token reads: those of required_weights() less the experts that
/// are not chosen and all rows of the embedding but one.
int64_t active_parameter_count(const ModelConfig& config);
/// Of these, elements of the layers' matrices: multiply-adds of one token.
int64_t active_matrix_elements(const ModelConfig& config);

/// Presence, shape and element type of every required weight and of its block scales; and no weight
/// in a layer that the architecture does not know, since leaving it out would compute another
/// model.
Status check_weights(const Checkpoint& checkpoint, bool draft = false);

}  // namespace capstan::model
