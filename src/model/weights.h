// Which weights an architecture has, and where they come from: a checkpoint or a random generator.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "model/checkpoint.h"
#include "model/config.h"
#include "tensor/tensor.h"

namespace capstan::model {

struct WeightSpec {
  std::string name;  // Hugging Face name
  std::vector<int64_t> shape;
};

/// model.layers.<layer>.<part>
std::string layer_weight(int layer, std::string_view part);

/// Weights that stand outside the layers. With tied embeddings there is no lm_head.weight.
WeightSpec embedding_spec(const ModelConfig& config);
WeightSpec final_norm_spec(const ModelConfig& config);
WeightSpec lm_head_spec(const ModelConfig& config);  // names the embedding when tied

/// Weights of one layer, grouped as they are used.
struct LayerSpec {
  WeightSpec input_norm, post_attention_norm;
  std::vector<WeightSpec> qkv;       // q, k, v
  std::vector<WeightSpec> qkv_bias;  // same, or empty
  std::vector<WeightSpec> qk_norm;   // q, k, or empty
  WeightSpec o;
  std::vector<WeightSpec> gate_up;
  WeightSpec down;
};
LayerSpec layer_spec(const ModelConfig& config, int layer);

/// Every weight once.
std::vector<WeightSpec> required_weights(const ModelConfig& config);

/// Presence, shape and element type of every required weight; and no weight in a layer that the
/// architecture does not know, since leaving it out would compute another model.
Status check_weights(const Checkpoint& checkpoint);

/// Random weights in `dtype` (F32, F16, BF16, Q8_0, Q4_0 or Q4_1). Values depend on seed, name and
/// row only. Matrices are uniform with variance 1/columns, so that activations keep their size
/// through the layers; biases are uniform on [-0.1, 0.1]; norms are 1.
Status fill_dummy(const WeightSpec& spec, DType dtype, uint64_t seed, std::byte* out);

/// The dtype of this weight among dummy weights: the config's where it can be encoded and fits the
/// row length, else BF16; F32 for vectors.
DType dummy_dtype(const ModelConfig& config, const WeightSpec& spec);

}  // namespace capstan::model
